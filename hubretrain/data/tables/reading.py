"""A file becomes a table of text, whatever its encoding and its separator."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.errors import DataError
from hubretrain.files import MAX_TEXT_BYTES, open_regular, read_regular

logger = logging.getLogger(__name__)
PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".jsonl", *PARQUET_SUFFIXES)
"""Endings of files that may be tables."""

_WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_WORKBOOK_STARTS = (b"PK\x03\x04", bytes.fromhex("d0cf11e0"))  # a zip; OLE, of Excel before 2007
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_BLANKS = " \t\r\n\x0b\x0c\xa0\ufeff"  # fewer than those of `str.strip`
_SEPARATORS = ",;\t|"
_SAMPLE = 20  # rows that tell the separator


def read_table(file: Path, *, header: bool = True) -> pd.DataFrame:
    """Read a table as text: a cell is as it is written, without blanks around it.

    By its suffix it is parquet, JSON (lines, or a list of records), TSV, or else text with the
    separator that gives each row the same number of cells: a comma, a semicolon, a tab or a bar;
    in a `.txt` blanks, too. Text is UTF-8, UTF-16 or UTF-32, or else Windows-1252, which is logged.

    Args:
        file: The table.
        header: Whether the first row of a text holds the names of columns; otherwise they are
            `1`, `2`, ...

    Raises:
        DataError: It is missing or no such table, or pyarrow is needed and not installed.
    """
    suffix = file.suffix.lower()
    try:
        if suffix in PARQUET_SUFFIXES:
            table = _read_parquet(file)
        elif suffix == ".jsonl":
            # Not splitlines, which takes some characters within a text for ends of lines.
            lines = _decoded(file).split("\n")
            table = pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
        elif suffix == ".json":
            records = json.loads(_decoded(file))
            if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
                raise ValueError("it is no list of records")
            table = pd.DataFrame(records, dtype=object)
        else:
            table = _read_rows(file, header)
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; expected a table of labels.") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(
            f"{file} cannot be read as a table: {reason}; expected a header and one row per image."
        ) from error
    names = _distinct(str(name).strip() for name in table.columns)
    cells = {
        name: table.iloc[:, i].map(_text).astype(object).reset_index(drop=True)
        for i, name in enumerate(names)
    }
    return pd.DataFrame(cells)


def has_header_row(file: Path) -> bool:
    """Return whether a table's columns are named by its first row, which may be missing."""
    return file.suffix.lower() not in (*PARQUET_SUFFIXES, ".json", ".jsonl")


def _read_rows(file: Path, header: bool) -> pd.DataFrame:
    text = _decoded(file)
    separator = "\t" if file.suffix.lower() in (".tsv", ".tab") else ""
    if match := re.match(r"\s*sep=(.)\r?\n", text):  # a line for Excel
        separator, text = match[1], text[match.end() :]
    separator = separator or _separator(text, blanks=file.suffix.lower() == ".txt")
    rows = [
        (reader_line, row)
        for reader_line, row in _rows(text, separator, strict=True)
        if any(cell.strip() for cell in row)
    ]
    if not rows:
        raise ValueError("it is empty")
    names = rows.pop(0)[1] if header else [str(i + 1) for i in range(max(len(r) for _, r in rows))]
    for line, row in rows:
        if len(row) > len(names) and any(cell.strip() for cell in row[len(names) :]):
            raise ValueError(f"line {line} has {len(row)} cells, the header {len(names)}")
        row[:] = (row + [""] * len(names))[: len(names)]
    return pd.DataFrame([row for _, row in rows], columns=names, dtype=object)


def _rows(text: str, separator: str, *, strict: bool = False) -> Iterable[tuple[int, list[str]]]:
    """Yield the number of the line that each row ends in, and its cells."""
    if separator == " ":
        yield from ((n, line.split()) for n, line in enumerate(text.splitlines(), 1))
        return
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=strict)
    for row in reader:
        yield reader.line_num, row


def _separator(text: str, *, blanks: bool) -> str:
    """Return what separates cells: what gives each of the first rows the same number of them."""
    usable = ""
    for separator in _SEPARATORS + " " * blanks:
        rows = (row for _, row in _rows(text, separator) if any(row))
        widths = [len(row) for row in islice(rows, _SAMPLE)]
        if widths and widths[0] > 1:
            if len(set(widths)) == 1:
                return separator
            usable = usable or separator
    return usable or ","


def _decoded(file: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: It is a workbook, or in an encoding that is not known.
        ValueError: It is no text.
        OSError: It cannot be read.
    """
    data = read_regular(file)
    if file.suffix.lower() in _WORKBOOKS or data.startswith(_WORKBOOK_STARTS):
        raise DataError(f"{file} is a workbook, not text; save it as CSV and name that file.")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    if not encoding:
        head = data[:4096]
        # UTF-16 without its mark: every other byte of Latin letters is zero.
        odd, even = head[1::2].count(0), head[::2].count(0)
        one_sided = max(odd, even) > len(head) / 4 and min(odd, even) < len(head) / 20
        encoding = ("utf-16-le" if odd > even else "utf-16-be") if one_sided else "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = _windows_text(data, file)
    if _NO_TEXT.search(text[:4096]):
        raise ValueError("it is no text")
    return text


def _windows_text(data: bytes, file: Path) -> str:
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise DataError(
            f"{file} is neither UTF-8, UTF-16 nor Windows-1252; save it as UTF-8."
        ) from None
    if not _NO_TEXT.search(text[:4096]) and (word := re.search(r"\w*[^\x00-\x7f]\w*", text)):
        logger.info(
            "%s is not UTF-8 and was read as Windows-1252 (first word with a special letter: %s).",
            file,
            word[0],
        )
    return text


def _read_parquet(file: Path) -> pd.DataFrame:
    open_regular(file, MAX_TEXT_BYTES).close()
    try:
        return pd.read_parquet(file)
    except ImportError:
        raise DataError(
            f"{file}: reading parquet needs pyarrow; install it with: "
            "pip install 'hubretrain[parquet]', or save the table as a CSV."
        ) from None


def _distinct(names: Iterable[str]) -> list[str]:
    """Return names of columns, none blank or twice."""
    distinct: list[str] = []
    for i, name in enumerate(names, 1):
        new, n = name or f"column {i}", 0
        while new in distinct:
            n += 1
            new = f"{name}.{n}"
        distinct.append(new)
    return distinct


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip(_BLANKS)
    if hasattr(value, "tolist"):  # a number or an array of NumPy
        value = value.tolist()
    if isinstance(value, dict) and "bytes" in value:  # an image within a parquet file
        return str(value.get("path") or "")
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():  # whole numbers with gaps are floats
        return str(int(value))
    return str(value).strip(_BLANKS)
