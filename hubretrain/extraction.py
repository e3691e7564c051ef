"""From files to bottlenecks: threads decode and cut views ahead of the forward passes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubretrain import __version__
from hubretrain.augmentation import Augmentation
from hubretrain.engines import BATCH_SIZE, TensorFlowEngine
from hubretrain.errors import CacheError, DataError, WorkerError
from hubretrain.images import Pixels, decode, view
from hubretrain.modules import StoredModule
from hubretrain.modules.archive import packed, unpacked
from hubretrain.parallel import Cluster, ahead, on_ray


@dataclass(frozen=True)
class Recipe:
    """What the bottlenecks of an image depend on, besides the image.

    Attributes:
        modules: The modules, probed.
        augmentation: How augmented views differ from their image.
        seed: Of the augmentation.
        batch_size: Images a forward pass.
    """

    modules: tuple[StoredModule, ...]
    augmentation: Augmentation
    seed: int
    batch_size: int = BATCH_SIZE


@dataclass(frozen=True)
class Wanted:
    """One image and what is to do of it.

    Attributes:
        row: Its row in the bottleneck files.
        path: Its file.
        sha256: Its content.
        views: The views to compute with each module of the recipe.
        data: The file's bytes, where they were read already.
    """

    row: int
    path: Path
    sha256: str
    views: tuple[tuple[int, ...], ...]
    data: bytes | None = None

    @property
    def n_forward(self) -> int:
        """Forward passes that it takes."""
        return sum(len(views) for views in self.views)


@dataclass(frozen=True)
class Batch:
    """Bottlenecks of one forward pass.

    Attributes:
        module: Index of the module in the recipe.
        rows: The row of each.
        views: The view of each.
        features: float32 of shape (len(rows), n_features), finite.
        seconds: What the forward pass took.
    """

    module: int
    rows: tuple[int, ...]
    views: tuple[int, ...]
    features: npt.NDArray[np.float32]
    seconds: float


@dataclass(frozen=True)
class Undecodable:
    """An image that gives no bottlenecks.

    Attributes:
        wanted: The image.
        reason: Why.
    """

    wanted: Wanted
    reason: str


class Extractor:
    """Holds the modules of a recipe and computes bottlenecks with them.

    Args:
        recipe: The modules and all else that the bottlenecks depend on.
        needed: Which modules to load; by default all.

    Raises:
        ModuleError: A module cannot be loaded.
    """

    def __init__(self, recipe: Recipe, needed: Sequence[bool] | None = None) -> None:
        from hubretrain.modules.backbone import Backbone  # imports TensorFlow

        self.recipe = recipe
        needed = needed or [True] * len(recipe.modules)
        self.engines = [
            TensorFlowEngine(Backbone(module), recipe.batch_size) if asked else None
            for module, asked in zip(recipe.modules, needed, strict=True)
        ]
        self._waiting: list[list[tuple[Wanted, int, Pixels]]] = [[] for _ in recipe.modules]

    def run(self, images: Iterable[Wanted]) -> Iterator[Batch | Undecodable]:
        """Computes what is wanted, batch by batch, in the order of the images.

        Raises:
            CacheError: A module gives NaN or infinite features.
        """
        for wanted, found in ahead(self._views_of, images):
            if isinstance(found, DataError):
                yield Undecodable(wanted, str(found))
                continue
            for m, v, pixels in found:
                self._waiting[m].append((wanted, v, pixels))
                if len(self._waiting[m]) == self.recipe.batch_size:
                    yield self._forward(m)
        for m, waiting in enumerate(self._waiting):
            if waiting:
                yield self._forward(m)

    def _views_of(self, wanted: Wanted) -> list[tuple[int, int, Pixels]] | DataError:
        """Decodes one image and cuts every view that some module wants of it: (module, view, .).

        Every view is cut from the decoded image, never from another view, so that its pixels do
        not depend on which modules travel together.
        """
        try:
            image = decode(wanted.path.read_bytes() if wanted.data is None else wanted.data)
        except OSError as error:
            return DataError(f"cannot be read ({error.strerror})")
        except DataError as error:
            return error
        cut: dict[tuple[int, int], Pixels] = {}
        found = []
        for m, module in enumerate(self.recipe.modules):
            for v in wanted.views[m]:
                key = (v, module.image_size)
                if key not in cut:
                    draw = (
                        self.recipe.augmentation.draw(wanted.sha256, v, self.recipe.seed)
                        if v
                        else None
                    )
                    cut[key] = view(image, module.image_size, draw)
                found.append((m, v, cut[key]))
        return found

    def _forward(self, m: int) -> Batch:
        """Runs the batch that module ``m`` has collected."""
        waiting, self._waiting[m] = self._waiting[m], []
        engine = self.engines[m]
        assert engine is not None, "nothing is wanted of a module that is not needed"
        images, views, pixels = zip(*waiting, strict=True)
        started = time.perf_counter()
        features = engine(list(pixels))
        seconds = time.perf_counter() - started
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise CacheError(
                f"{self.recipe.modules[m].name} gives NaN or infinite features for "
                f"{images[int(np.argmin(finite))].path}; the module does not suit this image or "
                "is damaged."
            )
        return Batch(m, tuple(image.row for image in images), views, features, seconds)


def extract(
    recipe: Recipe,
    images: Iterable[Wanted],
    needed: Sequence[bool],
    cluster: Cluster | None = None,
) -> Iterator[Batch | Undecodable]:
    """Computes what is wanted: in this process, or with workers on Ray, the very same bottlenecks.

    Args:
        recipe: The modules and all else that the bottlenecks depend on.
        images: What to do.
        needed: Of which modules something is wanted.
        cluster: The workers, if not this process alone.

    Yields:
        The results, in any order.

    Raises:
        CacheError: A module gives NaN or infinite features.
        ModuleError: A module cannot be loaded.
        WorkerError: See :func:`hubretrain.parallel.on_ray`.
    """
    if cluster is None:
        yield from Extractor(recipe, needed).run(images)
        return
    archives = [
        packed(m) if asked else b"" for m, asked in zip(recipe.modules, needed, strict=True)
    ]
    make_worker = functools.partial(_worker, recipe, tuple(needed), archives, __version__)
    for found in on_ray(make_worker, _jobs(images, recipe.batch_size), cluster):
        yield from found


def _worker(
    recipe: Recipe, needed: Sequence[bool], archives: Sequence[bytes], version: str
) -> Callable[[list[Wanted]], list[Batch | Undecodable]]:
    """Makes what a worker does: it holds the modules, and decodes and forwards what it is given."""
    if version != __version__:
        raise WorkerError(
            f"a worker runs hubretrain {__version__}, the command {version}; install the same "
            "version on every machine."
        )
    modules = [
        unpacked(module, archive) if asked else module
        for module, archive, asked in zip(recipe.modules, archives, needed, strict=True)
    ]
    extractor = Extractor(replace(recipe, modules=tuple(modules)), needed)
    return lambda images: list(extractor.run(images))


def _jobs(images: Iterable[Wanted], batch_size: int) -> Iterator[list[Wanted]]:
    """Cuts the images into jobs of whole batches, nearly: what is left over is padded."""
    job: list[Wanted] = []
    n_forward = 0
    for wanted, data in ahead(_read, images):
        job.append(replace(wanted, data=data))
        n_forward += max(map(len, wanted.views))
        if n_forward % batch_size == 0 or n_forward >= 8 * batch_size:
            yield job
            job, n_forward = [], 0
    if job:
        yield job


def _read(wanted: Wanted) -> bytes | None:
    """The file's bytes; a worker that gets none tries itself, and says what is wrong."""
    try:
        return wanted.path.read_bytes()
    except OSError:
        return None
