from __future__ import annotations

import os
import time

import pytest

from hubretrain.files import folder_aside, replace_folder


def test_a_folder_is_replaced_whole_and_nothing_is_left_aside(tmp_path):
    folder = tmp_path / "export"
    for text in ("first", "second"):
        with folder_aside(folder) as aside:
            (aside / "new").mkdir()
            (aside / "new" / "file").write_text(text)
            replace_folder(aside / "new", folder)
        assert (folder / "file").read_text() == text
        assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "file").write_text("old")
    with pytest.raises(FileNotFoundError), folder_aside(folder) as aside:
        replace_folder(aside / "new", folder)  # which is not there
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_kill_left_is_removed_a_day_later_and_nothing_else(tmp_path):
    folder = tmp_path / "export"
    names = [".export.making.abcd_123", ".export.making.kept", ".export.my_own_1", ".exports"]
    for name in [*names, ".export.making.12345678"]:
        (tmp_path / name / "new").mkdir(parents=True)
    two_days_ago = time.time() - 2 * 86_400
    for name in names:
        os.utime(tmp_path / name, (two_days_ago, two_days_ago))
    with folder_aside(folder):  # the old export may be in there: it is not at its place
        assert (tmp_path / names[0]).exists()
    folder.mkdir()
    with folder_aside(folder):
        assert not (tmp_path / names[0]).exists()
    assert {p.name for p in tmp_path.iterdir()} == {
        "export",
        *names[1:],
        ".export.making.12345678",
    }
