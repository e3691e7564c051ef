"""Two thumbnails laid over each other: is one a cropped copy of the other, and which part is it?

A placement of b on a is `(scale_x, shift_x, scale_y, shift_y)`: the point (x, y) of a, with -1
and 1 at its edges, shows the point (scale_x x + shift_x, scale_y y + shift_y) of b. It is fitted
together with a gain and an offset of the brightness by Gauss-Newton steps on the squared
difference: Lucas & Kanade 1981, "An iterative image registration technique", with the gain and
offset of Baker & Matthews 2004, "Lucas-Kanade 20 years on", part 3. Without rotation, sampling b
is two small matrix products, so a thousand pairs are aligned at once.

Linearised at the current placement, with b' and its derivatives b'_x, b'_y sampled there,

    a ~ g b' + o + g (b'_x (x dsx + dtx) + b'_y (y dsy + dty)),

where g is the gain, o the offset and ds, dt the step of scale and shift. That is linear least
squares in (g dsx, g dtx, g dsy, g dty, g, o); the step is the first four divided by the gain.
"""

from __future__ import annotations

import numpy as np

from hubretrain.arrays import Float32Array

IDENTITY = np.array([1, 0, 1, 0], np.float32)
LARGEST_STEP = 0.1  # of a scale or a shift, per iteration
SCALES = (0.7, 1.4)  # placements stay within these and `LARGEST_SHIFT`: a slight crop
LARGEST_SHIFT = 0.3
MIN_GAIN = 0.2  # below, dividing by the gain would throw the step far off
RIDGE = np.float32(1e-4)  # relative, for flat images whose normal equations are singular


def align(a: Float32Array, b: Float32Array, placements: Float32Array, steps: int) -> Float32Array:
    """Improve the placements of b on a.

    Args:
        a: Thumbnails, float32 of shape (n_pairs, size, size), any range.
        b: Thumbnails to place, as `a`.
        placements: Placements to start from, float32 of shape (n_pairs, 4); off by at most 10 %
            of the size.
        steps: Number of Gauss-Newton steps.

    Returns:
        float32 of shape (n_pairs, 4).
    """
    n_pairs, size = a.shape[:2]
    x = _coordinates(size)
    # Pixels become units of the coordinates, of which the side has 2.
    b_y, b_x = (slope * np.float32(size / 2) for slope in np.gradient(b, axis=(1, 2)))
    placements = placements.astype(np.float32)
    for _ in range(steps):
        rows, columns, seen = _samplers(placements, size)
        image, d_x, d_y = (rows @ part @ columns for part in (b, b_x, b_y))
        # The columns of the least-squares problem: four of the placement, the gain, the offset.
        # Scaled to unit length, so that one ridge suits all.
        terms = (d_x * x, d_x, d_y * x[:, None], d_y, image, np.ones_like(image))
        design = np.stack([term * seen for term in terms], axis=1).reshape(n_pairs, 6, size**2)
        scales = np.sqrt((design**2).sum(axis=2, keepdims=True)) + 1e-9
        design /= scales
        normal = design @ design.transpose(0, 2, 1) + RIDGE * np.eye(6, dtype=np.float32)
        solution = (
            np.linalg.solve(normal, design @ (a * seen).reshape(n_pairs, size**2, 1)) / scales
        )
        gain = np.maximum(solution[:, 4], MIN_GAIN)
        step = solution[:, :4, 0] / gain
        placements = placements + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        placements[:, ::2] = np.clip(placements[:, ::2], *SCALES)
        placements[:, 1::2] = np.clip(placements[:, 1::2], -LARGEST_SHIFT, LARGEST_SHIFT)
    return placements


def correlation(a: Float32Array, b: Float32Array, placements: Float32Array) -> Float32Array:
    """Return Pearson's correlation of a with b as placed on it, over the part that both show.

    Args:
        a: Thumbnails, float32 of shape (n_pairs, size, size).
        b: Thumbnails that are placed, as `a`.
        placements: Placements of b on a, float32 of shape (n_pairs, 4).

    Returns:
        float32 of shape (n_pairs,), [-1, 1]; 0 where one is flat.
    """
    rows, columns, seen = _samplers(placements, a.shape[1])
    seen = seen / np.maximum(seen.sum(axis=(1, 2), keepdims=True), 1)
    image = rows @ b @ columns
    a = a - (a * seen).sum(axis=(1, 2), keepdims=True)
    image = image - (image * seen).sum(axis=(1, 2), keepdims=True)
    spread = (a * a * seen).sum(axis=(1, 2)) * (image * image * seen).sum(axis=(1, 2))
    return np.asarray((a * image * seen).sum(axis=(1, 2)) / np.sqrt(spread + 1e-12))


def windows(placements: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return the windows of a and of b that show the same part.

    Args:
        placements: Placements of b on a, float32 of shape (n_pairs, 4).

    Returns:
        Two arrays of float32 of shape (n_pairs, 4): left, top, right, bottom in [0, 1].
    """
    scale, shift = placements[:, ::2], placements[:, 1::2]
    low = np.clip((-1 - shift) / scale, -1, 1)
    high = np.clip((1 - shift) / scale, -1, 1)
    of_a = np.concatenate([low, high], axis=1)
    of_b = np.clip(np.concatenate([scale * low + shift, scale * high + shift], axis=1), -1, 1)
    return np.asarray((of_a + 1) / 2, np.float32), np.asarray((of_b + 1) / 2, np.float32)


def compose(placements: Float32Array, inner: Float32Array) -> Float32Array:
    """Return the placements of b on a, refined by placements of their windows on each other.

    With centre c and half width h of the windows of a and b, inner coordinates are
    u = (x - c_a) / h_a and v = (y - c_b) / h_b. From v = s u + t follows
    y = (s h_b / h_a) x + c_b + h_b (t - s c_a / h_a).

    Args:
        placements: Earlier placements, float32 of shape (n_pairs, 4).
        inner: Placements of the windows, float32 of shape (n_pairs, 4).

    Returns:
        float32 of shape (n_pairs, 4).
    """
    of_a, of_b = (2 * window - 1 for window in windows(placements))
    result = np.empty_like(placements)
    for axis in (0, 1):
        a_centre, a_half = _centre_and_half(of_a[:, axis::2])
        b_centre, b_half = _centre_and_half(of_b[:, axis::2])
        scale, shift = inner[:, 2 * axis], inner[:, 2 * axis + 1]
        result[:, 2 * axis] = scale * b_half / a_half
        result[:, 2 * axis + 1] = b_centre + b_half * (shift - scale * a_centre / a_half)
    return result


def _centre_and_half(ends: Float32Array) -> tuple[Float32Array, Float32Array]:
    half = np.float32(0.5)
    return (ends[:, 0] + ends[:, 1]) * half, (ends[:, 1] - ends[:, 0]) * half


def _coordinates(size: int) -> Float32Array:
    return ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)


def _samplers(
    placements: Float32Array, size: int
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return matrices that sample the rows and columns of b linearly, and 1 where b has pixels."""
    columns, in_columns = _sampler(placements[:, :2], size)
    rows, in_rows = _sampler(placements[:, 2:], size)
    return rows, columns.transpose(0, 2, 1), in_rows[:, :, None] * in_columns[:, None]


def _sampler(scale_and_shift: Float32Array, size: int) -> tuple[Float32Array, Float32Array]:
    x = scale_and_shift[:, :1] * _coordinates(size) + scale_and_shift[:, 1:]
    pixel = (x + 1) * (size / 2) - 0.5
    inside = (pixel > -0.5) & (pixel < size - 0.5)
    away = np.clip(pixel, 0, size - 1)[:, :, None] - np.arange(size, dtype=np.float32)
    weights = np.maximum(0, 1 - np.abs(away))
    return np.asarray(weights, np.float32), np.asarray(inside, np.float32)
