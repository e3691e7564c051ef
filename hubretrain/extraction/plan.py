"""What a bottleneck file is to hold: its name, its rows and its attributes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.arrays import Pixels
from hubretrain.bottlenecks import Attribute, Bottlenecks, RowIndex
from hubretrain.data import ImageDataset, Quarantine
from hubretrain.data.images import RESIZER, read_image, view
from hubretrain.errors import CacheError, DataError, EngineError
from hubretrain.extraction.engines import (
    BATCH_SIZE,
    OPENVINO_BATCH_SIZE,
    calibrate,
    choose_engine,
    gpu_in_sight,
)
from hubretrain.extraction.options import MAX_VIEWS, CacheOptions
from hubretrain.extraction.pipeline import ExtractorSpec
from hubretrain.modules import StoredModule

RESIZE = "bilinear, antialiased, 8-bit, aspect ratio not kept"
PARTS = "parts"  # the folder of parts, in the data set's folder


@dataclass(frozen=True)
class Part:
    """One of several shares of a data set, each cached on a machine of its own.

    Which images are in it depends on their contents alone.

    Attributes:
        number: Which one, from 1.
        n_parts: How many there are.
    """

    number: int
    n_parts: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads `3/16`.

        Raises:
            CacheError: It is no such thing.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise CacheError(
                f"`part` is {text!r}; expected a number and how many there are, such as 3/16."
            )
        return cls(int(found[1]), int(found[2]))

    def holds(self, sha256: str) -> bool:
        """Whether a content belongs to it."""
        return int(sha256[:15], 16) % self.n_parts == self.number - 1


def rows_of(
    dataset: ImageDataset,
    digests: Sequence[str],
    quarantine: Quarantine,
    n_views: int,
    minority_views: int | None = None,
    part: Part | None = None,
) -> RowIndex:
    """A row for each distinct content, in order of path.

    Args:
        dataset: The images.
        digests: The sha256 of each.
        quarantine: What cannot be decoded; brought up to date with the data set.
        n_views: Views of the images of the largest class.
        minority_views: Views of those of the rarest, at most; by default `n_views`.
        part: Only the contents of this part.

    Raises:
        CacheError: A number of views is out of range.
    """
    for name, value in (("n_views", n_views), ("minority_views", minority_views or n_views)):
        if not 1 <= value <= MAX_VIEWS:
            raise CacheError(f"`{name}` is {value}; expected 1 to {MAX_VIEWS}.")
    of_class = views_of_classes(dataset.images["label"], n_views, minority_views or n_views)
    path_of: dict[str, str] = {}
    views_of: dict[str, int] = {}
    images = dataset.images
    for path, label, sha256 in zip(images["path"], images["label"], digests, strict=True):
        path_of.setdefault(sha256, path)
        views_of[sha256] = max(views_of.get(sha256, 0), of_class[label])
    quarantine.keep(path_of)
    quarantine.save()
    kept = [sha256 for sha256 in path_of if part is None or part.holds(sha256)]
    n = [0 if sha256 in quarantine.reasons else views_of[sha256] for sha256 in kept]
    paths = tuple(path_of[sha256] for sha256 in kept)
    return RowIndex(paths, tuple(kept), np.array(n, dtype=np.int16))


def views_of_classes(labels: pd.Series, n_views: int, minority_views: int) -> dict[str, int]:
    """How many views the images of each class get: rarer classes more, smoothly.

    A class that is r times as rare as the largest gets `n_views * r**a` views, with the a in
    [0, 1] for which the rarest class comes to `minority_views`; so no class gets more rows
    than the largest has, but for rounding.

    Args:
        labels: The class of each image.
        n_views: Of the largest class.
        minority_views: Of the rarest, at most.

    Raises:
        CacheError: `minority_views` is less than `n_views`.
    """
    if minority_views < n_views:
        raise CacheError(
            f"`minority_views` is {minority_views}, less than `n_views`, {n_views}; expected at "
            "least as many for rare classes as for the others."
        )
    counts = labels.value_counts()
    rarity = counts.max() / counts
    steepest = math.log(rarity.max())
    exponent = min(1.0, math.log(minority_views / n_views) / steepest) if steepest else 0.0
    views = (n_views * rarity**exponent).round().astype(int)
    return {str(name): int(n) for name, n in views.items()}


def file_name(module: str, part: Part | None = None) -> str:
    """Where a module's bottleneck file, or one part of it, is in the data set's folder."""
    if part is None:
        return f"{module}.h5"
    return f"{PARTS}/{module}.{part.number}-of-{part.n_parts}.h5"


def attributes_of(
    running: ExtractorSpec,
    options: CacheOptions,
    calibration: Mapping[str, Attribute] | None = None,
) -> dict[str, Attribute]:
    """What the features depend on, as flat attributes of the bottleneck file.

    The batch size is one of them only if the last bits of features depend on it: not with
    TensorFlow on a processor if it is a multiple of 48, nor if it is the engine's own.
    """
    module = running.module
    own = BATCH_SIZE if running.engine == "tensorflow" else OPENVINO_BATCH_SIZE
    given = options.batch_size or own
    size_matters = given % own != 0 if running.engine == "tensorflow" else given != own
    low, high = module.value_range
    costs = {"n_parameters": module.n_parameters, "gflops": module.gflops}
    return {
        "module": module.name,
        "handle": module.handle,
        "module_sha256": module.sha256,
        "image_size": module.image_size,
        "value_range": f"[{low:g}, {high:g}]",
        **{name: attribute for name, attribute in costs.items() if attribute is not None},
        "resize": f"{RESIZE}, {'TensorFlow' if running.cuts_views else RESIZER}",
        **asdict(options.augmentation),
        "seed": options.seed,
        "engine": running.engine,
        "precision": running.precision,
        **({"batch_size": given} if size_matters else {}),
        **(calibration or {}),
    }


def extractor_spec(
    module: StoredModule,
    place: Path,
    part: Part | None,
    options: CacheOptions,
) -> ExtractorSpec:
    """What runs a module: as what is there was computed, where that is left open.

    Args:
        module: The module, probed.
        place: The data set's folder in the cache.
        part: The part of the data set, if not all of it.
        options: How bottlenecks are computed; with `overwrite` the file does not count.

    Raises:
        EngineError: See `hubretrain.extraction.engines.choose_engine`.
    """
    file = place / file_name(module.name, part)
    before: dict[str, Attribute] = {}
    if file.exists() and not options.overwrite:
        with Bottlenecks(file) as there:
            before = there.attributes
    known = str(before["engine"]) if before.get("precision") == options.precision else None
    name = choose_engine(options.engine, options.precision, module=module, before=known)
    cuts_views = options.augment_on == "gpu"
    if options.augment_on == "auto" and name == "tensorflow":
        cuts_views = str(before["resize"]).endswith("TensorFlow") if before else gpu_in_sight()
    if cuts_views and name != "tensorflow":
        raise EngineError("`augment_on=gpu` needs the TensorFlow engine: `engine=tensorflow`.")
    quantised = place / f"{module.name}.int8" if options.precision == "int8" else None
    return ExtractorSpec(module, name, options.precision, quantised, cuts_views)


def calibration_of(
    running: ExtractorSpec,
    dataset: ImageDataset,
    digests: Sequence[str],
    options: CacheOptions,
) -> dict[str, Attribute]:
    """Attributes of the quantised model that a module is run as, made now if need be; else none.

    Raises:
        CacheError: See `hubretrain.extraction.engines.calibrate`.
        EngineError: Likewise.
    """
    if running.quantised is None:
        return {}
    # All images, also where only a part is cached: every part must come from one model.
    path_of = dict(zip(digests, dataset.images["path"], strict=True))
    size = running.module.image_size

    def first_view(sha256: str) -> Pixels | None:
        try:
            return view(read_image(dataset.root, path_of[sha256]), size)
        except DataError:
            return None

    attributes = calibrate(
        running.module,
        running.quantised,
        digests,
        first_view,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    return {**attributes}
