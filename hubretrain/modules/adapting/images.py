"""RGB images in NHWC become what a network takes: another layout, type, number, or grey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hubretrain.errors import ModuleError
from hubretrain.tensorflow import tf

_LEVELS = 255.0  # of 8 bits


@dataclass(frozen=True)
class ImageForm:
    """What images a network takes.

    Attributes:
        size: Height and width, pixels; 0 where it fixes none.
        dtype: Type of its input.
        channels_first: Whether it is NCHW.
        grey: Whether it has one channel.
        one_by_one: Whether it takes one image at a time only.
    """

    size: int = 0
    dtype: Any = tf.float32
    channels_first: bool = False
    grey: bool = False
    one_by_one: bool = False

    @classmethod
    def of(cls, spec: Any, handle: str) -> ImageForm:
        """Return the form that a function's own words on its input mean.

        Args:
            spec: A tensor's type and shape; None where the function says nothing.
            handle: The module's handle, for messages.

        Raises:
            ModuleError: Square RGB or grey images cannot be made into it.
        """
        if spec is None:
            return cls()
        if spec.shape.rank is None:
            return cls(dtype=spec.dtype)
        n, *axes = spec.shape.as_list()
        channels_first = axes[0] in (1, 3) and axes[2] not in (1, 3)
        channels, height, width = axes if channels_first else (axes[2], *axes[:2])
        if channels not in (None, 1, 3):
            raise ModuleError(
                f"{handle} takes images of {channels} channels; expected 3, RGB, or 1, grey."
            )
        if height != width:
            height, width = height or "any", width or "any"
            raise ModuleError(
                f"{handle} takes images of height {height} and width {width}, pixels; expected a "
                "square, which every view is: export it again for one, or for any size."
            )
        if n not in (None, 1):
            raise ModuleError(
                f"{handle} takes exactly {n} images at a time; expected any number, or one: export "
                "it again with a batch dimension of None."
            )
        return cls(int(height or 0), spec.dtype, channels_first, channels == 1, n == 1)

    def take(self, images: tf.Tensor, value_range: tuple[float, float]) -> tf.Tensor:
        """Return images as the network takes them.

        Args:
            images: float32 of shape (n_images, height, width, 3), RGB in [0, 1].
            value_range: Least and largest value of the network's input. Where it takes whole
                numbers, [0, 1] means that nothing is said, and they are levels, [0, 255].
        """
        if self.dtype.is_integer and value_range == (0.0, 1.0):
            value_range = (0.0, _LEVELS)
        low, high = value_range
        if (low, high) != (0.0, 1.0):
            images = low + (high - low) * images
        if self.grey:
            images = tf.image.rgb_to_grayscale(images)
        if self.dtype.is_integer:
            images = tf.round(images)
        images = tf.cast(images, self.dtype)
        return tf.transpose(images, (0, 3, 1, 2)) if self.channels_first else images

    def notes(self) -> list[str]:
        """Return what is done to images, clauses; none where they are taken as they are."""
        changes = []
        if self.grey:
            changes.append("made grey")
        if self.dtype.is_integer:
            changes.append(f"rounded to {self.dtype.name}")
        elif self.dtype != tf.float32:
            changes.append(f"cast to {self.dtype.name}")
        if self.channels_first:
            changes.append("put into NCHW")
        notes = [f"images are {', '.join(changes)}"] if changes else []
        if self.one_by_one:
            notes.append("it is run image by image, which is slow")
        return notes
