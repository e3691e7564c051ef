"""The parts of a split, and their file, `folds.csv`.

A split gives every image one part: a fold 0, 1, ..., `TEST`, or `TRAIN` (trained on by every
fold and validated by none). The file has columns `path, sha256, label, group, fold`, one row per
image, with `fold` one of `test`, `train`, 0, 1, ... Beside it `folds.json` holds the options
that it was cut with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.csv_tables import NAME, read_table, write_table
from hubretrain.data.options import SplitOptions
from hubretrain.errors import SplitError, unreadable
from hubretrain.files import file_sha256, read_json, read_record, write_record

_REMEDY = "write it again with `hubretrain data split`"
_FORGET = "remove it, and give `n_folds`, `test_fraction` and `seed` as before"
_FOLDS_DIGEST = "folds_sha256"
TEST = -1
TRAIN = -2
NEW = -3
"""An image that an earlier split did not hold; no part of a split that is cut."""

COLUMNS = ("path", "sha256", "label", "group", "fold")
N_FOLDS_LIMIT = 100
PARTS = f"{TRAIN} (train), {TEST} (test), or a fold from 0 to {N_FOLDS_LIMIT - 1}"

Parts = npt.NDArray[np.int8]
Column = Sequence[Any] | AnyArray | pd.Series


def part_name(part: int) -> str:
    """Return the name of a part in a sentence."""
    return {TEST: "the test split", TRAIN: "the training part"}.get(part, f"fold {part}")


def previous_parts(
    earlier: pd.DataFrame, paths: Sequence[str], sha256s: Sequence[str] | None = None
) -> Parts:
    """Look up the parts of images in an earlier split, for `split_images(previous=...)`.

    Args:
        earlier: Table as `read_folds` returns it.
        paths: Path of each image, shape (n_images,).
        sha256s: Digest of each image, shape (n_images,). An image is found by its content first,
            so that a renamed file keeps its part, then by its path.

    Returns:
        int8 of shape (n_images,): the earlier part, or `NEW`.
    """
    folds = earlier["fold"].tolist()
    by_path = dict(zip(earlier["path"], folds, strict=True))
    if sha256s is None:
        return np.array([by_path.get(path, NEW) for path in paths], np.int8)
    by_content = dict(zip(earlier["sha256"], folds, strict=True))
    by_content.pop("", None)
    # Exact duplicates may be in several parts: the same path with the same content comes first.
    by_both = dict(zip(zip(earlier["path"], earlier["sha256"], strict=True), folds, strict=True))
    parts = [
        by_both.get((path, sha256), by_content.get(sha256, by_path.get(path, NEW)))
        for path, sha256 in zip(paths, sha256s, strict=True)
    ]
    return np.array(parts, np.int8)


def write_folds(
    path: str | os.PathLike[str], table: pd.DataFrame, cut_with: SplitOptions | None = None
) -> None:
    """Write `folds.csv`, and `folds.json` where the options are given.

    Args:
        path: The file, replaced as a whole.
        table: Columns path, label, group, fold (the parts of `split_images`) and, where known,
            sha256. Other columns are left out.
        cut_with: The options that it was cut with.

    Raises:
        SplitError: A column is missing, or a value is no part of a split.
        WriteError: The file cannot be written.
    """
    _check_columns("The table of folds", table, set(COLUMNS) - {"sha256"})
    parts = table["fold"].to_numpy(int)
    if len(parts) and (parts.min() < TRAIN or parts.max() >= N_FOLDS_LIMIT):
        raise SplitError(f"The folds run from {parts.min()} to {parts.max()}; expected {PARTS}.")
    out = table.reindex(columns=list(COLUMNS), fill_value="")
    names = {TEST: "test", TRAIN: "train"}
    out["fold"] = [names.get(part, str(part)) for part in parts.tolist()]
    write_table(Path(path), out)
    if cut_with is not None:
        values = {**asdict(cut_with), _FOLDS_DIGEST: file_sha256(Path(path))}
        write_record(Path(path).with_suffix(".json"), values)


def read_cut_with(path: str | os.PathLike[str]) -> SplitOptions | None:
    """Return the options that `folds.csv` was cut with; None where they are not known.

    Raises:
        SplitError: `folds.json` is damaged.
    """
    if not os.path.exists(path):
        return None
    with contextlib.suppress(FileNotFoundError):
        return read_json(Path(path).with_suffix(".json"), SplitOptions, SplitError, _FORGET)
    return None


def changed_since_cut(path: str | os.PathLike[str]) -> bool:
    """Return whether `folds.csv` is another one than was cut, as far as `folds.json` tells."""
    try:
        digest = read_record(Path(path).with_suffix(".json")).get(_FOLDS_DIGEST)
    except (OSError, ValueError):
        return False
    return digest is not None and digest != file_sha256(Path(path))


def read_folds(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read `folds.csv` as `write_folds` wrote it.

    Returns:
        Columns path, sha256 (blank where unknown), label, group: text; fold: int8, `TEST`,
        `TRAIN` or a fold.

    Raises:
        SplitError: There is no such file, a column is missing, or a value is no fold.
    """
    table: pd.DataFrame
    try:
        table = read_table(path, dict.fromkeys(COLUMNS, NAME))
    except FileNotFoundError as error:
        raise SplitError(f"{path} does not exist; expected a file of folds.") from error
    except (OSError, ValueError) as error:
        raise SplitError(unreadable(path, error, _REMEDY)) from error
    _check_columns(str(path), table, set(COLUMNS) - {"sha256"})
    table = table.reindex(columns=list(COLUMNS), fill_value="")
    parts = {"test": TEST, "train": TRAIN} | {str(i): i for i in range(N_FOLDS_LIMIT)}
    for row, fold in enumerate(table["fold"], start=2):
        if fold not in parts:
            raise SplitError(
                f"{path}, line {row}: fold is {fold!r}; expected test, train or a number from 0."
            )
    table["fold"] = np.array([parts[fold] for fold in table["fold"]], np.int8)
    return table


def _check_columns(where: str, table: pd.DataFrame, expected: set[str]) -> None:
    missing = sorted(expected - set(table.columns))
    if missing:
        raise SplitError(
            f"{where} has no column {', '.join(missing)}; expected {', '.join(COLUMNS)}."
        )
