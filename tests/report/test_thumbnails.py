from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hubretrain.files import file_sha256
from hubretrain.report import curves
from hubretrain.report.thumbnails import make_thumbnails
from tests.report.samples import predictions
from tests.samples import encoded, write_digits


def test_thumbnails_lie_where_they_are_said_to_and_changed_files_have_none(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = [f"{i}.png" for i in range(20)]
    for path in paths:
        ink = random.integers(0, 255, 3)
        pixels = np.broadcast_to(ink, (30, 40, 3)).astype(np.uint8)
        (tmp_path / path).write_bytes(encoded(pixels))
    sha256s = [file_sha256(tmp_path / path) for path in paths]
    (tmp_path / "3.png").write_bytes(encoded(np.zeros((30, 40, 3), np.uint8)))
    (tmp_path / "4.png").unlink()
    found = make_thumbnails(tmp_path, paths, sha256s, max_pixels=20 * 32 * 24)
    assert (found.width, found.height) == (32, 24)
    assert found.missing[3] == "its bytes have changed"
    assert found.missing[4] == "cannot be read (No such file or directory)"
    assert found.index[[3, 4]].tolist() == [-1, -1]
    (sheet,) = (
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in found.sheets
    )
    assert found.missing[19] == "there are too many images for a page"
    for row in (0, 5, 17):
        at = found.index[row]
        left, top = at % found.columns * 32, at // found.columns * 24
        shown = np.asarray(sheet.convert("RGB"), int)[top + 8 : top + 16, left + 8 : left + 24]
        small = ImageOps.fit(Image.open(tmp_path / paths[row]), (32, 24))
        assert np.abs(shown.mean(axis=(0, 1)) - np.asarray(small, int)[12, 16]).max() < 12


def test_ten_thousand_photographs_stay_under_twelve_megabytes(tmp_path: Path) -> None:
    # 10,000 thumbnails cost what their pixels cost; of 200 photographs a share of the budget.
    write_digits(tmp_path, 1)
    random = np.random.default_rng(0)
    paths = []
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    for i in range(200):
        left, top = random.integers(0, 440), random.integers(0, 280)
        path = f"{i}.jpg"
        pixels = photographs[i % 2][top : top + 140, left : left + 190]
        (tmp_path / path).write_bytes(encoded(np.ascontiguousarray(pixels), "JPEG"))
        paths.append(path)
    budget = 22_000_000 * 200 // 10_000
    found = make_thumbnails(tmp_path, paths, [""] * 200, max_pixels=budget)
    pictures = sum(map(len, found.sheets)) * 50
    said, _ = predictions(10_000, 7)
    order, thousandths = curves.top_classes(said)
    of_models = 5 * len(json.dumps([order.tolist(), thousandths.tolist()], separators=(",", ":")))
    paths_and_rows = 10_000 * (40 + 5 * 10)
    assert pictures + of_models + paths_and_rows < 12_000_000
