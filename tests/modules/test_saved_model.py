from __future__ import annotations

import shutil

from hubretrain.modules.saved_model import tree_sha256
from tests.samples import write_module


def test_a_moved_folder_is_the_same_module_and_a_changed_one_is_not(tmp_path):
    folder = write_module(tmp_path / "a", seed=1)
    before = tree_sha256(folder)
    shutil.move(folder, tmp_path / "b")
    assert tree_sha256(tmp_path / "b") == before
    variables = next((tmp_path / "b" / "variables").glob("*.data*"))
    data = bytearray(variables.read_bytes())
    data[5] ^= 1
    variables.write_bytes(data)
    assert tree_sha256(tmp_path / "b") != before
