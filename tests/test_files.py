"""Small files and folders: whole or not there, and read as they were written."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubretrain.csv_tables import (
    INTEGER,
    as_cell,
    of_cell,
    read_table,
    without_escapes,
    write_table,
)
from hubretrain.files import (
    file_sha256,
    folder_aside,
    read_record,
    replace_folder,
    whole_file,
    write_record,
)
from tests.samples import threads_take_turns


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


@pytest.mark.parametrize("odd", ["a\rb", "a\r\nb", "a\nb", 'a "b", c', "\r"])
def test_a_table_is_read_as_it_was_written_whatever_its_names_hold(
    odd: str, tmp_path: Path
) -> None:
    table = pd.DataFrame({"path": [odd, "plain"], f"p({odd})": [0.1 + 0.2, 1e-300], "n": [1, 2]})
    write_table(tmp_path / "table.csv", table)
    found = pd.read_csv(tmp_path / "table.csv", keep_default_na=False, dtype={"path": str})
    pd.testing.assert_frame_equal(found, table, check_exact=True)


def test_nothing_is_quoted_that_needs_no_quotes(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", pd.DataFrame({"path": ["a b"], "n": [0.5], "none": [None]}))
    assert (tmp_path / "table.csv").read_bytes() == b"path,n,none\na b,0.5,\n"


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        (tmp_path / "plain").touch()
        with whole_file(tmp_path / "whole") as aside:
            assert aside.stat().st_mode & 0o777 == 0o666 & ~mask
        assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_digest_of_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "folds.csv")
    with pytest.raises(OSError, match="it is a named pipe, not a regular file"):
        file_sha256(tmp_path / "folds.csv")


def test_a_record_or_a_table_that_lost_its_digest_is_damaged(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", {"l2": 10})
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace("sha256", "sha255").replace("10", "11"))
    with pytest.raises(ValueError, match="its content is not the one of its sha256"):
        read_record(tmp_path / "a.json")
    write_table(tmp_path / "a.csv", pd.DataFrame({"n": [10]}), digested=True)
    assert read_table(tmp_path / "a.csv", {"n": INTEGER}, digested=True)["n"].tolist() == [10]
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_text(text.replace("sha256", "sha255").replace("10", "11"))
    with pytest.raises(ValueError, match="it has no digest"):
        read_table(tmp_path / "a.csv", {"n": INTEGER}, digested=True)


def test_no_file_written_in_threads_is_writable_for_everyone_nor_is_the_umask_changed(
    tmp_path: Path,
) -> None:
    def write(number: int) -> int:
        path = tmp_path / str(number)
        with whole_file(path) as aside:
            aside.write_text("text")
        return path.stat().st_mode & 0o777

    with umask(0o027), threads_take_turns(), ThreadPoolExecutor(4) as pool:
        assert set(pool.map(write, range(100))) == {0o640}


TEXTS = st.text(st.sampled_from("'=+-@\t\r\n1.e aé\uff1d\u2028\u202e\x1b\",;"), max_size=6)


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_no_cell_of_a_table_is_a_formula_and_each_is_read_as_it_was_written(texts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        write_table(path, pd.DataFrame({"text": ["", *texts], "number": -1.5}))
        written = pd.read_csv(path, dtype={"text": str}, keep_default_na=False)
    assert without_escapes(written)["text"].tolist() == ["", *texts]
    assert written["number"].tolist() == [-1.5] * (len(texts) + 1)
    for cell in written["text"]:
        if re.match("[\t\r\n]*[=+\\-@\uff1d\uff0b\uff0d\uff20]", cell):
            assert float(cell) == float(cell)  # a number is harmless


@given(st.text(), st.text("'=+-@x1"))
def test_a_text_becomes_a_cell_and_back(one, other):
    for text in (one, other):
        assert of_cell(as_cell(text)) == text
