from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hubretrain.data.images.headers import COLUMNS, read_headers
from tests.samples import encoded


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_headers_are_what_pillow_reads(tmp_path: Path, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    (tmp_path / "x.img").write_bytes(encoded(pixels, form))
    (row,) = read_headers(tmp_path, ["x.img"]).to_dict("records")
    with Image.open(tmp_path / "x.img") as image:
        assert (row["format"], row["mode"]) == (form, image.mode)
    assert (row["width"], row["height"]) == (30, 20)
    assert row["n_bytes"] == (tmp_path / "x.img").stat().st_size


def test_what_is_no_image_has_blank_headers_and_its_size(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"not an image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    told: list[int] = []
    table = read_headers(tmp_path, ["text.jpg", "empty.jpg", "gone.jpg"], told.append)
    assert list(table.columns) == list(COLUMNS)
    assert table["n_bytes"].tolist() == [12, 0, 0]
    assert table["format"].tolist() == ["", "", ""]
    assert sum(told) == 3
    assert len(read_headers(tmp_path, [])) == 0
