"""CSV files: typed columns, and texts that no spreadsheet computes."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hubretrain.errors import first_line
from hubretrain.files import read_regular, whole_file

if TYPE_CHECKING:
    import pandas as pd


# What spreadsheets begin to compute at, in any width; a number is harmless.
_FORMULA = re.compile(
    r"'*[\t\r\n]*(?![+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$)[=+\-@\uff1d\uff0b\uff0d\uff20]"
)

_DIGEST, _NO_DIGEST = "sha256 of this table: ", "0" * 64

NAME = "name"  # text that is never missing: an empty field is the empty name
TEXT = "text"  # text that is missing where the field is empty
INTEGER, FLAG, NUMBER = "int64", "bool", "float64"
OPTIONAL_INTEGER = "Int64"


def as_cell(text: str) -> str:
    """Return a text as a cell of a CSV that no spreadsheet takes for a formula.

    A text that begins with one of `= + - @`, perhaps after tabs and ends of lines, and is no
    number, gets an apostrophe before it, as does one that begins with apostrophes and then these;
    `of_cell` takes it away (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    return f"'{text}" if _FORMULA.match(text) else text


def of_cell(cell: str) -> str:
    """Return the text of which `as_cell` made a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def without_escapes(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that `write_table` wrote with `of_cell` of each text."""
    return _mapped(table, of_cell)


def _mapped(table: pd.DataFrame, function: Callable[[str], str]) -> pd.DataFrame:
    changed = {}
    for name in table.columns:
        if table[name].dtype.kind not in "biufcmM":
            cells = table[name].tolist()
            mapped = [function(cell) if isinstance(cell, str) else cell for cell in cells]
            if any(new is not old for new, old in zip(mapped, cells, strict=True)):
                changed[name] = mapped
    return table.assign(**changed) if changed else table


def write_table(path: Path, table: pd.DataFrame, *, digested: bool = False) -> None:
    """Write a CSV atomically; floats are read back with the same value, texts by `of_cell`.

    Args:
        path: The file.
        table: The table.
        digested: Whether the table has its own digest: the name of a last column, which is blank.
    """
    table = _mapped(table, as_cell)
    if digested:
        table = table.assign(**{f"{_DIGEST}{_NO_DIGEST}": ""})
    with whole_file(path) as aside:
        table.to_csv(aside, index=False, lineterminator="\n")
        # pandas reads a bare carriage return as the end of a line, and quotes it only if told to.
        if b"\r" in aside.read_bytes():
            table.to_csv(aside, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
        if digested:
            data = aside.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            aside.write_bytes(data.replace(_NO_DIGEST.encode(), digest.encode(), 1))


def _check_digest(data: bytes) -> None:
    """Raise ValueError unless a table has its own digest."""
    match = re.search(_DIGEST.encode() + rb"([0-9a-f]{64})", data)
    if match is None:
        raise ValueError("it has no digest")
    undigested = data[: match.start(1)] + _NO_DIGEST.encode() + data[match.end(1) :]
    if hashlib.sha256(undigested).hexdigest().encode() != match[1]:
        raise ValueError("its content is not the one of its digest")


def read_table(
    path: str | os.PathLike[str], columns: Mapping[str, str], *, digested: bool = False
) -> pd.DataFrame:
    """Read a CSV file that `write_table` wrote.

    Args:
        path: The file.
        columns: Column name to its type, of the columns that have one; `p(<class>)` is a number.
        digested: Whether it was written with its own digest.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged: no table, a value of another type, or a row of another length.
    """
    import pandas as pd

    data = read_regular(path)
    if digested:
        _check_digest(data)
    try:
        names = list(pd.read_csv(io.BytesIO(data), nrows=0, encoding="utf-8").columns)
        types = {name: NUMBER for name in names if name.startswith("p(")} | dict(columns)
        text = {name for name, type_ in types.items() if type_ in (NAME, TEXT)}
        table: pd.DataFrame = pd.read_csv(
            io.BytesIO(data),
            dtype={name: str if name in text else type_ for name, type_ in types.items()},
            keep_default_na=False,
            na_values={name: [""] for name in names if types.get(name) != NAME},
            encoding="utf-8",
        )
    except (OSError, ValueError):
        raise
    except Exception as error:  # pandas raises nearly every type on damaged files
        raise ValueError(first_line(error)) from error
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("a row has more fields than the first line")
    for name in table.columns.intersection([n for n in types if types[n] == NAME]):
        if table[name].isna().any():
            raise ValueError("a row has fewer fields than the first line")
    digest = [name for name in table.columns if str(name).startswith(_DIGEST)]
    return without_escapes(table.drop(columns=digest))
