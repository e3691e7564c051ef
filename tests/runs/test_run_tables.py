"""The tables of a run: what is written is read, with the types that it had."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hubretrain.csv_tables import FLAG, NAME, TEXT, write_table
from hubretrain.errors import RunError
from hubretrain.runs import HISTORY, LEADERBOARD, OUT_OF_FOLD, RunTable, run_tables

NAMES = ["2024", "None", "NA", "nan", "1e5", " x ", "", 'a "b"', "two\nlines", "a\rb", "True", "∅"]
NAMES += [
    "=1+1",
    "-x",
    "-1",
    "+",
    "@a",
    "'=x",
    "''-x",
    "\u2028",
    "\u202egpj",
    "\x1b[31mred",
    "\x85",
]
EVERY_TABLE = [value for value in vars(run_tables).values() if isinstance(value, RunTable)]


def rows_of(table, names):
    """A table whose names are these, with typed values in its other columns."""
    values = {NAME: names, TEXT: [None, *names[1:]], FLAG: [n == names[0] for n in names]}
    numbers = np.linspace(0.1, 0.9, len(names)) / 3
    columns = {
        column: values.get(kind, pd.array(range(len(names)), "Int64") if "nt" in kind else numbers)
        for column, kind in table.columns.items()
    }
    return pd.DataFrame({**columns, f"p({names[0]})": numbers})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", EVERY_TABLE, ids=lambda table: table.file_name)
def test_a_name_is_text_whatever_it_looks_like(tmp_path, table, name):
    for names in ([name], [name, "other"]):
        written = rows_of(table, names)
        table.write(tmp_path, written)
        read = table.read(tmp_path)
        assert list(read.columns) == list(written.columns)
        for column, kind in table.columns.items():
            if kind == NAME:
                assert read[column].tolist() == names
            elif kind == TEXT:
                assert read[column].isna().tolist() == [True] + [False] * (len(names) - 1)
            elif kind == FLAG:
                assert read[column].dtype == bool
                assert read[column].tolist() == written[column].tolist()
        assert read[f"p({name})"].tolist() == written[f"p({name})"].tolist()


def test_missing_numbers_stay_missing_and_whole_numbers_whole(tmp_path):
    board = rows_of(LEADERBOARD, ["a", "b"]).assign(accuracy=[0.1 + 0.2, np.nan], gflops=np.nan)
    board["rank"] = pd.array([1, None], "Int64")
    LEADERBOARD.write(tmp_path, board)
    read = LEADERBOARD.read(tmp_path)
    assert read["rank"].dtype == "Int64"
    assert read["rank"].isna().tolist() == [False, True]
    assert read["accuracy"][0] == 0.1 + 0.2
    assert read[["accuracy", "gflops"]].isna().to_numpy().tolist() == [[False, True], [True, True]]


def test_probabilities_that_were_written_in_float32_are_the_same(tmp_path):
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 50).astype(np.float32)
    table = rows_of(OUT_OF_FOLD, [str(i) for i in range(50)])
    for c in range(3):
        table[f"p({c})"] = probs[:, c]
    OUT_OF_FOLD.write(tmp_path, table)
    read = OUT_OF_FOLD.read(tmp_path)[["p(0)", "p(1)", "p(2)"]].to_numpy()
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read.astype(np.float32), probs)


def test_what_is_missing_or_damaged_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"history\.csv is missing; run `hubretrain finetune` again"):
        HISTORY.read(tmp_path)
    with pytest.raises(RunError, match=r"leaderboard\.csv is missing; run `hubretrain fit` again"):
        LEADERBOARD.read(tmp_path)
    for text in ("epoch,kept\n1,perhaps\n", "epoch,kept\none,True\n", "", 'epoch,kept\n"1,True\n'):
        HISTORY.path(tmp_path).write_text(text)
        with pytest.raises(RunError, match=r"history\.csv is damaged or of another") as raised:
            HISTORY.read(tmp_path)
        assert "\n" not in str(raised.value)
    history = pd.DataFrame({"epoch": [0, 1], "phase": "all", "loss": [0.5, 0.25], "kept": True})
    HISTORY.write(tmp_path, history)
    assert list(HISTORY.read(tmp_path)) == list(history)
    whole = HISTORY.path(tmp_path).read_text()
    for text in (whole.replace("0.25", "0.35"), whole[: whole.rindex("1,all")]):
        HISTORY.path(tmp_path).write_text(text)
        with pytest.raises(RunError, match=r"its content is not the one of its digest"):
            HISTORY.read(tmp_path)
    write_table(HISTORY.path(tmp_path), history.drop(columns="kept"), digested=True)
    with pytest.raises(RunError, match=r"has no column 'kept': another version wrote it"):
        HISTORY.read(tmp_path)


def test_a_table_without_a_declared_column_is_not_written(tmp_path):
    with pytest.raises(KeyError, match="phase"):
        HISTORY.write(tmp_path, pd.DataFrame({"epoch": [0]}))
    assert not HISTORY.path(tmp_path).exists()
