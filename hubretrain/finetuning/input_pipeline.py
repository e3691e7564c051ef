"""Batches for training: which images, in which order, and what the model is given of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.data.images import Augmentation, read_image, view
from hubretrain.errors import DataError, RunError
from hubretrain.parallel import ahead
from hubretrain.storage import located

Pixels = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int64]
FIRST_EPOCH_VIEW = 1_000  # views of the cache are numbered below, those of epochs from here
_VIEWS_AN_AGAIN = 1_000_000  # an image that an epoch shows again is drawn anew


@dataclass(frozen=True)
class TrainingImages:
    """Some images of a data set, with what training needs of each.

    Attributes:
        root: The folder that paths are relative to.
        paths: The image files.
        sha256s: Their contents.
        labels: int64 of shape (n_images,), class indices.
        weights: float32 of shape (n_images,), the weight of each image in the loss.
    """

    root: Path
    paths: Sequence[str]
    sha256s: Sequence[str]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> bytes:
        """A digest of the contents and labels, in their order."""
        table = "\n".join(f"{s} {c}" for s, c in zip(self.sha256s, self.labels, strict=True))
        return hashlib.sha256(table.encode()).digest()


def shuffled(n_images: int, seed: int, epoch: int) -> Index:
    """The order of an epoch: each image once."""
    return np.random.default_rng([seed, epoch]).permutation(n_images).astype(np.int64)


def balanced(labels: npt.NDArray[np.int64], seed: int, epoch: int) -> Index:
    """The order of an epoch that shows every class equally often, in as many images as there are.

    Within a class each image comes as often as any other, to one.

    Args:
        labels: int64 of shape (n_images,).
        seed: Any integer.
        epoch: Each has an order of its own.
    """
    random = np.random.default_rng([seed, epoch, 1])
    classes = np.unique(labels)
    share, rest = divmod(len(labels), len(classes))
    more = set(random.permutation(classes)[:rest].tolist())
    chosen = []
    for c in classes.tolist():
        members = np.flatnonzero(labels == c)
        n = share + (c in more)
        rounds = [random.permutation(members) for _ in range(-(-n // len(members)))]
        chosen.append(np.concatenate([*rounds, members[:0]])[:n])
    return random.permutation(np.concatenate(chosen)).astype(np.int64)


def agains(order: Index) -> Index:
    """How often each place's image came before in the order: 0, 1, ..."""
    places = np.argsort(order, kind="stable")
    ordered = order[places]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    counts = np.diff(np.r_[starts, len(ordered)])
    found = np.empty(len(order), dtype=np.int64)
    found[places] = np.arange(len(ordered)) - np.repeat(starts, counts)
    return found


@dataclass(frozen=True)
class PixelSource:
    """Gives a model pixels, decoded and cut by threads ahead of their use.

    Attributes:
        size: Height and width, pixels.
        augmentation: How an epoch's view of an image differs from it.
        seed: Of the augmentation.
    """

    size: int
    augmentation: Augmentation
    seed: int

    def one(self, images: TrainingImages, i: int, view_number: int) -> Pixels:
        """One view of one image: uint8 of shape (size, size, 3); view 0 is the image as it is.

        Raises:
            RunError: The image cannot be read or decoded.
        """
        draw = None
        if view_number:
            draw = self.augmentation.draw(images.sha256s[i], view_number, self.seed)
        try:
            image = read_image(images.root, images.paths[i])
        except DataError as error:
            raise RunError(
                f"{located(images.root, images.paths[i])}: {error}; restore the file and rerun the "
                "command to resume from the last checkpoint."
            ) from error
        return view(image, self.size, draw)

    def batches(
        self, images: TrainingImages, batches: Sequence[Index], views: Sequence[Index]
    ) -> Iterator[npt.NDArray[Any]]:
        """Pixels of each batch: uint8 of shape (n_images, size, size, 3).

        Args:
            images: Where from.
            batches: The images of each batch.
            views: The view of each image.
        """
        wanted = [
            (int(i), int(v))
            for batch, numbers in zip(batches, views, strict=True)
            for i, v in zip(batch, numbers, strict=True)
        ]
        n_ahead = 2 * max((len(batch) for batch in batches), default=1)

        def pixels_of(item: tuple[int, int]) -> Pixels:
            return self.one(images, *item)

        found = ahead(pixels_of, wanted, n_ahead)
        for batch in batches:
            pixels = [next(found)[1] for _ in range(len(batch))]
            yield np.stack(pixels) if pixels else np.zeros((0, self.size, self.size, 3), np.uint8)


def epoch_views(order: Index, epoch: int) -> Index:
    """The number of the view that an epoch shows at each place of its order."""
    return FIRST_EPOCH_VIEW + epoch + _VIEWS_AN_AGAIN * agains(order)


def split(order: Index, batch_size: int) -> list[Index]:
    """An order in batches; the last may be smaller."""
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
