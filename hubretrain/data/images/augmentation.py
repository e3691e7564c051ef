"""How augmented views differ from their image: the ranges, and the random draw of one view."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

from hubretrain.errors import DataError
from hubretrain.option_fields import check_options, option

# Luma weights of ITU-R BT.601 and the YIQ axes, for saturation and hue.
# https://en.wikipedia.org/wiki/YIQ
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Augmentation:
    """How far an augmented view may differ from its image.

    Attributes:
        horizontal_flip: Mirror left and right in half of the views.
        vertical_flip: Mirror top and bottom in half of the views.
        rotate90: Turn by 0, 90, 180 or 270 degrees, for images without an upright side (skin,
            satellites).
        crop: Smallest share of the image's area that a random resized crop keeps, (0, 1];
            1 keeps all (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842).
        crop_ratio: Largest ratio of the crop's width to its height, and of height to width,
            relative to the image, [1, 10].
        scale: Largest enlargement before the crop, as a share of the size, [0, 4]; as random_scale
            of TF-Hub's retrain.py.
        brightness: Largest shift, as a share of the full range, [0, 1].
        contrast: Largest relative change of the distance to mid-grey, [0, 1].
        saturation: Largest relative change of the distance to grey, [0, 1].
        hue: Largest turn of the hue, as a share of the full circle, [0, 0.5].

    Examples:
        >>> from hubretrain import Augmentation
        >>> augmentation = Augmentation(rotate90=True, hue=0.05)
        >>> draw = augmentation.draw("5f36...", view=1, seed=0)  # depends on nothing else
        >>> draw == augmentation.draw("5f36...", view=1, seed=0)
        True
    """

    horizontal_flip: bool = option(
        True, "Mirror half of the augmented views; not for digits or text."
    )
    vertical_flip: bool = option(
        False,
        "Turn half of the augmented views upside down.",
        flag="vertical-flip/no-vertical-flip",
    )
    rotate90: bool = option(
        False,
        "Rotate views by 0, 90, 180 or 270 degrees, for images that have no upper side.",
        flag="rotate90/no-rotate90",
    )
    crop: float = option(
        0.5, "Smallest share of the area that a crop keeps.", minimum=1e-3, maximum=1
    )
    crop_ratio: float = option(
        1.333, "Largest stretch of a crop's width against its height.", minimum=1, maximum=10
    )
    scale: float = option(0.0, "Largest enlargement before the crop.", minimum=0, maximum=4)
    brightness: float = option(
        0.1, "Largest shift of brightness, as a share of the range.", minimum=0, maximum=1
    )
    contrast: float = option(0.1, "Largest relative change of contrast.", minimum=0, maximum=1)
    saturation: float = option(0.0, "Largest relative change of saturation.", minimum=0, maximum=1)
    hue: float = option(
        0.0, "Largest turn of the hue, as a share of the circle.", minimum=0, maximum=0.5
    )

    def __post_init__(self) -> None:
        check_options(self, DataError)

    def draw(self, sha256: str, view: int, seed: int) -> Draw:
        """Draw the random changes of one view: a pure function of content, view and seed.

        The random numbers are the bytes of SHAKE-256 over the three, so they depend on no
        generator's state, on no other image and on no library version.

        Args:
            sha256: Hex digest of the image file's bytes.
            view: Number of the view, at least 1; view 0 is never augmented.
            seed: Random seed, any integer.
        """
        # 16 uniform numbers in [0, 1), of which 12 are used, so that more changes find their own.
        bits = hashlib.shake_256(f"{sha256}/{view}/{seed}".encode()).digest(4 * 16)
        u = [number / 2**32 for number in struct.unpack("<16I", bits)]
        width, height = self._crop_size(u[0], u[1], u[11])
        left, top = float(u[2] * (1 - width)), float(u[3] * (1 - height))
        return Draw(
            box=(left, top, left + width, top + height),
            mirror=self.horizontal_flip and bool(u[4] < 0.5),
            flip=self.vertical_flip and bool(u[5] < 0.5),
            quarter_turns=int(u[6] * 4) if self.rotate90 else 0,
            brightness=float(self.brightness * (2 * u[7] - 1)),
            contrast=float(1 + self.contrast * (2 * u[8] - 1)),
            saturation=float(1 + self.saturation * (2 * u[9] - 1)),
            hue=float(self.hue * (2 * u[10] - 1)),
        )

    def _crop_size(self, u_area: float, u_ratio: float, u_scale: float) -> tuple[float, float]:
        """Return width and height as shares of the sides; the ratio is uniform in its logarithm."""
        area = self.crop + (1 - self.crop) * u_area
        ratio = math.exp((2 * u_ratio - 1) * math.log(self.crop_ratio))
        enlarged = 1 + self.scale * u_scale
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        return min(width, 1.0) / enlarged, min(height, 1.0) / enlarged


@dataclass(frozen=True)
class Draw:
    """The random changes of one view, made in the order of the attributes.

    Attributes:
        box: Crop as left, top, right, bottom, each a share of the side, [0, 1].
        mirror: Swap left and right.
        flip: Swap top and bottom.
        quarter_turns: Turns by 90 degrees, 0 to 3.
        brightness: Added, as a share of the full range.
        contrast: Factor on the distance to mid-grey.
        saturation: Factor on the distance to grey.
        hue: Turn of the hue, as a share of the full circle.
    """

    box: tuple[float, float, float, float]
    mirror: bool = False
    flip: bool = False
    quarter_turns: int = 0
    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    @property
    def is_tone(self) -> bool:
        """Whether colour changes by brightness and contrast alone: one map for all channels."""
        return (self.saturation, self.hue) == (1.0, 0.0) and not self._keeps_colour

    @property
    def _keeps_colour(self) -> bool:
        return (self.brightness, self.contrast, self.saturation, self.hue) == (0.0, 1.0, 1.0, 0.0)

    def levels(self) -> list[int]:
        """Return each level after brightness and contrast: 256 integers in [0, 255]."""
        shift = 255 * self.brightness + 127.5 * (1 - self.contrast)
        return [min(max(int(self.contrast * x + shift + 0.5), 0), 255) for x in range(256)]

    def colour_matrix(self) -> tuple[float, ...] | None:
        """Return the affine colour map, None for the identity.

        Returns:
            12 numbers, the rows of a 3 x 4 matrix that takes (red, green, blue, 1), levels in
            [0, 255], to (red, green, blue). Saturation and hue scale and turn the chroma plane of
            YIQ; contrast scales about mid-grey, x -> c (x - 127.5) + 127.5.
        """
        if self._keeps_colour:
            return None
        import numpy as np  # here, so that the options can be listed without it

        cos, sin = math.cos(2 * math.pi * self.hue), math.sin(2 * math.pi * self.hue)
        yiq = np.eye(3)
        yiq[1:, 1:] = self.saturation * np.array([[cos, -sin], [sin, cos]])
        linear = self.contrast * (np.linalg.inv(_YIQ) @ yiq @ np.array(_YIQ))
        shift = 255 * self.brightness + 127.5 * (1 - self.contrast)
        return tuple(float(x) for row in linear for x in (*row, shift))
