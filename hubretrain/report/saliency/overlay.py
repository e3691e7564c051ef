"""Draws a saliency map over its image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

# Matplotlib's inferno at seven points: black is the least, bright the most; monotone in grey too.
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
_TOP_PERCENTILE = 99.0  # the brightest level: a few pixels must not darken the rest
_BLUR = {"smoothgrad": 1 / 80, "integrated": 1 / 80}  # radius, as a share of the side
_GAP, _TITLE_HEIGHT = 6, 16  # pixels


def eight_bits(saliency: npt.NDArray[np.floating[Any]], method: str) -> npt.NDArray[np.uint8]:
    """Scale a saliency map to levels from 0 to 255; maps per pixel are blurred to be visible."""
    top = float(np.percentile(saliency, _TOP_PERCENTILE)) or float(saliency.max())
    levels = np.clip(saliency / top if top > 0 else saliency * 0, 0, 1)
    picture = Image.fromarray(np.rint(255 * levels).astype(np.uint8))
    radius = _BLUR.get(method, 0.0) * picture.width
    if radius:
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture)


def overlaid(image: npt.NDArray[np.uint8], levels: npt.NDArray[np.uint8]) -> Image.Image:
    """Draw a map in colour over its image in grey.

    Args:
        image: uint8 (size, size, 3).
        levels: uint8 (size, size).
    """
    share = levels.astype(float) / 255
    position = share * (len(_COLOURS) - 1)
    low = np.minimum(position.astype(int), len(_COLOURS) - 2)
    between = (position - low)[..., None]
    colour = _COLOURS[low] + between * (_COLOURS[low + 1] - _COLOURS[low])
    grey = image.astype(float).mean(axis=-1, keepdims=True)
    opacity = (0.25 + 0.6 * share)[..., None]
    return Image.fromarray(np.clip((1 - opacity) * grey + opacity * colour, 0, 255).astype("u1"))


def side_by_side(pictures: list[Image.Image], titles: list[str]) -> Image.Image:
    """Draw pictures in a row, each with its title above."""
    width = sum(picture.width + _GAP for picture in pictures) - _GAP
    height = _TITLE_HEIGHT + max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (width, height), "white")
    pen, left = ImageDraw.Draw(sheet), 0
    for picture, title in zip(pictures, titles, strict=True):
        sheet.paste(picture, (left, _TITLE_HEIGHT))
        pen.text((left + 1, 2), title, fill="black")
        left += picture.width + _GAP
    return sheet
