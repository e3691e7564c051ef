"""Exact and near duplicates: copies re-encoded, resized, slightly cropped, turned or brightened.

Exact duplicates have the same sha256. Near duplicates pass three filters: `sketches` gives each
image the few that look most like it; those are aligned on thumbnails (`alignment`); then both
files are opened again and what both show is compared pixel by pixel, up to one gain and one offset
of the brightness. Only pixels decide: two photographs of one mole, or two scans of one slide,
correlate as well as a recompressed copy does, but differ by more grey levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy.ndimage import uniform_filter

from hubretrain.arrays import AnyArray, BoolArray, Float32Array, IntArray
from hubretrain.data.images import UnreadableImageError
from hubretrain.data.near_duplicates.alignment import IDENTITY, align, compose, correlation, windows
from hubretrain.data.near_duplicates.sketches import (
    BATCH,
    Pairs,
    Progress,
    Source,
    candidate_pairs,
    open_image,
    sketch_images,
)
from hubretrain.errors import DataError

PIXELS = 64  # per side, of the windows that are compared
MIN_THUMBNAIL_CORRELATION = 0.98
MIN_DETAIL_CORRELATION = 0.92  # details: some 1 to 5 % of the image large
# Root mean square over sixteenths of the image, grey levels of 255. On HAM10000 copies recompressed
# at JPEG quality 60, at half the size too, are within 0.3 levels of lightness and 0.9 of colour; of
# the pairs of photographs of one lesion that get so far, four are within 0.5, and those are one
# picture.
MAX_LIGHTNESS_ERROR = 0.45
MAX_COLOUR_ERROR = 1.5
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue: ITU-R BT.601, as JPEG
MAX_GAIN = 2.0  # ratio of brightness between copies
DARK_END, BRIGHT_END = 4, 246  # ends of the range of levels, blurred by resizing
MIN_INNER = 0.05  # share of the blocks that are within the range


@dataclass(frozen=True)
class Duplicates:
    """The duplicates among images.

    Attributes:
        pairs: Columns `a`, `b` (int, rows of the images, a < b), `kind` (`exact` or `near`),
            `similarity` (correlation of the details, 0.92 to 1; 1 if exact) and, where features
            were given, `cosine` (of the features, -1 to 1). Sorted by a, b. Of n exact duplicates
            the n - 1 pairs with the first are listed, and only the first is searched for near
            ones.
        unreadable: Why an image cannot be read, by its row.
        unread: Rows of those whose file cannot be read now; of the others the content is broken.
    """

    pairs: pd.DataFrame
    unreadable: dict[int, str]
    unread: frozenset[int] = frozenset()


def find_duplicates(
    images: Sequence[Source],
    sha256s: Sequence[str],
    *,
    features: npt.NDArray[np.floating] | None = None,
    known: BoolArray | None = None,
    progress: Progress | None = None,
    workers: int = 2,
) -> Duplicates:
    """Find exact and near duplicates among images.

    Near duplicates are copies re-encoded, resized, cropped by up to some 10 % at a side, mirrored,
    turned by quarters, darkened, or brightened as long as most detail is left, and combinations.
    Another photograph of the same thing is none, nor is an image without texture. Where an image
    has more than some 20 copies, not each pair is found, but enough to join them all.

    Time: reading and comparing grow with n; the search for neighbours, a tenth of it at 9,000
    images, about as n^1.5. Memory: some 6 KB per image.

    Args:
        images: A path or an encoded file's bytes for each image, of length n_images.
        sha256s: Digest of each file; blank where unknown.
        features: Bottlenecks of shape (n_images, n_features): pairs with a high cosine similarity
            are compared too. Pixels decide all the same.
        known: Whether each image was searched before, bool of shape (n_images,): near pairs of
            two such images are left out.
        progress: Called with the name of the step, the number done, and the number of all.
        workers: Number of threads, at least 1.

    Returns:
        The pairs, and the images that could not be read.

    Raises:
        UnreadableImageError: A file that was read cannot be read once more.
    """
    exact = _exact_pairs(sha256s)
    distinct = np.setdiff1d(np.arange(len(images)), exact[:, 1])
    with ThreadPoolExecutor(workers) as pool:
        sketches, unreadable = sketch_images(pool, images, sha256s, distinct, progress)
        old = np.zeros(len(sketches.rows), bool) if known is None else known[sketches.rows]
        pairs = candidate_pairs(sketches, features, old, workers)
        pairs = _filter(pool, partial(_fit_thumbnails, sketches.grey), pairs, BATCH)
        sources = [(images[row], sha256s[row]) for row in sketches.rows]
        pairs = _filter(pool, partial(_compare_pixels, sources), pairs, BATCH // 8, progress)
    near = np.sort(sketches.rows[pairs.images], axis=1)
    table = pd.DataFrame(np.concatenate([exact, near]), columns=["a", "b"])
    table["kind"] = ["exact"] * len(exact) + ["near"] * len(near)
    table["similarity"] = np.concatenate([np.ones(len(exact)), pairs.similarity.astype(float)])
    if features is not None:
        table["cosine"] = _cosine(features, table["a"].to_numpy(), table["b"].to_numpy())
    reasons = {
        row: str(why) if isinstance(why, DataError) else f"{type(why).__name__}: {why}"
        for row, why in unreadable.items()
    }
    unread = frozenset(r for r, why in unreadable.items() if isinstance(why, UnreadableImageError))
    return Duplicates(table.sort_values(["a", "b"], ignore_index=True), reasons, unread)


def _filter(
    pool: ThreadPoolExecutor,
    passing: Callable[[Pairs], Pairs],
    pairs: Pairs,
    size: int,
    progress: Progress | None = None,
) -> Pairs:
    """Return the pairs that pass, found in batches of `size`."""
    n = len(pairs.images)
    batches = [pairs[first : first + size] for first in range(0, n, size)]
    left = [pairs[:0]]
    for batch in pool.map(passing, batches):
        left.append(batch)
        if progress is not None:
            progress("comparing pairs", min(size * (len(left) - 1), n), n)
    return Pairs(
        np.concatenate([batch.images for batch in left]),
        np.concatenate([batch.turn for batch in left]),
        np.concatenate([batch.placement for batch in left]),
        np.concatenate([batch.similarity for batch in left]),
    )


def _exact_pairs(sha256s: Sequence[str]) -> IntArray:
    first: dict[str, int] = {}
    pairs = [
        (first[sha256], row)
        for row, sha256 in enumerate(sha256s)
        if sha256 and first.setdefault(sha256, row) != row
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _cosine(features: npt.NDArray[np.floating[Any]], a: IntArray, b: IntArray) -> Float32Array:
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.asarray((unit[a] * unit[b]).sum(axis=1), np.float32)


# -- the second and the third filter: thumbnails, then pixels -----------------------------------


def _fit_thumbnails(grey: npt.NDArray[np.float16], pairs: Pairs) -> Pairs:
    """Return pairs whose thumbnails are nearly the same where they overlap, with placements."""
    for steps in (2, 6):  # most pairs fail after two steps; the few that stay are placed better
        a = grey[pairs.images[:, 0]].astype(np.float32)
        b = _turn(grey[pairs.images[:, 1]].astype(np.float32), pairs.turn)
        placement = align(a, b, pairs.placement, steps)
        similarity = correlation(a, b, placement)
        pairs = replace(pairs, placement=placement, similarity=similarity)
        pairs = pairs[similarity >= MIN_THUMBNAIL_CORRELATION]
    return pairs


def _turn(images: Float32Array, turn: IntArray) -> Float32Array:
    """Turn images, each by its turn as in `Pairs`."""
    images = images.copy()
    images[turn & 1 > 0] = images[turn & 1 > 0][:, :, ::-1]
    images[turn & 2 > 0] = images[turn & 2 > 0][:, ::-1]
    images[turn & 4 > 0] = images[turn & 4 > 0].swapaxes(1, 2)
    return images


def _opened(source: Source, sha256: str) -> Image.Image:
    """Return an image that was read before; one that cannot be read once more is named."""
    try:
        return open_image(source, sha256)
    except UnreadableImageError as error:
        name = "An image" if isinstance(source, bytes) else source
        raise UnreadableImageError(f"{name}: {error}; run the same command again.") from error


def _compare_pixels(sources: Sequence[tuple[Source, str]], pairs: Pairs) -> Pairs:
    """Return pairs that show the same pixels where they overlap, up to brightness and compression.

    A pair that fails is aligned again on its details, twice, unless these are too different.
    """
    opened = [
        (_opened(*sources[a]), _turned(_opened(*sources[b]), turn))
        for (a, b), turn in zip(pairs.images, pairs.turn, strict=True)
    ]
    similarity = np.zeros(len(opened), np.float32)
    placement = pairs.placement.copy()
    open_rows = np.arange(len(opened))
    for hopeless in (0.5, 0.9, 1.0):  # correlation of details below which a pair is given up
        of_a, of_b = windows(placement[open_rows])
        a = _cut([opened[row][0] for row in open_rows], of_a)
        b = _cut([opened[row][1] for row in open_rows], of_b)
        details, lightness, colour = _compare(a, b)
        same = details >= MIN_DETAIL_CORRELATION
        same &= (lightness <= MAX_LIGHTNESS_ERROR) & (colour <= MAX_COLOUR_ERROR)
        similarity[open_rows[same]] = details[same]
        left = ~same & (details >= hopeless)
        open_rows, a, b = open_rows[left], a[left], b[left]
        inner = align(_details(a), _details(b), np.tile(IDENTITY, (len(a), 1)), steps=5)
        placement[open_rows] = compose(placement[open_rows], inner)
    return replace(pairs, placement=placement, similarity=similarity)[similarity > 0]


def _turned(image: Image.Image, turn: int) -> Image.Image:
    """Turn one image, as `_turn` does."""
    for bit, method in (
        (1, Image.Transpose.FLIP_LEFT_RIGHT),
        (2, Image.Transpose.FLIP_TOP_BOTTOM),
        (4, Image.Transpose.TRANSPOSE),
    ):
        if turn & bit:
            image = image.transpose(method)
    return image


def _cut(images: list[Image.Image], of_images: Float32Array) -> Float32Array:
    """Return windows of images, float32 (n, 64, 64, 3), 0 to 255."""
    cut = np.empty((len(images), PIXELS, PIXELS, 3), np.float32)
    for i, (image, window) in enumerate(zip(images, of_images, strict=True)):
        box = (window * np.tile(image.size, 2)).tolist()
        cut[i] = np.asarray(image.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS, box=box))
    return cut


def _details(images: Float32Array) -> Float32Array:
    """Return the difference of two blurs of the lightness: neither noise nor shading."""
    lightness = images.mean(axis=-1)
    return uniform_filter(lightness, (0, 3, 3)) - uniform_filter(lightness, (0, 9, 9))


def _compare(a: Float32Array, b: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Compare windows, float32 (n, 64, 64, 3), 0 to 255, up to a gain and an offset.

    Both directions are tried, a explained by b and b by a, and the better one counts: a copy that
    was brightened has lost detail at the bright end, so only the original explains the copy.

    Returns:
        Correlation of the details, and the errors of lightness and colour in grey levels, each of
        shape (n,).
    """
    # Brightening cuts off detail at an end of the range: only blocks without such pixels count.
    within = (np.minimum(a, b) > DARK_END) & (np.maximum(a, b) < BRIGHT_END)
    inner = np.asarray(_blocks(within, 4).all(axis=(2, 4)))
    a_blocks, b_blocks = (_blocks(images, 4).mean(axis=(2, 4)) for images in (a, b))
    details = np.full(len(a), -1, np.float32)
    errors = np.full((2, len(a)), np.inf, np.float32)  # of lightness and colour
    for x, y, x_blocks, y_blocks in ((a, b, a_blocks, b_blocks), (b, a, b_blocks, a_blocks)):
        gain, offset = _brightness(x_blocks, y_blocks, inner)
        expected = np.clip(gain * x + offset, 0, 255)
        details = np.maximum(details, _same_details(_details(expected), _details(y)))
        residual = y_blocks - gain * x_blocks - offset
        gain = np.maximum(gain.ravel(), 1e-6)
        lightness = _levels(residual, inner * LUMA, together=True)
        colour = _levels(residual, inner.astype(np.float32), together=False)
        # Deep colours have a channel at an end of the range in both images. Without that channel
        # an error of colour would count as one of lightness, so all blocks are tried too.
        residual = y_blocks - _blocks(expected, 4).mean(axis=(2, 4))
        all_blocks = _levels(residual, np.ones_like(residual) * LUMA, together=True)
        lightness = np.minimum(lightness, all_blocks)
        plausible = np.abs(np.log(gain)) <= np.log(MAX_GAIN)
        # A gain above 1 enlarges the errors of compression too.
        scaled = np.stack([lightness, colour]) / np.maximum(gain, 1)
        errors = np.minimum(errors, np.where(plausible, scaled, np.inf))
    errors[:, inner.mean(axis=(1, 2, 3)) < MIN_INNER] = np.inf
    return details, errors[0], errors[1]


def _levels(residual: Float32Array, weights: Float32Array, *, together: bool) -> Float32Array:
    """Return the root mean square over sixteenths of the image, in grey levels, of shape (n,).

    Errors of compression have both signs, so over a sixteenth they cancel out; another
    photograph differs there. Compression keeps colour at half the size, so it errs more in colour
    than in lightness.

    Args:
        residual: Differences of blocks, float32 (n, 16, 16, 3).
        weights: Weight of each.
        together: Average over the channels too, before squaring: the lightness.
    """
    axes = (2, 4, 5) if together else (2, 4)
    total = _blocks(residual * weights, 4).sum(axis=axes)
    weight = np.maximum(_blocks(weights, 4).sum(axis=axes), 1e-6)
    rest = tuple(range(1, total.ndim))
    return np.asarray(np.sqrt((total**2 / weight).sum(axis=rest) / weight.sum(axis=rest)))


def _same_details(x: Float32Array, y: Float32Array) -> Float32Array:
    """Return Pearson's correlation, as if both had one grey level of detail more in common.

    So a clear sky, whose details are all noise, is the same as its copy.
    """
    axes = (1, 2)
    x, y = x - x.mean(axis=axes, keepdims=True), y - y.mean(axis=axes, keepdims=True)
    spread = ((x**2).mean(axis=axes) + 1) * ((y**2).mean(axis=axes) + 1)
    return np.asarray(((x * y).mean(axis=axes) + 1) / np.sqrt(spread))


def _blocks(images: AnyArray, size: int) -> AnyArray:
    """Return (n, height, width, 3) in square blocks, of which axes 2 and 4 count the pixels."""
    n, height, width, _ = images.shape
    return images.reshape(n, height // size, size, width // size, size, 3)


def _brightness(
    x: Float32Array, y: Float32Array, inner: BoolArray
) -> tuple[Float32Array, Float32Array]:
    """Return the gain and the offset that take x to y, by least squares over inner blocks."""
    axes = (1, 2, 3)
    weight = inner / np.maximum(inner.sum(axis=axes, keepdims=True), 1).astype(np.float32)
    x_mean = (x * weight).sum(axis=axes, keepdims=True)
    y_mean = (y * weight).sum(axis=axes, keepdims=True)
    spread = ((x - x_mean) ** 2 * weight).sum(axis=axes, keepdims=True)
    gain = ((x - x_mean) * y * weight).sum(axis=axes, keepdims=True) / (spread + 1e-6)
    return gain, y_mean - gain * x_mean
