"""The cache stage: every image through every module once, bottlenecks into HDF5.

Each image is decoded once for all its views and all modules. Running the same command again
computes only what is missing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubretrain.bottlenecks import BottleneckWriter, Fact, Rows
from hubretrain.contents import digests_of, folder_of
from hubretrain.dataset import ImageDataset
from hubretrain.engines import BATCH_SIZE, TensorFlowEngine
from hubretrain.errors import CacheError, DataError
from hubretrain.images import Augmentation, decode, view
from hubretrain.modules import StoredModule
from hubretrain.parallel import ahead
from hubretrain.progress import Bar
from hubretrain.quarantine import Quarantine

RESIZE = "bilinear, antialiased, 8-bit, aspect ratio not kept"
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cached:
    """What one module's cache came to.

    Attributes:
        module: The module's name.
        file: Its bottleneck file.
        n_images: Distinct image contents in it.
        n_views: Views of each.
        n_computed: Forward passes of this run.
        n_quarantined: Contents that cannot be decoded.
        seconds: Time that all modules of this run took together.
    """

    module: str
    file: Path
    n_images: int
    n_views: int
    n_computed: int
    n_quarantined: int
    seconds: float


def cache_bottlenecks(
    dataset: ImageDataset,
    modules: Sequence[StoredModule],
    *,
    n_views: int = 4,
    folder: Path = Path("cache"),
    augmentation: Augmentation | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    strict: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> list[Cached]:
    """Brings the bottleneck files of ``modules`` up to date with a data set.

    Args:
        dataset: The images.
        modules: The modules; one that was never loaded is probed first.
        n_views: Views of each image: the image as it is, and ``n_views - 1`` augmented ones.
        folder: The cache.
        augmentation: How the augmented views differ.
        seed: Of the augmentation.
        batch_size: Images a forward pass.
        strict: Raise at the first image that cannot be decoded, instead of quarantining it.
        overwrite: Compute anew what was computed with other settings.
        quiet: Show no progress.

    Returns:
        One summary a module.

    Raises:
        CacheError: See :class:`BottleneckWriter`.
        DataError: ``strict`` and an image cannot be decoded, or none can.
        ModuleError: A module cannot be loaded.
    """
    if not 1 <= n_views <= 1000:
        raise CacheError(f"--views is {n_views}; expected 1 to 1000.")
    started = time.monotonic()
    place = folder_of(dataset, folder)
    quarantine = Quarantine(place / "quarantine.csv")
    rows = _rows(dataset, digests_of(dataset, folder, quiet=quiet), n_views, quarantine)
    augmentation = augmentation or Augmentation()
    modules = [m if m.probed else _probed(m) for m in modules]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                BottleneckWriter(
                    place / f"{module.name}.h5",
                    rows,
                    module.n_features,
                    _facts(module, augmentation, seed),
                    overwrite=overwrite,
                )
            )
            for module in modules
        ]
        n_computed = [0] * len(modules)
        if any(writer.todo.any() for writer in writers):
            filling = _Filling(dataset, rows, modules, writers, augmentation, seed, batch_size)
            n_computed = filling.run(quarantine, strict=strict, quiet=quiet)
        for writer in writers:
            writer.seal()
    seconds = time.monotonic() - started
    return [
        Cached(m.name, w.path, len(rows), n_views, n, len(quarantine.reasons), seconds)
        for m, w, n in zip(modules, writers, n_computed, strict=True)
    ]


class _Filling:
    """The pipeline: files are read, decoded and cut into views by threads; one thread forwards."""

    def __init__(
        self,
        dataset: ImageDataset,
        rows: Rows,
        modules: Sequence[StoredModule],
        writers: Sequence[BottleneckWriter],
        augmentation: Augmentation,
        seed: int,
        batch_size: int,
    ) -> None:
        from hubretrain.modules.backbone import Backbone  # imports TensorFlow

        self.dataset, self.rows, self.writers = dataset, rows, writers
        self.modules, self.augmentation, self.seed = modules, augmentation, seed
        self.engines = [
            TensorFlowEngine(Backbone(module), batch_size) if writer.todo.any() else None
            for module, writer in zip(modules, writers, strict=True)
        ]
        self.batches: list[list[tuple[int, int, Pixels]]] = [[] for _ in modules]
        self.batch_size = batch_size
        self.n_computed = [0] * len(modules)

    def run(self, quarantine: Quarantine, *, strict: bool, quiet: bool) -> list[int]:
        """Computes everything that is to do and returns the forward passes of each module."""
        todo = np.flatnonzero(np.any([w.todo.any(axis=1) for w in self.writers], axis=0))
        total = sum(int(w.todo.sum()) for w in self.writers)
        names = ", ".join(m.name for m, e in zip(self.modules, self.engines, strict=True) if e)
        with Bar(names, total, quiet=quiet) as bar:
            try:
                for row, result in ahead(self._views_of, todo.tolist()):
                    if isinstance(result, DataError):
                        bar.total -= self._quarantine(row, result, quarantine, strict)
                        continue
                    for m, v, pixels in result:
                        self.batches[m].append((v, row, pixels))
                        if len(self.batches[m]) == self.batch_size:
                            bar.advance(self._forward(m))
            finally:
                quarantine.save()
            bar.advance(sum(self._forward(m) for m in range(len(self.modules))))
        if len(quarantine.reasons) == len(self.rows):
            reason = next(iter(quarantine.reasons.values()))
            raise DataError(
                f"{self.dataset.root}: none of its {len(self.rows)} images can be decoded "
                f"(first: {reason})."
            )
        return self.n_computed

    def _views_of(self, row: int) -> list[tuple[int, int, Pixels]] | DataError:
        """Decodes one image and cuts every view that some module still wants of it."""
        sha256, path = self.rows.sha256[row], self.rows.path[row]
        try:
            image = decode((self.dataset.root / path).read_bytes())
        except OSError as error:
            return DataError(f"cannot be read ({error.strerror})")
        except DataError as error:
            return error
        found: dict[tuple[int, int], Pixels] = {}
        views = []
        for m, (module, writer) in enumerate(zip(self.modules, self.writers, strict=True)):
            for v in np.flatnonzero(writer.todo[row]).tolist():
                key = (v, module.image_size)
                if key not in found:
                    draw = self.augmentation.draw(sha256, v, self.seed) if v else None
                    found[key] = view(image, module.image_size, draw)
                views.append((m, v, found[key]))
        return views

    def _forward(self, m: int) -> int:
        """Runs the batch that module ``m`` has collected, stores it, and returns its size."""
        batch, self.batches[m] = self.batches[m], []
        engine = self.engines[m]
        if not batch or engine is None:
            return 0
        features = engine([pixels for _, _, pixels in batch])
        if not np.isfinite(features).all():
            bad = batch[int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])]
            raise CacheError(
                f"{self.modules[m].name} gives NaN or infinite features for "
                f"{self.rows.path[bad[1]]}; the module does not suit this image or is damaged."
            )
        self.writers[m].write([v for v, _, _ in batch], [r for _, r, _ in batch], features)
        self.n_computed[m] += len(batch)
        return len(batch)

    def _quarantine(self, row: int, reason: DataError, quarantine: Quarantine, strict: bool) -> int:
        """Puts a row aside and returns how many forward passes that saves."""
        path = self.rows.path[row]
        if strict:
            raise DataError(
                f"{self.dataset.root / path}: {reason}; mend or remove it, or go on without "
                "--strict, which quarantines it."
            )
        quarantine.add(self.rows.sha256[row], path, str(reason))
        saved = 0
        for writer in self.writers:
            saved += int(writer.todo[row].sum())
            writer.quarantine(row)
        return saved


def _rows(
    dataset: ImageDataset, digests: Sequence[str], n_views: int, quarantine: Quarantine
) -> Rows:
    """A row for each distinct content, in order of path."""
    path_of: dict[str, str] = {}
    for path, sha256 in zip(dataset.images["path"], digests, strict=True):
        path_of.setdefault(sha256, path)
    quarantine.keep(path_of)
    quarantine.save()
    n = [0 if sha256 in quarantine.reasons else n_views for sha256 in path_of]
    return Rows(tuple(path_of.values()), tuple(path_of), np.array(n, dtype=np.int16))


def _probed(module: StoredModule) -> StoredModule:
    from hubretrain.modules.backbone import Backbone

    return Backbone(module).stored


def _facts(module: StoredModule, augmentation: Augmentation, seed: int) -> dict[str, Fact]:
    """What the features depend on, as flat attributes of the bottleneck file."""
    low, high = module.value_range
    return {
        "module": module.name,
        "handle": module.handle,
        "module_sha256": module.sha256,
        "image_size": module.image_size,
        "value_range": f"[{low:g}, {high:g}]",
        "resize": RESIZE,
        **asdict(augmentation),
        "seed": seed,
        "engine": TensorFlowEngine.name,
        "precision": TensorFlowEngine.precision,
    }
