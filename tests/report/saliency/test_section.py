from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hubretrain.report.report import write_report
from hubretrain.report.run_data import gather
from hubretrain.report.saliency.section import _Maps, _n_kept, _save
from hubretrain.runs import Run
from tests.report.samples import copied


def test_changed_images_and_a_damaged_export_are_told_instead_of_explained(
    tuned: Run, tmp_path: Path
) -> None:
    run = copied(tuned, tmp_path / "run")
    data = gather(run).fit.data
    shutil.copytree(data, tmp_path / "changed")
    for path in (tmp_path / "changed").rglob("*.png"):
        Image.open(path).rotate(90).save(path)
    found = write_report(run, data=tmp_path / "changed", n_saliency=2)
    text = found.page.read_text(encoding="utf-8")
    assert f"none of the images can be read in {tmp_path / 'changed'}, or all have changed" in text
    (run.folder / "export").mkdir()
    (run.folder / "export" / "export.json").write_text("{", encoding="utf-8")
    found = write_report(run, n_saliency=2)
    text = found.page.read_text(encoding="utf-8")
    assert f"No saliency maps: {run.folder / 'export' / 'export.json'} is damaged" in text


def test_the_number_of_maps_of_an_earlier_report_is_known_from_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "saliency.h5"
    assert _n_kept(path) == 0
    levels, numbers = np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2)
    maps = _Maps("a head", ("gradcam",), numbers.astype(np.int64), numbers, levels)
    _save(path, "identity", ["a", "b"], maps)
    assert _n_kept(path) == 2
    assert caplog.text == ""
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert _n_kept(path) == 0
    path.unlink()
    path.mkdir()
    assert _n_kept(path) == 0
    assert caplog.text.count(f"{path} cannot be read (") == 2
