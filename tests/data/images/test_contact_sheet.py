from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from hubretrain.data.dataset import open_dataset
from hubretrain.data.images.augmentation import Augmentation
from hubretrain.data.images.contact_sheet import draw_preview
from hubretrain.data.images.decoding import decode, view
from hubretrain.errors import DataError
from tests.samples import write_digits


def test_the_preview_shows_the_very_views_that_are_cached(tmp_path):
    data = open_dataset(write_digits(tmp_path / "data", 24))
    augmentation = Augmentation(vertical_flip=True, rotate90=True, scale=0.3, hue=0.1)
    n_images = draw_preview(data.root, data.images, tmp_path / "sheet.png", 3, augmentation, seed=5)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert n_images == 8
    assert sheet.shape == (8 * 166 + 6, 3 * 166 + 6, 3)
    content = (data.root / data.images["path"][0]).read_bytes()
    draw = augmentation.draw(hashlib.sha256(content).hexdigest(), 2, 5)
    shown = sheet[6 : 6 + 160, 6 + 2 * 166 : 6 + 2 * 166 + 160]
    assert np.array_equal(shown, view(decode(content), 160, draw))


def test_a_preview_that_cannot_be_drawn_says_why(tmp_path):
    data = open_dataset(write_digits(tmp_path / "data", 24))
    with pytest.raises(DataError, match=r"sheet.xyz cannot be written \(unknown file extension"):
        draw_preview(data.root, data.images, tmp_path / "sheet.xyz", 3, Augmentation(), 0)
    for n_views in (-3, 0, 13):
        with pytest.raises(DataError, match=rf"`n_views` is {n_views}; a preview shows 1 to 12"):
            draw_preview(data.root, data.images, tmp_path / "sheet.png", n_views, Augmentation(), 0)
    for file in (tmp_path / "data").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image can be decoded, so there are no views"):
        draw_preview(data.root, data.images, tmp_path / "sheet.png", 3, Augmentation(), 0)
