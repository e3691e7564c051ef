from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubretrain.data.options import SplitOptions
from hubretrain.data.splitting.folds import (
    NEW,
    TEST,
    TRAIN,
    changed_since_cut,
    previous_parts,
    read_cut_with,
    read_folds,
    write_folds,
)
from hubretrain.errors import SplitError

NAMES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)


@given(st.lists(st.tuples(NAMES, NAMES, st.integers(TRAIN, 99)), max_size=8))
@settings(max_examples=30)
def test_folds_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]]
) -> None:
    table = pd.DataFrame(rows, columns=["path", "label", "fold"])
    table = table.assign(group=table.path, sha256="0" * 64).astype({"fold": np.int8})
    path = tmp_path_factory.mktemp("folds") / "folds.csv"
    write_folds(path, table)
    again = read_folds(path)
    assert list(again.columns) == ["path", "sha256", "label", "group", "fold"]
    for column in again.columns:
        assert list(again[column]) == list(table[column])


def test_folds_csv_is_readable_by_people(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"path": list("abc"), "label": 1, "group": 2, "fold": [TEST, 3, TRAIN], "more": 0}
    )
    write_folds(tmp_path / "folds.csv", table)
    assert (tmp_path / "folds.csv").read_text() == (
        "path,sha256,label,group,fold\na,,1,2,test\nb,,1,2,3\nc,,1,2,train\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_an_earlier_part_is_found_by_content_first_then_by_path() -> None:
    earlier = pd.DataFrame(
        {"path": list("abcd"), "sha256": ["1", "2", "3", "3"], "fold": [0, 1, 2, TEST]}
    )
    paths, sha256s = ["renamed", "b", "edited", "c", "d"], ["1", "9", "8", "3", "3"]
    assert list(previous_parts(earlier, paths, sha256s)) == [0, 1, NEW, 2, TEST]
    assert list(previous_parts(earlier, ["a", "z"])) == [0, NEW]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; expected a file of folds."),
        ("path,label\n", "no column fold, group; expected path, sha256, label, group, fold."),
        (
            "path,label,group,fold\na,b,c,0\na,b,c,first\n",
            "line 3: fold is 'first'; expected test, train or a number from 0.",
        ),
        ("", "is damaged or of another version (No columns"),
    ],
)
def test_a_file_that_is_not_folds_is_an_error_that_says_where(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "folds.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SplitError) as caught:
        read_folds(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_table_without_parts_cannot_be_written(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["a"], "label": ["b"], "group": ["c"]})
    with pytest.raises(SplitError, match="The table of folds has no column fold"):
        write_folds(tmp_path / "folds.csv", table)
    with pytest.raises(SplitError, match=r"The folds run from -3 to -3; expected -2 \(train\)"):
        write_folds(tmp_path / "folds.csv", table.assign(fold=NEW))
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_changes_after_it_was_cut_is_known_and_its_options_are_not_guessed(
    tmp_path: Path,
) -> None:
    path, options = tmp_path / "folds.csv", SplitOptions(n_folds=3, test_fraction=0.25, seed=7)
    table = pd.DataFrame({"path": list("abc"), "label": 1, "group": 2, "fold": [TEST, 1, 0]})
    write_folds(path, table, options)
    assert read_cut_with(path) == options
    assert not changed_since_cut(path)
    path.write_text(path.read_text().replace("b,,1,2,1", "b,,1,2,0"))
    assert changed_since_cut(path)
    file = tmp_path / "folds.json"
    file.write_text(file.read_text().replace("0.25", "0.26"))
    with pytest.raises(SplitError, match=r"folds\.json is damaged .*; remove it, and give "):
        read_cut_with(path)
    file.unlink()
    assert read_cut_with(path) is None
    assert not changed_since_cut(path)
