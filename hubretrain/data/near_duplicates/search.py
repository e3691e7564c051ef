"""Exact and near duplicates: copies re-encoded, resized, slightly cropped, turned or brightened.

Exact duplicates have the same sha256. Near duplicates pass three sieves: `sketches` gives each
image the few that look most like it; those are aligned on thumbnails (`alignment`); then both
files are opened again and what both show is compared pixel by pixel, up to one gain and one offset
of the brightness. It takes pixels: two photographs of one mole, or two scans of one slide,
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

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

PIXELS = 64  # a side, of what is compared
MIN_THUMBNAIL = 0.98  # correlation of thumbnails
MIN_DETAIL = 0.92  # correlation of details, some 1 to 5 % of the image large
# Root mean square over sixteenths of the image, of 255. On HAM10000 copies recompressed at JPEG
# quality 60, at half the size too, are within 0.3 levels of light and 0.9 of colour; of the pairs
# of photographs of one lesion that get so far, four are within 0.5, and those are one picture.
MAX_LIGHT = 0.45
MAX_COLOUR = 1.5
LIGHT = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue: ITU-R BT.601, as JPEG
MAX_GAIN = 2.0  # of brightness, between copies
DARK_END, BRIGHT_END = 4, 246  # of the range of pixels, blurred by resizing
MIN_INNER = 0.05  # share of the blocks that are within the range


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found.

    Attributes:
        pairs: columns `a`, `b` (int, rows of the images, a < b), `kind` (`exact` or
            `near`), `similarity` (correlation of the details, 0.92 to 1; 1 if exact) and,
            where features were given, `cosine` (of the features, -1 to 1). Sorted by a, b.
            Of n exact duplicates the n - 1 pairs with the first are listed, and only the first
            is looked up for near ones.
        unreadable: row of each image that Pillow cannot read, with the reason.
    """

    pairs: pd.DataFrame
    unreadable: dict[int, str]


def find_duplicates(
    images: Sequence[Source],
    sha256s: Sequence[str],
    *,
    features: npt.NDArray[np.floating] | None = None,
    known: npt.NDArray[np.bool_] | None = None,
    progress: Progress | None = None,
    workers: int = 2,
) -> Duplicates:
    """Find exact and near duplicates among images.

    Near duplicates are copies re-encoded, resized, cropped by up to some 10 % at a side, mirrored,
    turned by quarters, darkened, or brightened as long as most detail is left, and combinations.
    Another photograph of the same thing is none, nor is an image without texture. Where an image
    has more than some 20 copies, not each pair is found, but enough to join them all.

    Args:
        images: a path or an encoded file's bytes for each image, `(n_images,)`.
        sha256s: of the files, `(n_images,)`; blank where unknown.
        features: bottlenecks, `(n_images, n_features)`: pairs with a high cosine similarity are
            looked at too. Pixels decide all the same.
        known: bool `(n_images,)`: near pairs of two such images are known already and left out.
        progress: called with what is going on, how many are done, and of how many.
        workers: threads, 1 or more.

    Returns:
        The pairs, and the images that could not be read.

    Time: reading and comparing grow with n; the search for neighbours, a tenth of it at 9,000
    images, about as n^1.5. Memory is some 6 KB an image.
    """
    exact = _exact_pairs(sha256s)
    kept = np.setdiff1d(np.arange(len(images)), exact[:, 1])
    with ThreadPoolExecutor(workers) as pool:
        sketches, unreadable = sketch_images(pool, images, kept, progress)
        old = np.zeros(len(sketches.rows), bool) if known is None else known[sketches.rows]
        pairs = candidate_pairs(sketches, features, old, workers)
        pairs = _sieve(pool, partial(_fit_thumbnails, sketches.grey), pairs, BATCH)
        sources = [images[row] for row in sketches.rows]
        pairs = _sieve(pool, partial(_compare_pixels, sources), pairs, BATCH // 8, progress)
    near = np.sort(sketches.rows[pairs.images], axis=1)
    table = pd.DataFrame(np.concatenate([exact, near]), columns=["a", "b"])
    table["kind"] = ["exact"] * len(exact) + ["near"] * len(near)
    table["similarity"] = np.concatenate([np.ones(len(exact)), pairs.similarity.astype(float)])
    if features is not None:
        table["cosine"] = _cosine(features, table["a"].to_numpy(), table["b"].to_numpy())
    return Duplicates(table.sort_values(["a", "b"], ignore_index=True), unreadable)


def _sieve(
    pool: ThreadPoolExecutor,
    sieve: Callable[[Pairs], Pairs],
    pairs: Pairs,
    size: int,
    progress: Progress | None = None,
) -> Pairs:
    """What a sieve lets through, batch by batch."""
    n = len(pairs.images)
    batches = [pairs[first : first + size] for first in range(0, n, size)]
    left = [pairs[:0]]
    for batch in pool.map(sieve, batches):
        left.append(batch)
        if progress is not None:
            progress("comparing pairs", min(size * (len(left) - 1), n), n)
    return Pairs(
        np.concatenate([batch.images for batch in left]),
        np.concatenate([batch.turn for batch in left]),
        np.concatenate([batch.placement for batch in left]),
        np.concatenate([batch.similarity for batch in left]),
    )


def _exact_pairs(sha256s: Sequence[str]) -> Ints:
    first: dict[str, int] = {}
    pairs = [
        (first[sha256], row)
        for row, sha256 in enumerate(sha256s)
        if sha256 and first.setdefault(sha256, row) != row
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _cosine(features: npt.NDArray[np.floating[Any]], a: Ints, b: Ints) -> Floats:
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.asarray((unit[a] * unit[b]).sum(axis=1), np.float32)


# -- the second and the third sieve: thumbnails, then pixels ------------------------------------


def _fit_thumbnails(grey: npt.NDArray[np.float16], pairs: Pairs) -> Pairs:
    """Pairs whose thumbnails are nearly the same where they overlap, with their placement."""
    for steps in (2, 6):  # most are told after two; the few that stay are placed better
        a = grey[pairs.images[:, 0]].astype(np.float32)
        b = _turn(grey[pairs.images[:, 1]].astype(np.float32), pairs.turn)
        placement = align(a, b, pairs.placement, steps)
        like = correlation(a, b, placement)
        pairs = replace(pairs, placement=placement, similarity=like)[like >= MIN_THUMBNAIL]
    return pairs


def _turn(images: Floats, turn: Ints) -> Floats:
    images = images.copy()
    images[turn & 1 > 0] = images[turn & 1 > 0][:, :, ::-1]
    images[turn & 2 > 0] = images[turn & 2 > 0][:, ::-1]
    images[turn & 4 > 0] = images[turn & 4 > 0].swapaxes(1, 2)
    return images


def _compare_pixels(sources: Sequence[Source], pairs: Pairs) -> Pairs:
    """Pairs that show the same pixels, up to brightness and recompression, where they overlap."""
    opened = [
        (open_image(sources[a]), _turned(open_image(sources[b]), turn))
        for (a, b), turn in zip(pairs.images, pairs.turn, strict=True)
    ]
    similarity = np.zeros(len(opened), np.float32)
    placement = pairs.placement.copy()
    open_rows = np.arange(len(opened))
    for hopeless in (0.5, 0.9, 1.0):
        of_a, of_b = windows(placement[open_rows])
        a = _cut([opened[row][0] for row in open_rows], of_a)
        b = _cut([opened[row][1] for row in open_rows], of_b)
        found, light, colour = _same_pixels(a, b)
        copies = (found >= MIN_DETAIL) & (light <= MAX_LIGHT) & (colour <= MAX_COLOUR)
        similarity[open_rows[copies]] = found[copies]
        left = ~copies & (found >= hopeless)
        open_rows, a, b = open_rows[left], a[left], b[left]
        inner = align(_details(a), _details(b), np.tile(IDENTITY, (len(a), 1)), steps=5)
        placement[open_rows] = compose(placement[open_rows], inner)
    return replace(pairs, placement=placement, similarity=similarity)[similarity > 0]


def _turned(image: Image.Image, turn: int) -> Image.Image:
    """As `_turn`, of an image."""
    for bit, method in (
        (1, Image.Transpose.FLIP_LEFT_RIGHT),
        (2, Image.Transpose.FLIP_TOP_BOTTOM),
        (4, Image.Transpose.TRANSPOSE),
    ):
        if turn & bit:
            image = image.transpose(method)
    return image


def _cut(images: list[Image.Image], of_images: Floats) -> Floats:
    """Windows of images, `(n, 64, 64, 3)`, 0 to 255."""
    cut = np.empty((len(images), PIXELS, PIXELS, 3), np.float32)
    for i, (image, window) in enumerate(zip(images, of_images, strict=True)):
        box = (window * np.tile(image.size, 2)).tolist()
        cut[i] = np.asarray(image.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS, box=box))
    return cut


def _details(images: Floats) -> Floats:
    """The light between two blurs: neither noise nor shading."""
    light = images.mean(axis=-1)
    return uniform_filter(light, (0, 3, 3)) - uniform_filter(light, (0, 9, 9))


def _same_pixels(a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
    """Correlation of the details, and grey levels apart in light and in colour, each `(n,)`."""
    # Brightening cuts off detail at an end of the range: only blocks without such pixels count.
    within = (np.minimum(a, b) > DARK_END) & (np.maximum(a, b) < BRIGHT_END)
    inner = np.asarray(_blocks(within, 4).all(axis=(2, 4)))
    a_blocks, b_blocks = (_blocks(images, 4).mean(axis=(2, 4)) for images in (a, b))
    details = np.full(len(a), -1, np.float32)
    apart = np.full((2, len(a)), np.inf, np.float32)
    for x, y, x_blocks, y_blocks in ((a, b, a_blocks, b_blocks), (b, a, b_blocks, a_blocks)):
        gain, offset = _brightness(x_blocks, y_blocks, inner)
        expected = np.clip(gain * x + offset, 0, 255)
        details = np.maximum(details, _same_details(_details(expected), _details(y)))
        off = y_blocks - gain * x_blocks - offset
        gain = np.maximum(gain.ravel(), 1e-6)
        light = _levels(off, inner * LIGHT, together=True)
        colour = _levels(off, inner.astype(np.float32), together=False)
        # Deep colours are at an end in both: without that channel, errors of colour are of light.
        off = y_blocks - _blocks(expected, 4).mean(axis=(2, 4))
        light = np.minimum(light, _levels(off, np.ones_like(off) * LIGHT, together=True))
        plausible = np.abs(np.log(gain)) <= np.log(MAX_GAIN)
        found = np.stack([light, colour]) / np.maximum(gain, 1)
        apart = np.minimum(apart, np.where(plausible, found, np.inf))
    apart[:, inner.mean(axis=(1, 2, 3)) < MIN_INNER] = np.inf
    return details, apart[0], apart[1]


def _levels(off: Floats, weights: Floats, *, together: bool) -> Floats:
    """Root mean square over sixteenths, of the channels one by one or together.

    Compression errs this way and that: over a quarter of the side it cancels out. It errs more in
    colour, which it keeps at half the size, than in light.
    """
    axes = (2, 4, 5) if together else (2, 4)
    total = _blocks(off * weights, 4).sum(axis=axes)
    weight = np.maximum(_blocks(weights, 4).sum(axis=axes), 1e-6)
    rest = tuple(range(1, total.ndim))
    return np.asarray(np.sqrt((total**2 / weight).sum(axis=rest) / weight.sum(axis=rest)))


def _same_details(x: Floats, y: Floats) -> Floats:
    """Pearson's correlation, as if both had one grey level of detail more in common.

    So a clear sky, whose details are all noise, is the same as its copy.
    """
    axes = (1, 2)
    x, y = x - x.mean(axis=axes, keepdims=True), y - y.mean(axis=axes, keepdims=True)
    spread = ((x**2).mean(axis=axes) + 1) * ((y**2).mean(axis=axes) + 1)
    return np.asarray(((x * y).mean(axis=axes) + 1) / np.sqrt(spread))


def _blocks(images: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """`(n, height, width, 3)` in square blocks, of which axes 2 and 4 count the pixels."""
    n, height, width, _ = images.shape
    return images.reshape(n, height // size, size, width // size, size, 3)


def _brightness(x: Floats, y: Floats, inner: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Gain and offset that take x to y, fitted where neither is at an end of the range."""
    axes = (1, 2, 3)
    weight = inner / np.maximum(inner.sum(axis=axes, keepdims=True), 1).astype(np.float32)
    x_mean = (x * weight).sum(axis=axes, keepdims=True)
    y_mean = (y * weight).sum(axis=axes, keepdims=True)
    spread = ((x - x_mean) ** 2 * weight).sum(axis=axes, keepdims=True)
    gain = ((x - x_mean) * y * weight).sum(axis=axes, keepdims=True) / (spread + 1e-6)
    return gain, y_mean - gain * x_mean
