"""What a run of the cache stage would take: forward passes, bytes, and seconds by a few of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hubretrain.arrays import IntArray
from hubretrain.bottlenecks import Bottlenecks, compare_file
from hubretrain.data import ImageDataset
from hubretrain.extraction.options import CacheOptions
from hubretrain.extraction.pipeline import Batch, Extractor, ImageTask
from hubretrain.extraction.plan import CachePlan, plan_cache
from hubretrain.files import StrPath
from hubretrain.modules import StoredModule
from hubretrain.storage import located

SECONDS, N_IMAGES = 6.0, 512  # that are timed, whichever is over first


@dataclass(frozen=True)
class CacheEstimate:
    """What caching would take.

    Attributes:
        modules: Names of the modules.
        n_forward: Forward passes of each module that are missing.
        n_bytes: Size of each module's file in the end.
        seconds: Time of all modules together, which share the decoding of images; 0 where nothing
            is missing.
        images_per_second: Forward passes of all modules per second that were timed.
    """

    modules: tuple[str, ...]
    n_forward: tuple[int, ...]
    n_bytes: tuple[int, ...]
    seconds: float
    images_per_second: float


def estimate_cache(
    dataset: ImageDataset,
    modules: Sequence[StoredModule],
    options: CacheOptions = CacheOptions(),
    *,
    cache: StrPath = "cache",
) -> CacheEstimate:
    """Time a few batches of the images that a run would compute; no bottleneck is written.

    Args:
        dataset: The images.
        modules: The modules; one that was never loaded is probed.
        options: How bottlenecks would be computed and stored.
        cache: The cache folder.

    Raises:
        CacheError: A file in the cache cannot be read.
        EngineError: An engine cannot run its module.
        ModuleError: A module cannot be loaded.
    """
    plan = plan_cache(dataset, modules, options, Path(cache))
    missing = [_missing(plan, m, overwrite=options.overwrite) for m in range(len(plan.files))]
    n_forward = tuple(int(views.sum()) for views in missing)
    seconds = speed = 0.0
    if any(n_forward):
        seconds, speed = _timed(plan, missing)
    return CacheEstimate(
        tuple(spec.module.name for spec in plan.recipe.extractors),
        n_forward,
        tuple(_bytes(plan, m, options) for m in range(len(plan.files))),
        seconds,
        speed,
    )


def _missing(plan: CachePlan, m: int, *, overwrite: bool) -> IntArray:
    """Return the number of views that a module lacks of each row, int64 (n_images,)."""
    wanted = plan.rows.n_views.astype(np.int64)
    file, spec = plan.files[m], plan.recipe.extractors[m]
    if overwrite or not file.exists():
        return wanted
    with Bottlenecks(file) as bottlenecks:
        comparison = compare_file(bottlenecks, plan.rows, plan.attributes[m], None, spec.segments)
        if comparison.kept_views == 0 or comparison.layers != bottlenecks.segments[1:]:
            return wanted
        done = ~bottlenecks.todo() & (
            np.arange(bottlenecks.n_views) < bottlenecks.n_views_of[:, None]
        )
        finished = comparison.for_rows(done[:, : comparison.kept_views].sum(axis=1), 0)
    return np.maximum(wanted - finished, 0)


def _bytes(plan: CachePlan, m: int, options: CacheOptions) -> int:
    spec = plan.recipe.extractors[m]
    n_features = spec.segments[-1].stop if spec.segments else spec.module.n_features
    size = np.dtype(options.dtype or np.float32).itemsize
    return len(plan.rows) * int(plan.rows.n_views.max(initial=1)) * n_features * size


def _timed(plan: CachePlan, missing: Sequence[IntArray]) -> tuple[float, float]:
    """Return the seconds of all that is missing, and the passes per second that were seen.

    Loading is timed as it is. The passes of the first batches, which compile, do not count.
    """
    started = time.monotonic()
    extractor = Extractor(plan.recipe, [bool(views.any()) for views in missing])
    loading = time.monotonic() - started
    rows = np.flatnonzero(np.any(missing, axis=0))
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(N_IMAGES, len(rows))).astype(int))]
    n_done, first, began = 0, 0, time.monotonic()
    try:
        for result in extractor.run(_tasks(plan, rows, missing, began)):
            if isinstance(result, Batch):
                if not first:
                    first, began = len(result.rows), time.monotonic()
                n_done += len(result.rows)
        seconds = time.monotonic() - began
    finally:
        extractor.close()
    n_all = sum(int(views.sum()) for views in missing)
    if n_done <= first:  # all of it was one batch
        return time.monotonic() - started, n_done / max(seconds + loading, 1e-9)
    speed = (n_done - first) / max(seconds, 1e-9)
    return loading + n_all / speed, speed


def _tasks(
    plan: CachePlan, rows: IntArray, missing: Sequence[IntArray], began: float
) -> Iterator[ImageTask]:
    """Yield the views to time of each image, until the time is over."""
    for row in rows.tolist():
        if time.monotonic() - began > SECONDS:
            return
        views = tuple(tuple(range(int(of[row]))) for of in missing)
        path = located(plan.root, plan.rows.path[row])
        yield ImageTask(row, path, plan.rows.sha256[row], views)
