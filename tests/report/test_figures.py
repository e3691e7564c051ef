from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from hubretrain.cli import main
from hubretrain.report.report import write_report
from hubretrain.runs import Run


def test_png_figures_are_written_and_matplotlib_is_asked_for_where_it_is_not(
    tuned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    options = {"output": tmp_path / "page.html", "n_saliency": 0}
    found = write_report(tuned, png=tmp_path / "png", **options)
    names = {file.stem for file in found.pictures}
    assert {"leaderboard", "confusion", "precision_recall", "roc", "calibration", "map"} <= names
    assert {"cost-gflops", "training-0-loss"} <= names
    assert all(Image.open(file).width > 500 for file in found.pictures)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = CliRunner().invoke(main, ["report", str(tuned.folder), "--png", str(tmp_path / "no")])
    assert ran.exit_code == 1
    assert "matplotlib is not installed" in ran.stderr
    assert "pip install 'hubretrain[report]'" in ran.stderr
