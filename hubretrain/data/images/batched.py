"""Augmented views of a whole batch in TensorFlow, for a GPU: the pixels of `decoding.view`.

A crop with an antialiased resize is two products of the image with sparse weights, one per
direction; mirroring reverses the rows of the weights, a quarter turn transposes. So a batch of
views is two batched matrix products, which is what a GPU does best. Sums are float32 where
`decoding.view` has fixed point, so pixels may differ by one level of 256.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hubretrain.arrays import Float32Array, Pixels
from hubretrain.data.images.augmentation import Draw
from hubretrain.tensorflow import tf

_WHOLE = Draw((0.0, 0.0, 1.0, 1.0))
_KEEP = np.eye(3, 4, dtype=np.float32)
_FLOATS_AT_ONCE = 2**27  # 512 MiB


def triangle_weights(n_in: int, n_out: int, low: float, high: float) -> Float32Array:
    """Return the weights of an antialiased triangle filter from `n_in` pixels to `n_out`.

    Args:
        n_in: Number of input pixels.
        n_out: Number of output pixels.
        low: Beginning of the part to resize, pixels.
        high: End of the part to resize, pixels.

    Returns:
        float32 of shape (n_out, n_in); rows sum to 1.
    """
    step = (high - low) / n_out  # input pixels per output pixel
    # Where the image shrinks, the triangle is as wide as the step, so that nothing aliases.
    support = max(step, 1.0)
    centres = low + (np.arange(n_out) + 0.5) * step
    distance = np.abs(np.arange(n_in) + 0.5 - centres[:, None]) / support
    weights = np.clip(1.0 - distance, 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def batch_views(images: Sequence[Pixels], draws: Sequence[Draw | None], size: int) -> Pixels:
    """Cut one view of each image.

    Args:
        images: Images of any sizes, each uint8 of shape (height, width, 3), RGB.
        draws: The random changes of each view; None for the image as it is.
        size: Height and width of the result, pixels.

    Returns:
        uint8 of shape (len(images), size, size, 3).
    """
    # All share one canvas, as high as the highest and as wide as the widest image.
    canvas = max(image.shape[0] for image in images) * max(image.shape[1] for image in images)
    at_once = max(1, _FLOATS_AT_ONCE // (3 * canvas))
    views = [
        _some_views(images[i : i + at_once], draws[i : i + at_once], size).numpy()
        for i in range(0, len(images), at_once)
    ]
    pixels: Pixels = np.concatenate(views)
    return pixels


def to_unit_tensor(pixels: tf.Tensor) -> tf.Tensor:
    """Scale uint8 pixels in [0, 255] to float32 in [0, 1], as `decoding.to_unit` does."""
    return tf.cast(pixels, tf.float32) / 255.0


def _some_views(images: Sequence[Pixels], draws: Sequence[Draw | None], size: int) -> tf.Tensor:
    """Cut one view of each image, all on one canvas."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    canvas = np.zeros((len(images), height, width, 3), dtype=np.uint8)
    down = np.zeros((len(images), size, height), dtype=np.float32)
    across = np.zeros((len(images), size, width), dtype=np.float32)
    turned = np.zeros(len(images), dtype=bool)
    colour = np.tile(_KEEP, (len(images), 1, 1))
    for i, (image, draw) in enumerate(zip(images, draws, strict=True)):
        h, w = image.shape[:2]
        canvas[i, :h, :w] = image
        left, top, right, bottom = (draw or _WHOLE).box
        y, x = (
            triangle_weights(h, size, top * h, bottom * h),
            triangle_weights(w, size, left * w, right * w),
        )
        if draw is not None:
            # A quarter turn is a transposition and one mirroring; two are both mirrorings.
            turned[i] = draw.quarter_turns % 2 == 1
            mirror = draw.mirror ^ (draw.quarter_turns in (1, 2))
            flip = draw.flip ^ (draw.quarter_turns in (2, 3))
            y, x = y[::-1] if flip else y, x[::-1] if mirror else x
            if (matrix := draw.colour_matrix()) is not None:
                colour[i] = np.reshape(matrix, (3, 4))
        down[i, :, :h], across[i, :, :w] = y, x
    return _views(canvas, down, across, turned, colour)


@tf.function(  # type: ignore[untyped-decorator]
    input_signature=[
        tf.TensorSpec((None, None, None, 3), tf.uint8),
        tf.TensorSpec((None, None, None), tf.float32),
        tf.TensorSpec((None, None, None), tf.float32),
        tf.TensorSpec((None,), tf.bool),
        tf.TensorSpec((None, 3, 4), tf.float32),
    ]
)
def _views(
    canvas: tf.Tensor, down: tf.Tensor, across: tf.Tensor, turned: tf.Tensor, colour: tf.Tensor
) -> tf.Tensor:
    pixels = tf.cast(canvas, tf.float32)
    pixels = _levels(tf.einsum("bsh,bhwc->bswc", down, pixels))
    pixels = _levels(tf.einsum("btw,bswc->bstc", across, pixels))
    upright = tf.transpose(pixels, (0, 2, 1, 3))
    pixels = tf.where(turned[:, None, None, None], upright, pixels)
    pixels = tf.einsum("bkc,bstc->bstk", colour[:, :, :3], pixels) + colour[:, None, None, :, 3]
    return tf.cast(_levels(pixels), tf.uint8)


def _levels(pixels: tf.Tensor) -> tf.Tensor:
    """Round to whole levels; a half rounds up, also where float32 sums to a little less."""
    return tf.clip_by_value(tf.floor(pixels + 0.5001), 0.0, 255.0)
