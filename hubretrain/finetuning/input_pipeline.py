"""Batches for training: which images, in which order, and their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from hubretrain.arrays import AnyArray, BoolArray, Float32Array, IntArray, Pixels
from hubretrain.data.images import MAX_BITS, Augmentation, Reading, read_image, view
from hubretrain.errors import DataError, RunError
from hubretrain.heads import Head, weights_by_class
from hubretrain.parallel import ahead
from hubretrain.storage import located

EVALUATION_BATCH_SIZE = 48
# Views of the bottleneck cache have lower numbers, so an epoch never repeats one of them.
FIRST_EPOCH_VIEW = 1_000
# An image that an epoch shows more than once gets another view each time.
_VIEWS_PER_REPETITION = 1_000_000


@dataclass(frozen=True)
class TrainingImages:
    """Some images of a data set, with what training needs of each.

    Attributes:
        root: Folder that the paths are relative to.
        paths: Paths of the image files.
        sha256s: SHA-256 of each image's content.
        labels: int64 of shape (n_images,), class indices; where images may have several labels bool
            of shape (n_images, n_classes).
        weights: float32 of shape (n_images, 1), weight of each image in the loss; or of shape
            (n_images, n_classes), of each class-against-the-rest decision about it.
        reading: How image files are read.
    """

    root: Path
    paths: Sequence[str]
    sha256s: Sequence[str]
    labels: AnyArray
    weights: Float32Array
    reading: Reading = Reading()

    def __len__(self) -> int:
        return len(self.paths)

    def first(self, n: int) -> TrainingImages:
        """Return the first images, at most n."""
        return replace(
            self,
            paths=self.paths[:n],
            sha256s=self.sha256s[:n],
            labels=self.labels[:n],
            weights=self.weights[:n],
        )

    def digest(self) -> bytes:
        """Return the SHA-256 of contents, as they are read, and labels in their order."""
        bits = f"{self.reading.bits} bits" if self.reading.bits < MAX_BITS else ""
        labels = [
            "".join("01"[has] for has in row) if self.labels.ndim > 1 else str(row)
            for row in self.labels.tolist()
        ]
        table = bits + "\n".join(f"{s} {c}" for s, c in zip(self.sha256s, labels, strict=True))
        return hashlib.sha256(table.encode()).digest()


def loss_weights(head: Head, labels: IntArray, *, is_balanced: bool = False) -> Float32Array:
    """Return the weights of the loss that a head was fitted with.

    Args:
        head: The head that training starts from.
        labels: int64 of shape (n_images,), of the images that are trained on.
        is_balanced: Weigh all classes alike instead, whatever the head did.

    Returns:
        float32 of shape (n_problems, n_classes): of images by their class, in each problem: one,
        or of a logistic head each class against the rest.
    """
    mass = np.bincount(labels, minlength=len(head.bias))[None].astype(np.float64)
    of_fit = "balanced" if head.class_weight == "balanced" else head.weight_of_class.tolist()
    class_weight, kind = ("balanced", "softmax") if is_balanced else (of_fit, head.kind)
    table = weights_by_class(class_weight, mass, "logistic" if kind == "logistic" else "softmax")
    return np.asarray(table[0], np.float32)


def label_weights(head: Head, labels: BoolArray) -> Float32Array:
    """Return the weights of the loss that a head of several labels per image was fitted with.

    Args:
        head: The head that training starts from.
        labels: bool of shape (n_images, n_labels), of the images that are trained on.

    Returns:
        float32 of shape (2, n_labels): of images without and with each label. With `balanced` they
        weigh alike.
    """
    if head.class_weight != "balanced":
        return np.stack([np.ones(len(head.bias)), head.weight_of_class]).astype(np.float32)
    n_with = labels.sum(axis=0, dtype=np.float64)
    counts = np.stack([len(labels) - n_with, n_with])
    return (len(labels) / (2 * np.maximum(counts, 1))).astype(np.float32)


class InputSource(Protocol):
    """Gives the model its inputs: pixels, or activations of its frozen part."""

    def epoch_views(self, order: IntArray, epoch: int, /) -> IntArray:
        """Return the number of the view that an epoch shows at each position of its order."""

    def fill(self, views: IntArray, /) -> None:
        """Compute what batches of these views need and what takes a progress bar of its own."""

    def batches(
        self, images: TrainingImages, batches: Sequence[IntArray], views: Sequence[IntArray], /
    ) -> Iterator[AnyArray | tuple[AnyArray, ...]]:
        """Yield the inputs of each batch; view 0 is the unaugmented image."""


def epoch_order(images: TrainingImages, seed: int, epoch: int, *, is_balanced: bool) -> IntArray:
    """Return the order in which an epoch shows the images.

    Args:
        images: Images to train on.
        seed: Random seed of the orders.
        epoch: Number of the epoch; each has an order of its own.
        is_balanced: Show every class equally often, instead of every image once.
    """
    if is_balanced:
        return balanced(images.labels, seed, epoch)
    return shuffled(len(images), seed, epoch)


def shuffled(n_images: int, seed: int, epoch: int) -> IntArray:
    """Return an order that shows each image once."""
    return np.random.default_rng([seed, epoch]).permutation(n_images).astype(np.int64)


def balanced(labels: IntArray, seed: int, epoch: int) -> IntArray:
    """Return an order of as many images that shows every class equally often, give or take one.

    Images of one class come equally often, give or take one.

    Args:
        labels: int64 of shape (n_images,), class indices.
        seed: Random seed of the orders.
        epoch: Number of the epoch; each has an order of its own.
    """
    random = np.random.default_rng([seed, epoch, 1])
    classes = np.unique(labels)
    share, rest = divmod(len(labels), len(classes))
    one_more = set(random.permutation(classes)[:rest].tolist())
    chosen = []
    for c in classes.tolist():
        members = np.flatnonzero(labels == c)
        n = share + (c in one_more)
        n_rounds = -(-n // len(members))  # rounded up
        rounds = [random.permutation(members) for _ in range(n_rounds)]
        chosen.append(np.concatenate([*rounds, members[:0]])[:n])
    return random.permutation(np.concatenate(chosen)).astype(np.int64)


def repetitions(order: IntArray) -> IntArray:
    """Return how often the image at each position came before in the order: 0, 1, ..."""
    positions = np.argsort(order, kind="stable")  # equal images in a run, in their order
    ordered = order[positions]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    counts = np.empty(len(order), dtype=np.int64)
    counts[positions] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return counts


@dataclass(frozen=True)
class PixelSource:
    """Gives the model pixels; threads decode and cut them before they are needed.

    Attributes:
        size: Height and width, pixels.
        augmentation: How an epoch's view of an image differs from the image.
        seed: Random seed of the augmentation.
    """

    size: int
    augmentation: Augmentation
    seed: int

    def read(self, images: TrainingImages, i: int, view_number: int) -> Pixels:
        """Return one view of one image: uint8 (size, size, 3); view 0 is not augmented.

        Raises:
            RunError: The image cannot be read or decoded, or its bytes have changed.
        """
        draw = None
        if view_number:
            draw = self.augmentation.draw(images.sha256s[i], view_number, self.seed)
        try:
            image = read_image(images.root, images.paths[i], images.sha256s[i], images.reading)
        except DataError as error:
            raise RunError(
                f"{located(images.root, images.paths[i])}: {error}; restore the file and rerun the "
                "command to resume from the last checkpoint."
            ) from error
        return view(image, self.size, draw)

    def epoch_views(self, order: IntArray, epoch: int) -> IntArray:
        """Return the number of the view that an epoch shows at each position of its order."""
        return FIRST_EPOCH_VIEW + epoch + _VIEWS_PER_REPETITION * repetitions(order)

    def fill(self, views: IntArray) -> None:
        """Do nothing: pixels are read when a batch needs them."""

    def batches(
        self, images: TrainingImages, batches: Sequence[IntArray], views: Sequence[IntArray]
    ) -> Iterator[AnyArray]:
        """Yield the pixels of each batch: uint8 of shape (n_images, size, size, 3).

        Args:
            images: Images to read from.
            batches: Indices of the images of each batch.
            views: Number of the view of each image.
        """
        items = [
            (int(i), int(number))
            for batch, numbers in zip(batches, views, strict=True)
            for i, number in zip(batch, numbers, strict=True)
        ]
        n_ahead = 2 * max((len(batch) for batch in batches), default=1)

        def pixels_of(item: tuple[int, int]) -> Pixels:
            return self.read(images, *item)

        results = ahead(pixels_of, items, n_ahead)
        for batch in batches:
            pixels = [next(results)[1] for _ in range(len(batch))]
            yield np.stack(pixels) if pixels else np.zeros((0, self.size, self.size, 3), np.uint8)


def split(order: IntArray, batch_size: int) -> list[IntArray]:
    """Return an order in batches; the last may be smaller."""
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
