"""What one run of the cache stage computes, with what, and the files that take it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pandas as pd

from hubretrain.arrays import Pixels
from hubretrain.bottlenecks import Attribute, Bottlenecks, RowIndex, Segment, layer_segments
from hubretrain.data import ImageDataset, Quarantine, labels_of
from hubretrain.data.images import (
    MAX_BITS,
    RESIZER,
    Augmentation,
    Reading,
    UnreadableImageError,
    read_image,
    view,
)
from hubretrain.errors import CacheError, DataError, EngineError
from hubretrain.extraction.engines import (
    BATCH_SIZE,
    OPENVINO_BATCH_SIZE,
    calibrate,
    choose_engine,
    gpu_in_sight,
)
from hubretrain.extraction.options import CacheOptions
from hubretrain.modules import StoredModule, choose_layers
from hubretrain.modules.onnx import probed
from hubretrain.storage import located

RESIZE = "bilinear, antialiased, 8-bit, aspect ratio not kept"
PARTS = "parts"  # the folder of parts, in the data set's folder
SLICES = "slices"  # that of slices


@dataclass(frozen=True)
class Part:
    """One of several shares of a data set, each cached on a machine of its own.

    Which images are in it depends on their contents alone.

    Attributes:
        number: Number of the part, from 1.
        n_parts: Number of parts of the data set.
    """

    number: int
    n_parts: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part that a text such as `3/16` names.

        Raises:
            CacheError: It names none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise CacheError(
                f"`part` is {text!r}; expected a number and how many parts there are, such as 3/16."
            )
        return cls(int(match[1]), int(match[2]))

    def holds(self, sha256: str) -> bool:
        """Return whether a content belongs to it."""
        return int(sha256[:15], 16) % self.n_parts == self.number - 1


@dataclass(frozen=True)
class Slice:
    """Some images of a data set, cached in a file of their own before the others, perhaps.

    `hubretrain cache` takes from that file what holds.

    Attributes:
        contents: Contents of the images.
    """

    contents: frozenset[str]

    def holds(self, sha256: str) -> bool:
        """Return whether a content belongs to it."""
        return sha256 in self.contents


@dataclass(frozen=True)
class ExtractorSpec:
    """One module and how it is run.

    Attributes:
        module: The module, probed.
        engine: `tensorflow` or `openvino`.
        precision: `f32`, `bf16` or `int8`.
        quantised: The folder of the quantised model, for `int8`.
        cuts_views: Whether the engine cuts the views, in batches, from whole images.
        layers: Names of the inner layers whose features follow the module's own output.
        layers_requested: What they were chosen by: `all`, `last` or a number, as the file says it.
    """

    module: StoredModule
    engine: str = "tensorflow"
    precision: str = "f32"
    quantised: Path | None = None
    cuts_views: bool = False
    layers: tuple[str, ...] = ()
    layers_requested: str | int = "last"

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Segments of the inner layers in a feature vector."""
        point_of = {point.name: point for point in self.module.layer_points or ()}
        points = [astuple(point_of[name]) for name in self.layers]
        return layer_segments(self.module.n_features, points)


@dataclass(frozen=True)
class Recipe:
    """What the bottlenecks of an image depend on, besides the image.

    Attributes:
        extractors: The modules, and how each is run.
        augmentation: How augmented views differ from their image.
        seed: Random seed of the augmentation.
        batch_size: Images per forward pass; by default what each engine does best with.
        reading: How image files are read.
    """

    extractors: tuple[ExtractorSpec, ...]
    augmentation: Augmentation
    seed: int
    batch_size: int | None = None
    reading: Reading = Reading()


@dataclass(frozen=True)
class CachePlan:
    """What one run computes, with what, and the files that take it.

    Attributes:
        root: Root of the images; see `hubretrain.storage.located`.
        folder: The data set's folder in the cache.
        rows: The rows of every bottleneck file.
        recipe: The modules and all else that the bottlenecks depend on.
        files: The bottleneck file of each module of the recipe.
        attributes: The root attributes of each of these files.
        quarantine: What cannot be decoded.
    """

    root: Path
    folder: Path
    rows: RowIndex
    recipe: Recipe
    files: tuple[Path, ...]
    attributes: tuple[dict[str, Attribute], ...]
    quarantine: Quarantine


def plan_cache(
    dataset: ImageDataset,
    modules: Sequence[StoredModule],
    options: CacheOptions,
    cache: Path,
    part: Part | Slice | None = None,
) -> CachePlan:
    """Plan a run, from the data set and from the files that the cache holds.

    Probes modules that were never loaded, and calibrates those that are run as int8.

    Raises:
        CacheError: Two modules have one name, or a file cannot be read.
        EngineError: An engine is not installed, or cannot compute what the options ask for.
        ModuleError: A module cannot be loaded.
    """
    names = [module.name for module in modules]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise CacheError(
            f"two modules are called {duplicates.pop()}, which is also the name of the file; name "
            "each module once, or rename a folder."
        )
    folder = dataset.cache_folder(cache)
    quarantine = Quarantine(folder)
    digests = dataset.digests(cache)
    rows = wanted_rows(dataset, digests, quarantine, options.n_views, options.minority_views, part)
    files = tuple(folder / file_name(name, part) for name in names)
    specs = tuple(
        _extractor_spec(probed(module), folder, file, options)
        for module, file in zip(modules, files, strict=True)
    )
    calibrations = [_calibration(spec, dataset, digests, options) for spec in specs]
    recipe = Recipe(specs, options.augmentation, options.seed, options.batch_size, dataset.reading)
    attributes = tuple(
        attributes_of(spec, recipe, calibration)
        for spec, calibration in zip(specs, calibrations, strict=True)
    )
    return CachePlan(dataset.root, folder, rows, recipe, files, attributes, quarantine)


def wanted_rows(
    dataset: ImageDataset,
    digests: Sequence[str],
    quarantine: Quarantine,
    n_views: int,
    minority_views: int | None = None,
    part: Part | Slice | None = None,
) -> RowIndex:
    """Return a row for each distinct content, in order of path.

    Args:
        dataset: The images.
        digests: The sha256 of each image.
        quarantine: What cannot be decoded; brought up to date with the data set and saved.
        n_views: Views per image of the largest class.
        minority_views: Views per image of the rarest class, at most; by default `n_views`. An image
            with several labels gets those of its rarest label.
        part: The part to which the contents must belong; by default all of them.

    Raises:
        CacheError: See `views_by_class`.
    """
    of_image = labels_of(dataset.images["label"], dataset.multi_label)
    labels = pd.Series([label for names in of_image for label in names])
    views_of_class = views_by_class(labels, n_views, minority_views or n_views)
    path_of: dict[str, str] = {}
    views_of: dict[str, int] = {}
    for path, names, sha256 in zip(dataset.images["path"], of_image, digests, strict=True):
        path_of.setdefault(sha256, path)
        views = max((views_of_class[label] for label in names), default=n_views)
        views_of[sha256] = max(views_of.get(sha256, 0), views)
    quarantine.keep(path_of, dataset.reading.max_pixels)
    quarantine.save()
    kept = [sha256 for sha256 in path_of if part is None or part.holds(sha256)]
    n = [0 if sha256 in quarantine.reasons else views_of[sha256] for sha256 in kept]
    paths = tuple(path_of[sha256] for sha256 in kept)
    return RowIndex(paths, tuple(kept), np.array(n, dtype=np.int16))


def views_by_class(labels: pd.Series, n_views: int, minority_views: int) -> dict[str, int]:
    """Return how many views the images of each class get: rarer classes more, smoothly.

    A class that is r times as rare as the largest gets `n_views * r**a` views per image, with the
    a in [0, 1] for which the rarest class comes to `minority_views`; as a is at most 1, no class
    gets more rows than the largest has, but for rounding.

    Args:
        labels: The class of each image.
        n_views: Views per image of the largest class.
        minority_views: Views per image of the rarest class, at most.

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
    # n_views * r**a = minority_views at the largest r, solved for a.
    log_rarest = math.log(rarity.max())
    exponent = min(1.0, math.log(minority_views / n_views) / log_rarest) if log_rarest else 0.0
    views = (n_views * rarity**exponent).round().astype(int)
    return {str(name): int(n) for name, n in views.items()}


def file_name(module: str, part: Part | Slice | None = None) -> str:
    """Return where a module's bottleneck file, or one part of it, is in the data set's folder."""
    if part is None:
        return f"{module}.h5"
    if isinstance(part, Slice):
        return f"{SLICES}/{module}.h5"
    return f"{PARTS}/{module}.{part.number}-of-{part.n_parts}.h5"


def slice_file(folder: Path, module: str) -> Path:
    """Return the bottleneck file of a module's `Slice`, in the data set's folder of the cache."""
    return folder / SLICES / f"{module}.h5"


def attributes_of(
    spec: ExtractorSpec, recipe: Recipe, calibration: Mapping[str, Attribute] | None = None
) -> dict[str, Attribute]:
    """Return what the features of a module depend on, as attributes of its bottleneck file.

    The batch size is one of them only if the last bits of features depend on it: not if it is the
    engine's own, nor with TensorFlow on a CPU if it is a multiple of 48 (see `TensorFlowEngine`).
    """
    module = spec.module
    default = BATCH_SIZE if spec.engine == "tensorflow" else OPENVINO_BATCH_SIZE
    size = recipe.batch_size or default
    size_matters = size % default != 0 if spec.engine == "tensorflow" else size != default
    low, high = module.value_range
    costs = {"n_parameters": module.n_parameters, "gflops": module.gflops}
    return {
        "module": module.name,
        "handle": module.handle,
        "module_sha256": module.sha256,
        "image_size": module.image_size,
        "value_range": f"[{low:g}, {high:g}]",
        **{name: cost for name, cost in costs.items() if cost is not None},
        **({"bits": recipe.reading.bits} if recipe.reading.bits < MAX_BITS else {}),
        "resize": f"{RESIZE}, {'TensorFlow' if spec.cuts_views else RESIZER}",
        **asdict(recipe.augmentation),
        "seed": recipe.seed,
        "engine": spec.engine,
        "precision": spec.precision,
        **({"batch_size": size} if size_matters else {}),
        **({"layers": spec.layers_requested} if spec.layers_requested != "last" else {}),
        **(calibration or {}),
    }


def _extractor_spec(
    module: StoredModule, folder: Path, file: Path, options: CacheOptions
) -> ExtractorSpec:
    """Return how a module is run: as its file was computed, where the options leave that open.

    Args:
        module: The module, probed.
        folder: The data set's folder in the cache.
        file: The module's bottleneck file, which may exist.
        options: The options.

    Raises:
        EngineError: See `hubretrain.extraction.engines.choose_engine`.
    """
    cached, cached_layers = _cached(file, options)
    requested, layers = _required_layers(
        module, options.layers, cached.get("layers"), cached_layers
    )
    same_precision = cached.get("precision") == options.precision
    engine = choose_engine(
        options.engine,
        options.precision,
        module=module,
        layers=layers,
        cached=str(cached["engine"]) if same_precision else None,
    )
    cuts_views = options.augment_on == "gpu"
    if options.augment_on == "auto" and engine == "tensorflow":
        cuts_views = str(cached["resize"]).endswith("TensorFlow") if cached else gpu_in_sight()
    if cuts_views and engine != "tensorflow":
        raise EngineError("`augment_on=gpu` needs the TensorFlow engine: `engine=tensorflow`.")
    quantised = folder / f"{module.name}.int8" if options.precision == "int8" else None
    return ExtractorSpec(
        module, engine, options.precision, quantised, cuts_views, layers, requested
    )


def _cached(file: Path, options: CacheOptions) -> tuple[dict[str, Attribute], tuple[str, ...]]:
    """Return the attributes and inner layers of a file that is to be continued, else none."""
    if not file.exists() or options.overwrite:
        return {}, ()
    with Bottlenecks(file) as bottlenecks:
        return bottlenecks.attributes, bottlenecks.layers


def _required_layers(
    module: StoredModule,
    requested: str | int,
    cached_request: Attribute | None,
    cached_layers: tuple[str, ...],
) -> tuple[str | int, tuple[str, ...]]:
    """Return which inner layers a file is to hold: what they are chosen by, and their names.

    A file keeps the layers that it has where only the last is requested, and its own words where
    others lead to the same layers.

    Args:
        module: The module, probed.
        requested: The option.
        cached_request: What the layers of the file were chosen by; None where they never were.
        cached_layers: The inner layers of the file.
    """

    def chosen(by: str | int) -> tuple[str, ...]:
        choice = cast('Literal["all", "last"] | int', by)  # CacheOptions has checked it
        points = choose_layers(
            module.layer_points or (), choice, module.n_features, module.image_size
        )
        return tuple(point.name for point in points)

    if requested == "last" and not cached_layers and isinstance(cached_request, str | int):
        return cached_request, ()  # layers were asked for, and the module had none then
    if isinstance(cached_request, str | int) and (
        requested == "last" or chosen(requested) == cached_layers
    ):
        requested = cached_request
    return requested, chosen(requested)


def _calibration(
    spec: ExtractorSpec, dataset: ImageDataset, digests: Sequence[str], options: CacheOptions
) -> dict[str, Attribute]:
    """Return the attributes of the quantised model that a module is run as; none unless int8.

    The model is made now if need be, on a sample of all images, also where only a part is cached:
    every part must come from one model.

    Raises:
        CacheError: See `hubretrain.extraction.engines.calibrate`.
        EngineError: Likewise.
    """
    if spec.quantised is None:
        return {}
    path_of = dict(zip(digests, dataset.images["path"], strict=True))
    size = spec.module.image_size

    def first_view(sha256: str) -> Pixels | None:
        path = path_of[sha256]
        try:
            return view(read_image(dataset.root, path, sha256, dataset.reading), size)
        except UnreadableImageError as error:
            # Another sample would be another model, because of a failure of the moment.
            raise CacheError(
                f"{located(dataset.root, path)}: {error}; fix that and rerun the command."
            ) from error
        except DataError:
            return None

    return {
        **calibrate(
            spec.module,
            spec.quantised,
            digests,
            first_view,
            seed=options.seed,
            overwrite=options.overwrite,
            layers=spec.layers,
        )
    }
