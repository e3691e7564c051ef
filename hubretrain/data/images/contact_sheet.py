"""A contact sheet: the augmented views of a few images, one image a row, view 0 on the left."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hubretrain.data.images.augmentation import Augmentation
from hubretrain.data.images.decoding import Pixels, decode, view
from hubretrain.errors import DataError
from hubretrain.storage import located, read_bytes

N_IMAGES = 8
_GAP = 6


def draw_contact_sheet(
    root: Path,
    images: pd.DataFrame,
    n_views: int,
    augmentation: Augmentation,
    seed: int,
    *,
    n_images: int = N_IMAGES,
    size: int = 160,
) -> tuple[Image.Image | None, int]:
    """Draws the views of a few images, one of each class in turn.

    Args:
        root: The folder that paths are relative to.
        images: Columns path and label.
        n_views: How many views.
        augmentation: How the views differ.
        seed: Of the augmentation.
        n_images: At most so many rows.
        size: Height and width of a view, pixels.

    Returns:
        The sheet and its number of images; None and 0 where no image can be decoded.
    """
    in_turn = images.groupby("label").cumcount().sort_values(kind="stable").index
    rows: list[list[Pixels]] = []
    for path in images["path"][in_turn]:
        try:
            data = read_bytes(located(root, path))
            image = decode(data)
        except (OSError, DataError):
            continue
        sha256 = hashlib.sha256(data).hexdigest()
        draws = [augmentation.draw(sha256, v, seed) if v else None for v in range(n_views)]
        rows.append([view(image, size, draw) for draw in draws])
        if len(rows) == n_images:
            break
    if not rows:
        return None, 0
    step = size + _GAP
    shape = (len(rows) * step + _GAP, n_views * step + _GAP, 3)
    sheet = np.full(shape, 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, pixels in enumerate(row):
            top, left = r * step + _GAP, c * step + _GAP
            sheet[top : top + size, left : left + size] = pixels
    return Image.fromarray(sheet), len(rows)
