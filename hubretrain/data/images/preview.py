"""A contact sheet of augmented views, to look at before anything is computed."""

from __future__ import annotations

from pathlib import Path

from hubretrain.data.dataset import ImageDataset
from hubretrain.data.images.augmentation import Augmentation
from hubretrain.data.images.contact_sheet import draw_contact_sheet
from hubretrain.errors import DataError

MAX_COLUMNS = 12


def draw_preview(
    dataset: ImageDataset, file: Path, n_views: int, augmentation: Augmentation, seed: int
) -> int:
    """Draws the views of a few images, one image a row, view 0 on the left.

    Args:
        dataset: The images; one of each class in turn is shown.
        file: The picture; its ending says the format.
        n_views: How many views, 1 to `MAX_COLUMNS`.
        augmentation: How the views differ.
        seed: Of the augmentation.

    Returns:
        How many images it shows.

    Raises:
        DataError: No image can be decoded, or the picture cannot be written.
    """
    if not 1 <= n_views <= MAX_COLUMNS:
        raise DataError(f"--views is {n_views}; a preview shows 1 to {MAX_COLUMNS}.")
    sheet, n_images = draw_contact_sheet(dataset.root, dataset.images, n_views, augmentation, seed)
    if sheet is None:
        raise DataError(f"{dataset.root}: no image can be decoded, so there are no views to show.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    except (OSError, ValueError) as error:  # Pillow: an ending that names no format
        raise DataError(
            f"{file} cannot be written ({error}); expected a picture such as views.png in a "
            "folder that can be written."
        ) from error
    return n_images
