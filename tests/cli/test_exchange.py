"""hubretrain cache import and export, as they are typed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hubretrain.cli import main
from tests.samples import write_digits


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with digits, and features of them that are no module's."""
    monkeypatch.chdir(tmp_path)
    digits = write_digits(Path("data/digits"), 60)
    paths = sorted(path.relative_to(digits).as_posix() for path in digits.rglob("*.png"))
    Path("ids.txt").write_text("\n".join(paths))
    np.save("dino.npy", np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32))
    return tmp_path


def invoke(*arguments, code=0):
    ran = CliRunner().invoke(main, list(map(str, arguments)))
    assert ran.exit_code == code, ran.output
    return ran


def test_features_come_in_and_leave_by_two_commands(place):
    said = invoke("cache", "import", "dino.npy", "ids.txt", "data/digits").stdout
    assert "cache/digits/dino.h5: 60 images, 7 features from dino.npy.\n" in said
    assert said.endswith("Next: hubretrain fit data/digits\n")
    assert "complete and undamaged" in invoke("cache", "verify").stdout
    assert "out/dino.npz: 60 vectors of dino." in (
        invoke("cache", "export", "--to", "npz", "--out", "out", "data/digits").stdout
    )
    np.testing.assert_array_equal(np.load("out/dino.npz")["vector"], np.load("dino.npy"))
    again = invoke("cache", "import", "out/dino.npz", "path", "--name", "again")
    assert "cache/digits/again.h5: 60 images, 7 features from out/dino.npz.\n" in again.stdout


def test_sentences_of_import_and_export_name_flags(place):
    invoke("cache", "import", "dino.npy", "ids.txt")
    np.save("dino.npy", np.load("dino.npy") + 1)
    said = invoke("cache", "import", "dino.npy", "ids.txt", code=1).stderr
    assert "use another --cache folder, or --overwrite to compute it again." in said
    said = invoke("cache", "import", "dino.npy", "ids.txt", "--name", "a/b", code=1).stderr
    assert "--name is 'a/b'; expected letters, digits" in said
    said = invoke("cache", "export", "--module", "vgg", code=1).stderr
    assert "vgg is not cached in cache/digits/ (there are: dino)" in said
