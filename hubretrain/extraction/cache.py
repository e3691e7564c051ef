"""The cache stage: every image through every module once, bottlenecks into HDF5.

Each image is decoded once for all its views and all modules. Running the same command again
computes only what is missing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hubretrain.bottlenecks import BottleneckWriter, ForwardPassLog
from hubretrain.data import ImageDataset, forget_digests
from hubretrain.errors import CacheError, DataError
from hubretrain.extraction.options import CacheOptions
from hubretrain.extraction.pipeline import Batch, ImageTask, SkippedImage, extract
from hubretrain.extraction.plan import CachePlan, Part, Slice, plan_cache, slice_file
from hubretrain.extraction.ray import Cluster, extract_on_ray
from hubretrain.files import StrPath
from hubretrain.modules import StoredModule
from hubretrain.progress import Bar
from hubretrain.storage import located


@dataclass(frozen=True)
class CacheResult:
    """Summary of one module's cache after a run.

    Attributes:
        module: The module's name.
        file: Its bottleneck file.
        n_images: Number of distinct image contents in it.
        n_views: Most views of an image.
        layers: Names of the inner layers whose features it holds beside the module's own output.
        n_features: Length of a feature vector of all layers.
        n_rows: Number of bottlenecks in it: views of all images together.
        n_computed: Number of forward passes of this run.
        n_quarantined: Number of contents that cannot be decoded.
        quarantine: The table that names them.
        seconds: Time that all modules of this run took together.
    """

    module: str
    file: Path
    n_images: int
    n_views: int
    layers: tuple[str, ...]
    n_features: int
    n_rows: int
    n_computed: int
    n_quarantined: int
    quarantine: Path
    seconds: float


def cache_bottlenecks(
    dataset: ImageDataset,
    modules: Sequence[StoredModule],
    options: CacheOptions = CacheOptions(),
    *,
    cache: StrPath = "cache",
    part: Part | Slice | None = None,
    cluster: Cluster | None = None,
) -> list[CacheResult]:
    """Bring the bottleneck files of `modules` up to date with a data set.

    Args:
        dataset: The images.
        modules: The modules; one that was never loaded is probed first.
        options: How bottlenecks are computed and stored.
        cache: The cache folder.
        part: The share of the images to compute, into a file of its own, to be merged; or a slice
            of them, from whose file a later call for all images goes on. By default all images.
        cluster: Worker processes on Ray; by default everything is computed in this process.

    Returns:
        One summary per module.

    Raises:
        CacheError: See `BottleneckWriter`; or files could not be read.
        DataError: `options.strict` and an image cannot be decoded, or none can.
        EngineError: An engine cannot run its module.
        ModuleError: A module cannot be loaded.
        WorkerError: The cluster cannot be used.

    Examples:
        >>> from hubretrain import CacheOptions, cache_bottlenecks, open_dataset, resolve
        >>> dataset = open_dataset("data/digits")
        >>> modules = [resolve("modules/small")]
        >>> (result,) = cache_bottlenecks(dataset, modules, CacheOptions(n_views=2))
        >>> result.file.as_posix(), result.n_images, result.n_views
        ('cache/digits/small.h5', 120, 2)
    """
    started = time.monotonic()
    plan = plan_cache(dataset, modules, options, Path(cache), part)
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                BottleneckWriter(
                    file,
                    plan.rows,
                    spec.module.n_features,
                    attributes,
                    overwrite=options.overwrite,
                    dtype=options.dtype,
                    layers=spec.segments,
                    begin_with=slice_file(plan.folder, spec.module.name) if part is None else None,
                )
            )
            for file, spec, attributes in zip(
                plan.files, plan.recipe.extractors, plan.attributes, strict=True
            )
        ]
        run = _Run(plan, writers, strict=options.strict)
        if any(writer.todo.any() for writer in writers):
            try:
                run.compute(cluster)
            finally:
                run.log_costs(ForwardPassLog(plan.folder))
        for writer in writers:
            writer.seal()
    if part is None:
        for module in modules:
            slice_file(plan.folder, module.name).unlink(missing_ok=True)  # all of it is in the file
    _check_decodable(plan, strict=options.strict)
    return run.results(time.monotonic() - started)


class _Run:
    """One run: feeds what is to do to the extractors and what they give to the writers."""

    def __init__(
        self, plan: CachePlan, writers: Sequence[BottleneckWriter], *, strict: bool
    ) -> None:
        self.plan, self.writers, self.strict = plan, writers, strict
        self.unread: list[SkippedImage] = []
        self.n_computed = [0] * len(writers)
        self.seconds = 0.0
        self.busy_seconds = [0.0] * len(writers)

    def compute(self, cluster: Cluster | None) -> None:
        """Compute everything that is to do.

        Raises:
            CacheError: Some files could not be read; what could be is computed.
        """
        recipe, tasks = self.plan.recipe, self._tasks()
        needed = [bool(writer.todo.any()) for writer in self.writers]
        extractors = zip(recipe.extractors, needed, strict=True)
        names = ", ".join(spec.module.name for spec, is_needed in extractors if is_needed)
        with Bar(names, sum(int(writer.todo.sum()) for writer in self.writers)) as bar:
            for result in (
                extract_on_ray(recipe, tasks, needed, cluster)
                if cluster
                else extract(recipe, tasks, needed)
            ):
                if isinstance(result, Batch):
                    self._write(result)
                    bar.advance(len(result.rows))
                else:
                    bar.total -= result.task.n_forward
                    self._skip(result)
        if self.unread:
            # Perhaps it is not the file that changed, but the digest that was kept of it.
            unread_paths = [self.plan.rows.path[image.task.row] for image in self.unread]
            forget_digests(self.plan.quarantine.file.parent, unread_paths)
            first = self.unread[0]
            raise CacheError(
                f"{len(self.unread)} images could not be read, the first {first.task.path}: "
                f"{first.reason}; fix that and rerun the command: completed work is kept."
            )

    def log_costs(self, log: ForwardPassLog) -> None:
        """Log what each module cost."""
        seconds = shared_seconds(self.seconds, self.busy_seconds)
        extractors = self.plan.recipe.extractors
        for spec, n_forward, share in zip(extractors, self.n_computed, seconds, strict=True):
            if n_forward:
                log.add(spec.module.name, spec.engine, spec.precision, n_forward, share)

    def results(self, seconds: float) -> list[CacheResult]:
        """Return one summary per module."""
        rows, quarantine = self.plan.rows, self.plan.quarantine
        decodable = np.array([sha256 not in quarantine.reasons for sha256 in rows.sha256], bool)
        return [
            CacheResult(
                module=spec.module.name,
                file=writer.path,
                n_images=len(rows),
                n_views=int(writer.rows.n_views.max(initial=0)),
                layers=spec.layers,
                n_features=writer.segments[-1].stop,
                n_rows=int(writer.rows.n_views[decodable].sum()),
                n_computed=n_computed,
                n_quarantined=len(quarantine.reasons),
                quarantine=quarantine.file,
                seconds=seconds,
            )
            for spec, writer, n_computed in zip(
                self.plan.recipe.extractors, self.writers, self.n_computed, strict=True
            )
        ]

    def _tasks(self) -> Iterator[ImageTask]:
        rows = self.plan.rows
        for row in np.flatnonzero(np.any([w.todo.any(axis=1) for w in self.writers], axis=0)):
            views = tuple(tuple(np.flatnonzero(w.todo[row]).tolist()) for w in self.writers)
            path = located(self.plan.root, rows.path[row])
            yield ImageTask(int(row), path, rows.sha256[row], views)

    def _write(self, batch: Batch) -> None:
        self.writers[batch.module].write(batch.views, batch.rows, batch.features)
        self.n_computed[batch.module] += len(batch.rows)
        self.seconds += batch.seconds
        self.busy_seconds[batch.module] += batch.busy_seconds

    def _skip(self, image: SkippedImage) -> None:
        """Quarantine an image that cannot be decoded; note one whose file could not be read."""
        if image.unread:
            self.unread.append(image)
            return
        if self.strict:
            raise _undecodable(image.task.path, image.reason)
        row, quarantine = image.task.row, self.plan.quarantine
        quarantine.add(image.task.sha256, self.plan.rows.path[row], image.reason)
        quarantine.save()  # at once: the bottleneck file does not say why a row is empty
        for writer in self.writers:
            writer.quarantine(row)


def shared_seconds(seconds: float, busy_seconds: Sequence[float]) -> list[float]:
    """Return the share of each module in the time in which any of them computed.

    Batches of several modules are in flight at once, so the clock alone would charge each for
    all; the time that its own forward passes took says which share is its own.

    Args:
        seconds: The time to share.
        busy_seconds: Time that each module's forward passes took; passes that run at a time count
            twice, so the sum may be larger than `seconds`.
    """
    total = sum(busy_seconds)
    return [seconds * busy / total if total else 0.0 for busy in busy_seconds]


def _check_decodable(plan: CachePlan, *, strict: bool) -> None:
    """Raise if no image can be decoded, or with `strict` if one cannot."""
    rows, reasons = plan.rows, plan.quarantine.reasons
    undecodable = [row for row, sha256 in enumerate(rows.sha256) if sha256 in reasons]
    if not undecodable:
        return
    path, reason = rows.path[undecodable[0]], reasons[rows.sha256[undecodable[0]]]
    if len(undecodable) == len(rows):
        raise DataError(
            f"{plan.root}: none of its {len(rows)} images can be decoded (first: {reason})."
        )
    if strict:
        raise _undecodable(located(plan.root, path), reason)


def _undecodable(path: str, reason: str) -> DataError:
    return DataError(
        f"{path}: {reason}; fix or remove it, or rerun without `strict`, which quarantines it."
    )
