"""A saliency map over its image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

# Inferno of matplotlib at seven places: dark is nothing, bright is most; told apart in grey too.
_COLOURS = np.array(
    [
        (0, 0, 4),
        (50, 10, 94),
        (120, 28, 109),
        (188, 55, 84),
        (237, 105, 37),
        (251, 180, 26),
        (252, 255, 164),
    ],
    float,
)
_TOP = 99.0  # percentile that is brightest: a few pixels must not darken the rest
_BLUR = {"smoothgrad": 1 / 80, "integrated": 1 / 80}  # radius, as a share of the side


def eight_bits(saliency: npt.NDArray[np.floating[Any]], method: str) -> npt.NDArray[np.uint8]:
    """A map as levels from 0 to 255, fine maps blurred a little so that the eye sees them."""
    top = float(np.percentile(saliency, _TOP)) or float(saliency.max())
    levels = np.clip(saliency / top if top > 0 else saliency * 0, 0, 1)
    picture = Image.fromarray(np.rint(255 * levels).astype(np.uint8))
    radius = _BLUR.get(method, 0.0) * picture.width
    if radius:
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture)


def overlaid(image: npt.NDArray[np.uint8], levels: npt.NDArray[np.uint8]) -> Image.Image:
    """The image in grey under the map in colour.

    Args:
        image: uint8 (size, size, 3).
        levels: uint8 (size, size).
    """
    share = levels.astype(float) / 255
    at = share * (len(_COLOURS) - 1)
    low = np.minimum(at.astype(int), len(_COLOURS) - 2)
    colour = _COLOURS[low] + (at - low)[..., None] * (_COLOURS[low + 1] - _COLOURS[low])
    grey = image.astype(float).mean(axis=-1, keepdims=True)
    strength = (0.25 + 0.6 * share)[..., None]
    return Image.fromarray(np.clip((1 - strength) * grey + strength * colour, 0, 255).astype("u1"))


def side_by_side(pictures: list[Image.Image], titles: list[str]) -> Image.Image:
    """Pictures in a row, each with its title above."""
    gap, top = 6, 16
    width = sum(one.width + gap for one in pictures) - gap
    sheet = Image.new("RGB", (width, top + max(one.height for one in pictures)), "white")
    pen, left = ImageDraw.Draw(sheet), 0
    for picture, title in zip(pictures, titles, strict=True):
        sheet.paste(picture, (left, top))
        pen.text((left + 1, 2), title, fill="black")
        left += picture.width + gap
    return sheet
