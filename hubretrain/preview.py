"""A contact sheet of augmented views, to look at before anything is computed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from hubretrain.augmentation import Augmentation
from hubretrain.dataset import ImageDataset
from hubretrain.errors import DataError
from hubretrain.images import Pixels, decode, view
from hubretrain.storage import located, read_bytes

N_IMAGES = 8
MAX_COLUMNS = 12
_SIZE = 160
_GAP = 6


def draw_preview(
    dataset: ImageDataset, file: Path, n_views: int, augmentation: Augmentation, seed: int
) -> int:
    """Draws the views of a few images, one image a row, view 0 on the left.

    Args:
        dataset: The images; one of each class in turn is shown.
        file: The picture; its ending says the format.
        n_views: How many views, 1 to ``MAX_COLUMNS``.
        augmentation: How the views differ.
        seed: Of the augmentation.

    Returns:
        How many images it shows.

    Raises:
        DataError: No image can be decoded, or the picture cannot be written.
    """
    if not 1 <= n_views <= MAX_COLUMNS:
        raise DataError(f"--views is {n_views}; a preview shows 1 to {MAX_COLUMNS}.")
    n_columns = n_views
    in_turn = dataset.images.groupby("label").cumcount().sort_values(kind="stable").index
    rows: list[list[Pixels]] = []
    for path in dataset.images["path"][in_turn]:
        try:
            data = read_bytes(located(dataset.root, path))
            image = decode(data)
        except (OSError, DataError):
            continue
        sha256 = hashlib.sha256(data).hexdigest()
        draws = [augmentation.draw(sha256, v, seed) if v else None for v in range(n_columns)]
        rows.append([view(image, _SIZE, draw) for draw in draws])
        if len(rows) == N_IMAGES:
            break
    if not rows:
        raise DataError(f"{dataset.root}: no image can be decoded, so there are no views to show.")
    step = _SIZE + _GAP
    shape = (len(rows) * step + _GAP, n_columns * step + _GAP, 3)
    sheet = np.full(shape, 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, pixels in enumerate(row):
            top, left = r * step + _GAP, c * step + _GAP
            sheet[top : top + _SIZE, left : left + _SIZE] = pixels
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(file)
    except (OSError, ValueError) as error:  # Pillow: an ending that names no format
        raise DataError(
            f"{file} cannot be written ({error}); expected a picture such as views.png in a "
            "folder that can be written."
        ) from error
    return len(rows)
