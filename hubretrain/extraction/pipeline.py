"""From files to bottlenecks: threads decode and cut views ahead of the forward passes."""

from __future__ import annotations

import collections
import functools
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.data.images import (
    Augmentation,
    UnreadableImageError,
    decode,
    read_image_bytes,
    view,
)
from hubretrain.errors import CacheError, DataError
from hubretrain.extraction.engines import open_engine
from hubretrain.modules import StoredModule
from hubretrain.parallel import ahead


@dataclass(frozen=True)
class ExtractorSpec:
    """One module and how it is run.

    Attributes:
        module: The module, probed.
        engine: `tensorflow` or `openvino`.
        precision: `f32`, `bf16` or `int8`.
        quantised: The folder of the quantised model, for `int8`.
        cuts_views: Whether the engine cuts the views, in batches, from whole images.
    """

    module: StoredModule
    engine: str = "tensorflow"
    precision: str = "f32"
    quantised: Path | None = None
    cuts_views: bool = False


@dataclass(frozen=True)
class Recipe:
    """What the bottlenecks of an image depend on, besides the image.

    Attributes:
        running: The modules, and what runs them.
        augmentation: How augmented views differ from their image.
        seed: Of the augmentation.
        batch_size: Images a forward pass; by default what each engine does best with.
    """

    running: tuple[ExtractorSpec, ...]
    augmentation: Augmentation
    seed: int
    batch_size: int | None = None


@dataclass(frozen=True)
class ImageTask:
    """One image and what is to do of it.

    Attributes:
        row: Its row in the bottleneck files.
        place: Its file or URL.
        sha256: Its content.
        views: The views to compute with each module of the recipe.
        data: The file's bytes, where they were read already.
    """

    row: int
    place: str
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
        seconds: Time that it adds to that in which some module had a batch in flight.
        busy: Time that its module's forward passes took since its last batch, summed over
            those that ran at a time; beside other modules, all of them slow each other down.
    """

    module: int
    rows: tuple[int, ...]
    views: tuple[int, ...]
    features: npt.NDArray[np.float32]
    seconds: float
    busy: float


@dataclass(frozen=True)
class Undecodable:
    """An image that gives no bottlenecks.

    Attributes:
        wanted: The image.
        reason: Why.
        unread: Whether its file could not be read, now; else its content is no image, for good.
    """

    wanted: ImageTask
    reason: str
    unread: bool = False


class Extractor:
    """Holds the modules of a recipe and computes bottlenecks with them.

    Args:
        recipe: The modules and all else that the bottlenecks depend on.
        needed: Which modules to load.

    Raises:
        EngineError: An engine cannot run its module.
        ModuleError: A module cannot be loaded.
    """

    def __init__(self, recipe: Recipe, needed: Sequence[bool]) -> None:
        self.recipe = recipe
        clock = Stopwatch()
        self._streams = [
            _Stream(m, running, recipe.batch_size, clock) if asked else None
            for m, (running, asked) in enumerate(zip(recipe.running, needed, strict=True))
        ]

    def run(self, images: Iterable[ImageTask]) -> Iterator[Batch | Undecodable]:
        """Computes what is wanted, batch by batch, nearly in the order of the images.

        Raises:
            CacheError: A module gives NaN or infinite features.
            EngineError: An engine fails.
        """
        for wanted, found in ahead(self._views_of, images):
            if isinstance(found, Undecodable):
                yield found
                continue
            for m, v, pixels in found:
                stream = self._streams[m]
                assert stream is not None, "nothing is wanted of a module that is not needed"
                yield from stream.add(wanted, v, pixels)
        for last in self._streams:
            if last is not None:
                yield from last.finish()

    def close(self) -> None:
        """Waits for what is being computed."""
        for stream in self._streams:
            if stream is not None:
                stream.engine.close()

    def _views_of(self, wanted: ImageTask) -> list[tuple[int, int, Any]] | Undecodable:
        """Decodes one image and cuts every view that some module wants of it: (module, view, .).

        Every view is cut from the decoded image, never from another view, so that its pixels do
        not depend on which modules travel together.
        """
        try:
            data = read_image_bytes(Path(), wanted.place) if wanted.data is None else wanted.data
            if hashlib.sha256(data).hexdigest() != wanted.sha256:
                return Undecodable(wanted, "was changed after the run began", unread=True)
            image = decode(data)
        except UnreadableImageError as error:
            return Undecodable(wanted, str(error), unread=True)
        except DataError as error:
            return Undecodable(wanted, str(error))
        draw_of = functools.partial(
            self.recipe.augmentation.draw, wanted.sha256, seed=self.recipe.seed
        )
        cut: dict[tuple[int, int], Any] = {}
        found = []
        for m, running in enumerate(self.recipe.running):
            for v in wanted.views[m]:
                key = (v, 0 if running.cuts_views else running.module.image_size)
                if key not in cut:
                    draw = draw_of(view=v) if v else None
                    cut[key] = (
                        (np.asarray(image), draw)
                        if running.cuts_views
                        else view(image, running.module.image_size, draw)
                    )
                found.append((m, v, cut[key]))
        return found


class _Stream:
    """One module's views on their way through its engine, in batches."""

    def __init__(
        self, m: int, running: ExtractorSpec, batch_size: int | None, clock: Stopwatch
    ) -> None:
        self.m, self.name, self._clock = m, running.module.name, clock
        self.engine = open_engine(
            running.module,
            running.engine,
            running.precision,
            batch_size,
            running.quantised,
            cuts_views=running.cuts_views,
        )
        self._waiting: list[tuple[ImageTask, int, Any]] = []
        self._flying: collections.deque[_Flight] = collections.deque()
        self._busy = 0.0

    def add(self, wanted: ImageTask, view: int, pixels: Any) -> Iterator[Batch]:
        """Takes one view; yields the batches that are done, where the engine has enough."""
        self._waiting.append((wanted, view, pixels))
        if len(self._waiting) == self.engine.batch_size:
            self._start()
            while len(self._flying) >= self.engine.n_ahead:
                yield self._landed()

    def finish(self) -> Iterator[Batch]:
        """Yields all that is left."""
        if self._waiting:
            self._start()
        while self._flying:
            yield self._landed()

    def _start(self) -> None:
        images, views, pixels = zip(*self._waiting, strict=True)
        self._waiting = []
        future = self.engine.submit(pixels)
        self._flying.append(_Flight(images, views, future, time.perf_counter()))

    def _landed(self) -> Batch:
        flight = self._flying.popleft()
        features = flight.features.result()
        seconds = self._clock.count(flight.started, time.perf_counter())
        busy, self._busy = self.engine.busy - self._busy, self.engine.busy
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise CacheError(
                f"{self.name} gives NaN or infinite features for "
                f"{flight.images[int(np.argmin(finite))].place}; the module does not suit this "
                "image or is damaged."
            )
        rows = tuple(image.row for image in flight.images)
        return Batch(self.m, rows, flight.views, features, seconds, busy)


class Stopwatch:
    """Counts the time in which batches of any module are in flight, none of it twice."""

    def __init__(self) -> None:
        self._counted_to = 0.0

    def count(self, started: float, ended: float) -> float:
        """Return the seconds from `started` to `ended` that were not counted yet."""
        counted_to, self._counted_to = self._counted_to, ended
        return ended - max(started, counted_to)


@dataclass(frozen=True)
class _Flight:
    """A batch that an engine is computing."""

    images: tuple[ImageTask, ...]
    views: tuple[int, ...]
    features: Future[npt.NDArray[np.float32]]
    started: float


def extract(
    recipe: Recipe, images: Iterable[ImageTask], needed: Sequence[bool]
) -> Iterator[Batch | Undecodable]:
    """Compute bottlenecks in this process.

    Args:
        recipe: The modules and all else that the bottlenecks depend on.
        images: The images and the views to compute.
        needed: Whether each module of the recipe has a view to compute.

    Yields:
        The results, in any order.

    Raises:
        CacheError: A module gives NaN or infinite features.
        EngineError: An engine cannot run its module.
        ModuleError: A module cannot be loaded.
    """
    extractor = Extractor(recipe, needed)
    try:
        yield from extractor.run(images)
    finally:
        extractor.close()
