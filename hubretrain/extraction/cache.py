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

from hubretrain.bottlenecks import BottleneckWriter, ForwardPassLog, RowIndex
from hubretrain.data import ImageDataset, Quarantine
from hubretrain.errors import CacheError, DataError
from hubretrain.extraction.options import CacheOptions
from hubretrain.extraction.pipeline import Batch, ImageTask, Recipe, Undecodable, extract
from hubretrain.extraction.plan import (
    Part,
    attributes_of,
    calibration_of,
    extractor_spec,
    file_name,
    rows_of,
)
from hubretrain.extraction.ray import Cluster, extract_on_ray
from hubretrain.modules import StoredModule
from hubretrain.progress import Bar
from hubretrain.storage import located


@dataclass(frozen=True)
class CacheResult:
    """What one module's cache came to.

    Attributes:
        module: The module's name.
        file: Its bottleneck file.
        n_images: Distinct image contents in it.
        n_views: Most views of one.
        n_rows: Bottlenecks in it: views of all images together.
        n_computed: Forward passes of this run.
        n_quarantined: Contents that cannot be decoded.
        quarantine: The table that names them.
        seconds: Time that all modules of this run took together.
    """

    module: str
    file: Path
    n_images: int
    n_views: int
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
    cache: Path = Path("cache"),
    part: Part | None = None,
    cluster: Cluster | None = None,
) -> list[CacheResult]:
    """Bring the bottleneck files of `modules` up to date with a data set.

    Args:
        dataset: The images.
        modules: The modules; one that was never loaded is probed first.
        options: How bottlenecks are computed and stored.
        cache: The cache folder.
        part: Only this share of the images, into a file of its own, to be merged.
        cluster: Workers on Ray to do it; by default this process does.

    Returns:
        One summary a module.

    Raises:
        CacheError: See `BottleneckWriter`; or files could not be read.
        DataError: `options.strict` and an image cannot be decoded, or none can.
        ModuleError: A module cannot be loaded.
        WorkerError: The cluster cannot be used.
    """
    started = time.monotonic()
    names = [module.name for module in modules]
    if twice := {name for name in names if names.count(name) > 1}:
        raise CacheError(
            f"two modules are called {twice.pop()}, which is also the name of the file; name each "
            "module once, or rename a folder."
        )
    place = dataset.cache_folder(cache)
    quarantine = Quarantine(place)
    digests = dataset.digests(cache)
    rows = rows_of(dataset, digests, quarantine, options.n_views, options.minority_views, part)
    modules = [m if m.probed else _probed(m) for m in modules]
    running = [extractor_spec(module, place, part, options) for module in modules]
    calibrations = [calibration_of(spec, dataset, digests, options) for spec in running]
    recipe = Recipe(tuple(running), options.augmentation, options.seed, options.batch_size)
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                BottleneckWriter(
                    place / file_name(one.module.name, part),
                    rows,
                    one.module.n_features,
                    attributes_of(one, options, calibration),
                    overwrite=options.overwrite,
                    dtype=options.dtype,
                )
            )
            for one, calibration in zip(running, calibrations, strict=True)
        ]
        filling = _Filling(dataset, rows, recipe, writers, quarantine, strict=options.strict)
        if any(writer.todo.any() for writer in writers):
            try:
                filling.run(cluster)
            finally:
                filling.note(ForwardPassLog(place))
        for writer in writers:
            writer.seal()
    _refuse_all_broken(dataset, rows, quarantine, strict=options.strict)
    decodable = np.array([sha256 not in quarantine.reasons for sha256 in rows.sha256], dtype=bool)
    seconds = time.monotonic() - started
    return [
        CacheResult(
            module.name,
            writer.path,
            len(rows),
            int(writer.rows.n_views.max(initial=0)),
            int(writer.rows.n_views[decodable].sum()),
            n_computed,
            len(quarantine.reasons),
            quarantine.file,
            seconds,
        )
        for module, writer, n_computed in zip(modules, writers, filling.n_computed, strict=True)
    ]


class _Filling:
    """Feeds what is to do to an extractor and gives what comes back to the writers."""

    def __init__(
        self,
        dataset: ImageDataset,
        rows: RowIndex,
        recipe: Recipe,
        writers: Sequence[BottleneckWriter],
        quarantine: Quarantine,
        *,
        strict: bool,
    ) -> None:
        self.dataset, self.rows, self.recipe = dataset, rows, recipe
        self.writers, self.quarantine, self.strict = writers, quarantine, strict
        self.needed = [bool(writer.todo.any()) for writer in writers]
        self.unread: list[Undecodable] = []
        self.n_computed = [0] * len(writers)
        self.seconds = 0.0
        self.busy = [0.0] * len(writers)

    def run(self, cluster: Cluster | None) -> None:
        """Computes everything that is to do."""
        total = sum(int(writer.todo.sum()) for writer in self.writers)
        named = zip(self.recipe.running, self.needed, strict=True)
        names = ", ".join(one.module.name for one, needed in named if needed)
        with Bar(names, total) as bar:
            arguments = self.recipe, self._wanted(), self.needed
            results = extract_on_ray(*arguments, cluster) if cluster else extract(*arguments)
            for found in results:
                if isinstance(found, Batch):
                    self._write(found)
                    bar.advance(len(found.rows))
                else:
                    bar.total -= found.wanted.n_forward
                    self._leave_out(found)
        if self.unread:
            first = self.unread[0]
            raise CacheError(
                f"{len(self.unread)} images could not be read, the first {first.wanted.place}: "
                f"{first.reason}; fix that and rerun the command: what is finished is kept."
            )

    def note(self, passes: ForwardPassLog) -> None:
        """Notes what each module cost: its share of the time in which any of them computed."""
        shares = shared(self.seconds, self.busy)
        for one, n, seconds in zip(self.recipe.running, self.n_computed, shares, strict=True):
            if n:
                passes.add(one.module.name, one.engine, one.precision, n, seconds)

    def _wanted(self) -> Iterator[ImageTask]:
        for row in np.flatnonzero(np.any([w.todo.any(axis=1) for w in self.writers], axis=0)):
            views = tuple(tuple(np.flatnonzero(w.todo[row]).tolist()) for w in self.writers)
            place = located(self.dataset.root, self.rows.path[row])
            yield ImageTask(int(row), place, self.rows.sha256[row], views)

    def _write(self, batch: Batch) -> None:
        self.writers[batch.module].write(batch.views, batch.rows, batch.features)
        self.n_computed[batch.module] += len(batch.rows)
        self.seconds += batch.seconds
        self.busy[batch.module] += batch.busy

    def _leave_out(self, found: Undecodable) -> None:
        if found.unread:
            self.unread.append(found)
            return
        if self.strict:
            raise DataError(
                f"{found.wanted.place}: {found.reason}; repair or remove it, or go on without "
                "`strict`, which quarantines it."
            )
        row = found.wanted.row
        self.quarantine.add(found.wanted.sha256, self.rows.path[row], found.reason)
        self.quarantine.save()  # at once: the file alone does not say why a row is empty
        for writer in self.writers:
            writer.quarantine(row)


def shared(seconds: float, busy: Sequence[float]) -> list[float]:
    """Return the share of each module in the time in which any of them computed.

    Args:
        seconds: The time to share, s.
        busy: Time that each module's forward passes took, s; passes that run at a time count
            twice, so the sum may be larger than `seconds`.
    """
    total = sum(busy)
    return [seconds * each / total if total else 0.0 for each in busy]


def _refuse_all_broken(
    dataset: ImageDataset, rows: RowIndex, quarantine: Quarantine, *, strict: bool
) -> None:
    """Raises if no image can be decoded, or if one cannot where that is not suffered."""
    broken = [row for row, sha256 in enumerate(rows.sha256) if sha256 in quarantine.reasons]
    if not broken:
        return
    path, reason = rows.path[broken[0]], quarantine.reasons[rows.sha256[broken[0]]]
    if len(broken) == len(rows):
        raise DataError(
            f"{dataset.root}: none of its {len(rows)} images can be decoded (first: {reason})."
        )
    if strict:
        raise DataError(
            f"{located(dataset.root, path)}: {reason}; repair or remove it, or go on without "
            "`strict`, which quarantines it."
        )


def _probed(module: StoredModule) -> StoredModule:
    from hubretrain.modules import Backbone

    return Backbone(module).stored
