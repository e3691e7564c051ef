"""One module on one slice: its features, from the cache or computed, and quick heads on them."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from hubretrain.bottlenecks import Bottlenecks, ForwardPassLog
from hubretrain.data import ImageDataset, Quarantine
from hubretrain.errors import CacheError
from hubretrain.evaluation import Predictions
from hubretrain.extraction import CacheOptions, Cluster, Slice, cache_bottlenecks, slice_file
from hubretrain.modules import StoredModule
from hubretrain.progress import PERCENT, Bar
from hubretrain.racing.options import RaceOptions
from hubretrain.racing.pace import Lap
from hubretrain.screening import Probe

SHARE_OF_FEATURES = 0.8  # of the time, roughly


def run_lap(
    dataset: ImageDataset,
    images: pd.DataFrame,
    module: StoredModule,
    probe: Probe,
    options: RaceOptions,
    cache: Path,
    cluster: Cluster | None = None,
) -> tuple[Predictions, Lap]:
    """Return the predictions of quick heads of a module on a slice, and what they took.

    Features that are in the cache are used, those that are not are computed and kept.

    Args:
        dataset: The data set.
        images: The slice, as `Probe.predictions` takes it.
        module: The module.
        probe: The heads that are fitted.
        options: How features are computed.
        cache: The cache folder.
        cluster: Worker processes on Ray; by default features are computed in this process.

    Raises:
        CacheError: The features cannot be computed or kept.
        EngineError: The engine cannot run the module.
        HeadError: The heads cannot be fitted.
        ModuleError: The module cannot be loaded.
    """
    with Bar(module.name, 100, PERCENT) as bar:
        with bar.part(SHARE_OF_FEATURES):
            file, images, passes, loading = _features(
                dataset, images, module, options, cache, cluster
            )
        started = time.monotonic()
        with bar.part(1 - SHARE_OF_FEATURES):
            predictions = probe.predictions(file, images)
    return predictions, Lap(len(images), passes, loading, time.monotonic() - started)


def _features(
    dataset: ImageDataset,
    images: pd.DataFrame,
    module: StoredModule,
    options: RaceOptions,
    cache: Path,
    cluster: Cluster | None,
) -> tuple[Path, pd.DataFrame, float, float]:
    """Return the file that holds a slice's features, and the images of it that can be decoded.

    Returns:
        Also the seconds of a forward pass and of the rest; 0 and 0 where nothing was computed.
    """
    passes = loading = 0.0
    sha256s = images["sha256"].tolist()
    folder = dataset.cache_folder(cache)
    file = folder / f"{module.name}.h5"
    if not _holds(file, module, sha256s, options.layers):
        how = CacheOptions(
            n_views=1, engine=options.engine, precision=options.precision, layers=options.layers
        )
        file = slice_file(folder, module.name)
        part = Slice(frozenset(sha256s) | _contents(file))
        (result,) = cache_bottlenecks(
            dataset, [module], how, cache=cache, part=part, cluster=cluster
        )
        if result.n_computed:
            rate = ForwardPassLog(folder).images_per_second(module.name)
            passes = 1 / rate if rate else result.seconds / result.n_computed
            loading = max(0.0, result.seconds - passes * result.n_computed)
        reasons = Quarantine(folder).reasons
        images = images[~images["sha256"].isin(list(reasons))].reset_index(drop=True)
    return file, images, passes, loading


def _contents(file: Path) -> frozenset[str]:
    """Return the contents that a bottleneck file has rows of, none where it cannot be read."""
    try:
        with Bottlenecks(file) as bottlenecks:
            return frozenset(bottlenecks.sha256s)
    except CacheError:
        return frozenset()


def _holds(file: Path, module: StoredModule, sha256s: list[str], layers: str) -> bool:
    """Return whether a bottleneck file holds the features of images, of this very module."""
    if not file.exists():
        return False
    try:
        with Bottlenecks(file) as bottlenecks:
            if bottlenecks.attributes.get("module_sha256") != module.sha256:
                return False
            if layers == "all" and bottlenecks.lacks_layers:
                return False
            bottlenecks.check(sha256s[:0], sha256s)
    except CacheError:
        return False
    return True
