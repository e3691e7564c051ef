"""How augmented views differ from their image: the ranges, and the random draw of one view."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from hubretrain.errors import DataError

# Luma weights of ITU-R BT.601 and the YIQ axes, for saturation and hue.
# https://en.wikipedia.org/wiki/YIQ
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


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
    """

    horizontal_flip: bool = True
    vertical_flip: bool = False
    rotate90: bool = False
    crop: float = 0.5
    crop_ratio: float = 1.333
    scale: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        bounds = {
            "crop": (1e-3, 1.0),
            "crop_ratio": (1.0, 10.0),
            "scale": (0.0, 4.0),
            "brightness": (0.0, 1.0),
            "contrast": (0.0, 1.0),
            "saturation": (0.0, 1.0),
            "hue": (0.0, 0.5),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(f"`{name}` is {value}; expected {low} to {high}.")

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
        u = np.frombuffer(bits, dtype="<u4").astype(np.float64) / 2**32
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
        cos, sin = math.cos(2 * math.pi * self.hue), math.sin(2 * math.pi * self.hue)
        yiq = np.eye(3)
        yiq[1:, 1:] = self.saturation * np.array([[cos, -sin], [sin, cos]])
        linear = self.contrast * (_RGB @ yiq @ _YIQ)
        shift = 255 * self.brightness + 127.5 * (1 - self.contrast)
        return tuple(float(x) for row in linear for x in (*row, shift))
