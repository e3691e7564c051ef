"""Contact sheet: the augmented views of a few images, one row per image, view 0 on the left."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hubretrain.arrays import Pixels
from hubretrain.data.images.augmentation import Augmentation
from hubretrain.data.images.decoding import decode, read_image_bytes, view
from hubretrain.data.images.reading import Reading
from hubretrain.errors import DataError

N_IMAGES = 8
MAX_PREVIEW_VIEWS = 12
_GAP = 6  # pixels between views


def draw_preview(
    root: Path,
    images: pd.DataFrame,
    file: Path,
    n_views: int,
    augmentation: Augmentation,
    seed: int,
    reading: Reading = Reading(),
) -> int:
    """Write a contact sheet, to look at before anything is computed.

    Args:
        root: The folder that paths are relative to.
        images: Columns `path` and `label`; one image of each class in turn is shown.
        file: The picture; its suffix decides the format.
        n_views: Views per image, 1 to `MAX_PREVIEW_VIEWS`.
        augmentation: How the views differ.
        seed: Random seed of the augmentation.
        reading: How image files are read.

    Returns:
        The number of images shown.

    Raises:
        DataError: No image can be decoded, or the picture cannot be written.
    """
    if not 1 <= n_views <= MAX_PREVIEW_VIEWS:
        raise DataError(f"`n_views` is {n_views}; a preview shows 1 to {MAX_PREVIEW_VIEWS}.")
    sheet, n_images = draw_contact_sheet(root, images, n_views, augmentation, seed, reading=reading)
    if sheet is None:
        raise DataError(f"{root}: no image can be decoded, so there are no views to show.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no format of that suffix
        raise DataError(
            f"{file} cannot be written ({error}); expected a picture such as views.png in a "
            "folder that can be written."
        ) from error
    return n_images


def draw_contact_sheet(
    root: Path,
    images: pd.DataFrame,
    n_views: int,
    augmentation: Augmentation,
    seed: int,
    *,
    n_images: int = N_IMAGES,
    size: int = 160,
    reading: Reading = Reading(),
) -> tuple[Image.Image | None, int]:
    """Draw the views of a few images, one of each class in turn; undecodable ones are skipped.

    Args:
        root: The folder that paths are relative to.
        images: Columns `path` and `label`.
        n_views: Views per image.
        augmentation: How the views differ.
        seed: Random seed of the augmentation.
        n_images: Maximum number of rows.
        size: Height and width of a view, pixels.
        reading: How image files are read.

    Returns:
        The sheet and its number of images; None and 0 where no image can be decoded.
    """
    one_of_each_class_in_turn = images.groupby("label").cumcount().sort_values(kind="stable").index
    rows: list[list[Pixels]] = []
    for path in images["path"][one_of_each_class_in_turn]:
        try:
            data = read_image_bytes(root, path)
            image = decode(data, reading)
        except DataError:
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
