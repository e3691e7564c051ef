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

from hubretrain.arrays import Float32Array
from hubretrain.data.images import UnreadableImageError, decode, read_image_bytes, view
from hubretrain.errors import CacheError, DataError
from hubretrain.extraction.engines import open_engine
from hubretrain.extraction.plan import ExtractorSpec, Recipe
from hubretrain.parallel import ahead


@dataclass(frozen=True)
class ImageTask:
    """One image and the views of it to compute.

    Attributes:
        row: Its row in the bottleneck files.
        path: Its file or URL.
        sha256: Its content.
        views: The views to compute with each module of the recipe.
        data: The file's bytes, where they were read already.
    """

    row: int
    path: str
    sha256: str
    views: tuple[tuple[int, ...], ...]
    data: bytes | None = None

    @property
    def n_forward(self) -> int:
        """Number of forward passes that it takes."""
        return sum(len(views) for views in self.views)


@dataclass(frozen=True)
class Batch:
    """Bottlenecks of one forward pass.

    Attributes:
        module: Index of the module in the recipe.
        rows: The row of each.
        views: The view of each.
        features: Whole vectors, the module's own output and then its inner layers: float32 of
            shape (len(rows), n_features), finite.
        seconds: Time that it adds to that in which some module had a batch in flight.
        busy_seconds: Time that its module's forward passes took since its last batch, summed over
            those that ran at a time; beside other modules, all of them slow each other down.
    """

    module: int
    rows: tuple[int, ...]
    views: tuple[int, ...]
    features: Float32Array
    seconds: float
    busy_seconds: float


@dataclass(frozen=True)
class SkippedImage:
    """An image that gives no bottlenecks.

    Attributes:
        task: The image.
        reason: Why it gives none.
        unread: Whether its file could not be read now; else its content cannot be decoded, ever.
    """

    task: ImageTask
    reason: str
    unread: bool = False


class Extractor:
    """The modules of a recipe, loaded, to compute bottlenecks with.

    Args:
        recipe: The modules and all else that the bottlenecks depend on.
        needed: Whether each module of the recipe is to be loaded.

    Raises:
        EngineError: An engine cannot run its module.
        ModuleError: A module cannot be loaded.
    """

    def __init__(self, recipe: Recipe, needed: Sequence[bool]) -> None:
        self.recipe = recipe
        stopwatch = Stopwatch()
        self._streams = [
            _Stream(m, spec, recipe.batch_size, stopwatch) if is_needed else None
            for m, (spec, is_needed) in enumerate(zip(recipe.extractors, needed, strict=True))
        ]

    def run(self, images: Iterable[ImageTask]) -> Iterator[Batch | SkippedImage]:
        """Compute the views of the images, batch by batch, nearly in the order of the images.

        Raises:
            CacheError: A module gives NaN or infinite features.
            EngineError: An engine fails.
        """
        for image, views in ahead(self._cut_views, images):
            if isinstance(views, SkippedImage):
                yield views
                continue
            for m, v, pixels in views:
                stream = self._streams[m]
                assert stream is not None, "no view is to be computed with a module not needed"
                yield from stream.add(image, v, pixels)
        for stream in self._streams:
            if stream is not None:
                yield from stream.finish()

    def close(self) -> None:
        """Wait for what is being computed."""
        for stream in self._streams:
            if stream is not None:
                stream.engine.close()

    def _cut_views(self, image: ImageTask) -> list[tuple[int, int, Any]] | SkippedImage:
        """Decode one image and cut the views of it: (module, view, pixels).

        Every view is cut from the decoded image, never from another view, so that its pixels do
        not depend on which modules are cached together.
        """
        try:
            return self._cut(image)
        except MemoryError:  # of now, not of the image
            return SkippedImage(image, "there is not enough memory for it", unread=True)

    def _cut(self, image: ImageTask) -> list[tuple[int, int, Any]] | SkippedImage:
        try:
            data = read_image_bytes(Path(), image.path) if image.data is None else image.data
            if hashlib.sha256(data).hexdigest() != image.sha256:
                return SkippedImage(image, "was changed after the run began", unread=True)
            whole = decode(data, self.recipe.reading)
        except UnreadableImageError as error:
            return SkippedImage(image, str(error), unread=True)
        except DataError as error:
            return SkippedImage(image, str(error))
        draw_of = functools.partial(
            self.recipe.augmentation.draw, image.sha256, seed=self.recipe.seed
        )
        pixels_of: dict[tuple[int, int], Any] = {}  # modules of one size share views
        views = []
        for m, spec in enumerate(self.recipe.extractors):
            for v in image.views[m]:
                key = (v, 0 if spec.cuts_views else spec.module.image_size)
                if key not in pixels_of:
                    draw = draw_of(view=v) if v else None
                    pixels_of[key] = (
                        (np.asarray(whole), draw)
                        if spec.cuts_views
                        else view(whole, spec.module.image_size, draw)
                    )
                views.append((m, v, pixels_of[key]))
        return views


class _Stream:
    """One module's views on their way through its engine, in batches."""

    def __init__(
        self, m: int, spec: ExtractorSpec, batch_size: int | None, stopwatch: Stopwatch
    ) -> None:
        self.m, self.spec, self._stopwatch = m, spec, stopwatch
        self.engine = open_engine(
            spec.module,
            spec.engine,
            spec.precision,
            batch_size,
            spec.quantised,
            cuts_views=spec.cuts_views,
            layers=spec.layers,
        )
        self._waiting: list[tuple[ImageTask, int, Any]] = []
        self._in_flight: collections.deque[_Flight] = collections.deque()
        self._busy_seconds = 0.0

    def add(self, image: ImageTask, view: int, pixels: Any) -> Iterator[Batch]:
        """Take one view; yield the batches that are done, where the engine has enough."""
        self._waiting.append((image, view, pixels))
        if len(self._waiting) == self.engine.batch_size:
            self._submit()
            while len(self._in_flight) >= self.engine.n_ahead:
                yield self._next_batch()

    def finish(self) -> Iterator[Batch]:
        """Yield all batches that are left."""
        if self._waiting:
            self._submit()
        while self._in_flight:
            yield self._next_batch()

    def _submit(self) -> None:
        images, views, pixels = zip(*self._waiting, strict=True)
        self._waiting = []
        future = self.engine.submit(pixels)
        self._in_flight.append(_Flight(images, views, future, time.perf_counter()))

    def _next_batch(self) -> Batch:
        """Wait for the oldest batch in flight."""
        flight = self._in_flight.popleft()
        features = flight.features.result()
        seconds = self._stopwatch.count(flight.started, time.perf_counter())
        busy_seconds = self.engine.busy_seconds - self._busy_seconds
        self._busy_seconds += busy_seconds
        if not np.isfinite(features).all():
            raise self._not_finite(flight, features)
        rows = tuple(image.row for image in flight.images)
        return Batch(self.m, rows, flight.views, features, seconds, busy_seconds)

    def _not_finite(self, flight: _Flight, features: Float32Array) -> CacheError:
        row, column = np.argwhere(~np.isfinite(features))[0].tolist()
        inner = [s.layer for s in self.spec.segments if s.first <= column < s.stop]
        where = f"in layer {inner[0]} " if inner else ""
        return CacheError(
            f"{self.spec.module.name} gives NaN or infinite features {where}for "
            f"{flight.images[row].path}; the module does not suit this image or is damaged."
        )


class Stopwatch:
    """Counter of the time in which batches of any module are in flight, none of it twice."""

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
    features: Future[Float32Array]
    started: float


def extract(
    recipe: Recipe, images: Iterable[ImageTask], needed: Sequence[bool]
) -> Iterator[Batch | SkippedImage]:
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
