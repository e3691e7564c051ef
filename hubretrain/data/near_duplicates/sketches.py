"""Images reduced to a few numbers, and for each image those that look most like it.

Each image is reduced to the low frequencies of its cosine transform, as in pHash (Zauner 2010,
"Implementation and benchmarking of perceptual image hash functions"), but not cut to bits: their
absolute values, which mirroring leaves alone, each sorted with that of the other axis, which
turning leaves alone. A k-d tree over their principal components gives each image its nearest
neighbours among six views of each image: as it is, and with its margins cut away.

Why no hash of a library: two photographs of one mole are as near in 64 bits as a cropped copy is.
On HAM10000 imagehash's phash has the original of a copy cropped by 5 % among the 20 nearest in 93
of 100 cases, pdqhash in 90, this in 100; and looking within 12 or more of 64 bits has no index
that is faster than comparing all with all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dct
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from hubretrain.arrays import BoolArray, Float32Array, IntArray, Pixels
from hubretrain.data.images import (
    MAX_BITS,
    UnreadableImageError,
    bits_of,
    bits_used,
    is_momentary,
    open_bounded,
    read_image_bytes,
    to_rgb,
)
from hubretrain.errors import DataError

Source = str | os.PathLike[str] | bytes
Progress = Callable[[str, int, int], object]
"""Called with the name of the step, the number done, and the number of all."""

THUMBNAIL = 32  # pixels per side, as in pHash
MIDWAY = 100  # pixels per side of the image that views are cut from: their edges are whole pixels
N_FREQUENCIES = 8  # per axis, that decide how an image is turned
N_UNTURNED = 6  # per axis, of the lightness, that find neighbours
N_COLOURS = 3  # per axis, of two colour differences, that find neighbours too
# Left, top, right, bottom: the whole, and what a cropped copy may show. A crop of up to 10 % at
# each side is off by at most 5 % from one of them.
VIEWS = np.array(
    [[0, 0, 1, 1], [0.05, 0.05, 0.95, 0.95]]
    + [[x, y, x + 0.9, y + 0.9] for x in (0, 0.1) for y in (0, 0.1)],
    np.float32,
)
MIN_TEXTURE = 4.0  # standard deviation of the lightness, grey levels: below, all look alike
COSINES = dct(np.eye(THUMBNAIL, dtype=np.float32), axis=0, norm="ortho")[:N_FREQUENCIES]
NO_PIXELS = np.zeros((0, len(VIEWS), THUMBNAIL, THUMBNAIL, 3), np.float32)
N_NEIGHBOURS = 24
N_COMPONENTS = 24
N_TRIED = 4  # neighbours of an image that are aligned
MIN_LIKENESS = 0.85  # correlation of the low frequencies
BATCH = 256  # images, or pairs, that a thread computes at once
SOURCE_PIXELS = 160  # per side, at least: larger images are shrunk as they are read


@dataclass(frozen=True)
class Sketches:
    """Sketches of the readable images with texture, all in the same order.

    Attributes:
        rows: Row of each image, int64 of shape (n,).
        grey: Thumbnails of mean 0 and variance 1, slightly blurred, float16 of shape (n, 32, 32).
        waves: Low frequencies of each of the views, scaled to length 1, float32 of shape
            (n, n_views, 8, 8).
        unturned: Low frequencies and colours in a form that no turning or mirroring changes,
            float32 of shape (n, n_views, n_values).
    """

    rows: IntArray
    grey: npt.NDArray[np.float16]
    waves: Float32Array
    unturned: Float32Array


@dataclass(frozen=True)
class Pairs:
    """Pairs of sketches: the second, turned, lies on the first.

    Attributes:
        images: Sketches of each pair, int64 of shape (n, 2).
        turn: How the second is turned, int64 of shape (n,), 0 to 7; bit 1 mirrors left and
            right, bit 2 top and bottom, then bit 4 swaps the axes.
        placement: Placement of the turned second on the first, see `alignment`, float32 of shape
            (n, 4).
        similarity: Similarity as far as it is known, float32 of shape (n,).
    """

    images: IntArray
    turn: IntArray
    placement: Float32Array
    similarity: Float32Array

    def __getitem__(self, rows: slice | IntArray | BoolArray) -> Pairs:
        return Pairs(
            self.images[rows], self.turn[rows], self.placement[rows], self.similarity[rows]
        )


def open_image(source: Source, sha256: str = "") -> Image.Image:
    """Read an image in RGB, shrunk to about `SOURCE_PIXELS`.

    Its EXIF orientation is ignored: the search compares all turns anyway.

    Args:
        source: The image file or its URL, or the file's bytes.
        sha256: Digest that the file's bytes must have; blank: any.

    Raises:
        UnreadableImageError: It cannot be read now, or its bytes have changed.
        Exception: Pillow's decoders raise nearly every type on damaged files.
    """
    if not isinstance(source, bytes):
        # Whole: then an error of the disk is never mistaken for one of the content.
        source = read_image_bytes(Path(), os.fspath(source), sha256)
    try:
        image = open_bounded(source)
        bits = bits_of(image)
        image.draft("RGB", (SOURCE_PIXELS, SOURCE_PIXELS))  # JPEG: decodes fewer frequencies
        shrink = min(image.size) // SOURCE_PIXELS
        if bits > MAX_BITS:
            raise DataError("pixels of 32 bits")
        image.load()
        rgb = to_rgb(image, bits, bits_used(image))  # a gain does not matter
        return rgb.reduce(shrink) if shrink > 1 else rgb
    except Exception as error:
        if is_momentary(error):
            raise UnreadableImageError("there is not enough memory to decode it") from error
        raise


def _thumbnails(source: Source, sha256: str) -> Pixels | Exception:
    """Return the views of an image, uint8 (n_views, 32, 32, 3), or why it cannot be read."""
    try:
        image = open_image(source, sha256)
    except Exception as error:
        return error
    # All views from one small image: resizing takes a third of the time, and is off by a fifth
    # of a grey level.
    small = image.resize((MIDWAY, MIDWAY), Image.Resampling.LANCZOS)
    size = (THUMBNAIL, THUMBNAIL)
    boxes = (VIEWS * MIDWAY).tolist()
    views = [small.resize(size, Image.Resampling.LANCZOS, box=tuple(box)) for box in boxes]
    return np.stack([np.asarray(view) for view in views])


def sketch_images(
    pool: ThreadPoolExecutor,
    images: Sequence[Source],
    sha256s: Sequence[str],
    rows: IntArray,
    progress: Progress | None,
) -> tuple[Sketches, dict[int, Exception]]:
    """Read and sketch some of the images.

    Args:
        pool: Threads.
        images: A path or an encoded file's bytes for each image.
        sha256s: Digest of each file; blank where unknown.
        rows: The images to sketch.
        progress: Called with the name of the step, the number done, and the number of all.

    Returns:
        The sketches, and why an image cannot be read, by its row.
    """

    def sketch(batch: IntArray) -> tuple[Sketches, dict[int, Exception]]:
        thumbnails = {int(row): _thumbnails(images[row], sha256s[row]) for row in batch}
        unreadable = {row: why for row, why in thumbnails.items() if isinstance(why, Exception)}
        views = {row: t for row, t in thumbnails.items() if not isinstance(t, Exception)}
        pixels = np.array(list(views.values()), np.float32).reshape(-1, *NO_PIXELS.shape[1:])
        return _sketch(np.array(list(views), np.int64), pixels), unreadable

    batches = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
    results = []
    for result in pool.map(sketch, batches):
        results.append(result)
        if progress is not None:
            progress("looking at images", min(BATCH * len(results), len(rows)), len(rows))
    # An empty one first, so that no images give empty arrays of the right shapes.
    parts = [_sketch(np.zeros(0, np.int64), NO_PIXELS), *(part for part, _ in results)]
    sketches = Sketches(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.grey for part in parts]),
        np.concatenate([part.waves for part in parts]),
        np.concatenate([part.unturned for part in parts]),
    )
    return sketches, {row: reason for _, reasons in results for row, reason in reasons.items()}


def _sketch(rows: IntArray, pixels: Float32Array) -> Sketches:
    """Sketch images, float32 (n, n_views, 32, 32, 3); those without texture are left out."""
    has_texture = pixels[:, 0].mean(axis=-1).std(axis=(1, 2)) > MIN_TEXTURE
    rows, pixels = rows[has_texture], pixels[has_texture]
    # Divided by their mean, images do not depend on a gain of the brightness.
    pixels = pixels / np.maximum(pixels.mean(axis=(2, 3, 4), keepdims=True), 1)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    # Lightness and two opponent colours, red-green and yellow-blue.
    planes = np.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue])
    low = COSINES @ planes @ COSINES.T
    waves = low[0].copy()
    waves[..., 0, 0] = 0  # the mean, so that an offset of the brightness does not matter either
    waves /= np.linalg.norm(waves, axis=(2, 3), keepdims=True) + 1e-9
    colours = low[1:, ..., :N_COLOURS, :N_COLOURS] / (2 * THUMBNAIL)
    unturned = [_unturned(waves[..., :N_UNTURNED, :N_UNTURNED])]
    unturned += [_unturned(plane) for plane in colours]
    grey = gaussian_filter(planes[0][:, 0], (0, 1, 1))
    grey = grey - grey.mean(axis=(1, 2), keepdims=True)
    grey = grey / (grey.std(axis=(1, 2), keepdims=True) + 1e-9)
    return Sketches(rows, grey.astype(np.float16), waves, np.concatenate(unturned, axis=-1))


def _unturned(waves: Float32Array) -> Float32Array:
    """Return values of frequencies (..., n, n) that mirroring and swapping the axes leave alone.

    Mirroring an axis changes the sign of its odd frequencies, so absolute values stay. Swapping
    the axes transposes them, so of each pair (i, j), (j, i) the larger and the smaller stay.
    """
    size = np.abs(waves)
    size[..., 0, 0] = waves[..., 0, 0]  # the mean keeps its sign
    above, swapped = np.triu_indices(size.shape[-1], 1), np.swapaxes(size, -1, -2)
    larger = np.maximum(size, swapped)[..., above[0], above[1]]
    smaller = np.minimum(size, swapped)[..., above[0], above[1]]
    return np.concatenate([larger, smaller, np.diagonal(size, axis1=-2, axis2=-1)], axis=-1)


def candidate_pairs(
    sketches: Sketches,
    features: npt.NDArray[np.floating[Any]] | None,
    known: BoolArray,
    workers: int,
) -> Pairs:
    """Return each image's nearest neighbours, the few that look most like it, placed roughly.

    Args:
        sketches: The images.
        features: Bottlenecks of all images, of shape (n_images, n_features), or None: neighbours
            by their cosine similarity are candidates too.
        known: Whether each sketch was searched before, bool of shape (n,); pairs of two such
            sketches are left out.
        workers: Number of threads.
    """
    n = len(sketches.rows)
    if n < 2:
        empty = np.zeros((0, 2), np.int64)
        return Pairs(empty, empty[:, 0], np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    # The views of all images stand one below the other: row v n + i is view v of image i.
    near = _neighbours(np.concatenate(list(np.swapaxes(sketches.unturned, 0, 1))), n, workers)
    a, b, view = np.repeat(np.arange(n), near.shape[1]), near.ravel() % n, near.ravel() // n
    if features is not None:
        vectors = features[sketches.rows].astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
        near = _neighbours(vectors, n, workers)
        # Features do not say what was cropped: the whole is tried, and the central view of each.
        first, second = np.repeat(np.arange(n), near.shape[1]), near.ravel()
        a, b = np.concatenate([a, first, first, second]), np.concatenate([b, second, second, first])
        view = np.concatenate([view, np.repeat([0, 1, 1], len(first))])
    apart = (a != b) & ~(known[a] & known[b])
    a, b, view = a[apart], b[apart], view[apart]
    likeness, turn = _likeness(sketches.waves, a, b, view)
    # The best few of each first image, then each pair once.
    order = np.lexsort((view, b, -likeness, a))
    rank = np.arange(len(order)) - np.searchsorted(a[order], a[order])
    order = order[(rank < N_TRIED) & (likeness[order] > MIN_LIKENESS)]
    order = order[np.lexsort((order, -likeness[order]))]
    pairs = np.sort(np.stack([a, b], axis=1)[order], axis=1)
    order = order[np.sort(np.unique(pairs @ np.array([n, 1]), return_index=True)[1])]
    left, top, right, bottom = _turn_windows(VIEWS[view[order]], turn[order]).T
    placement = np.stack([right - left, left + right - 1, bottom - top, top + bottom - 1], axis=1)
    return Pairs(np.stack([a, b], axis=1)[order], turn[order], placement, likeness[order])


def _neighbours(vectors: Float32Array, n_queries: int, workers: int) -> IntArray:
    """Return the nearest vectors, by number, of each of the first `n_queries`, itself included."""
    # Distances within the leading principal components: a k-d tree needs few dimensions.
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    points = centred @ axes[:, ::-1][:, :N_COMPONENTS]
    k = min(N_NEIGHBOURS + 1, len(points))
    # eps: a neighbour may be missed for one at most twice as far, which lost no planted copy of
    # HAM10000 and is 4 to 8 times as fast.
    _, rows = cKDTree(points).query(points[:n_queries], k=k, eps=1.0, workers=workers)
    return np.asarray(rows, np.int64)


def _likeness(
    waves: Float32Array, a: IntArray, b: IntArray, view: IntArray
) -> tuple[Float32Array, IntArray]:
    """Return the correlation of a's low frequencies with b's, and the best turn of b.

    Args:
        waves: Low frequencies of all views of the images.
        a: First image of each pair, by its view 0.
        b: Second image of each pair.
        view: View of the second.

    Returns:
        float32 of shape (n_pairs,), and the turn as in `Pairs`, int64 of shape (n_pairs,).
    """
    best, turns = np.empty(len(a), np.float32), np.empty(len(a), np.int64)
    # Mirroring changes the sign of odd frequencies along its axis, so four sums, over even and odd
    # frequencies of both axes, give the correlations with all four mirrored images.
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float32)
    for first in range(0, len(a), 64 * BATCH):
        rows = slice(first, first + 64 * BATCH)
        of_a, of_b = waves[a[rows], 0], waves[b[rows], view[rows]]
        shape = (-1, N_FREQUENCIES // 2, 2, N_FREQUENCIES // 2, 2)
        sums = [
            (turned * of_b).reshape(shape).sum(axis=(1, 3)).reshape(-1, 4) @ signs.T
            for turned in (of_a, of_a.transpose(0, 2, 1))
        ]
        all_turns = np.concatenate(sums, axis=1)
        best[rows], turns[rows] = all_turns.max(axis=1), all_turns.argmax(axis=1)
    return best, turns


def _turn_windows(windows: Float32Array, turn: IntArray) -> Float32Array:
    """Return left, top, right, bottom of windows once the image is turned."""
    left, top, right, bottom = windows.T
    mirrored, upturned, swapped = ((turn & bit > 0) for bit in (1, 2, 4))
    left, right = np.where(mirrored, (1 - right, 1 - left), (left, right))
    top, bottom = np.where(upturned, (1 - bottom, 1 - top), (top, bottom))
    turned = np.where(swapped, (top, left, bottom, right), (left, top, right, bottom))
    return np.asarray(turned.T, np.float32)
