"""The class of each row of a table, or its labels, in cells as people write them."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from hubretrain.data.classes import join_labels, split_labels
from hubretrain.data.options import NO_SEPARATOR, TableOptions
from hubretrain.data.tables.columns import is_flags, ones
from hubretrain.errors import DataError

logger = logging.getLogger(__name__)
MANY_CLASSES = 20
"""More values than these, and than half the number of images, are no class labels."""

_LIST = re.compile(r"[\[({](.*)[\])}]", re.DOTALL)
_MULTI_HOT = " | "  # joins the names of several columns of flags that are 1, for one class
_SEPARATORS = "|;,"
_JOINER = "|"  # of labels within hubretrain, so no label can hold it


def labels_of_rows(cells: pd.DataFrame, file: Path, options: TableOptions) -> pd.Series:
    """Return the cells of one class, or the joined labels, of each row of a table.

    Args:
        cells: One column, or several: of flags, or named by options.
        file: The table, for errors.
        options: Whether an image may have several labels, and what separates them in a cell.

    Raises:
        DataError: What separates labels is not known, or a label holds a bar.
    """
    columns = list(map(str, cells.columns))
    if not options.is_multi_label:
        if len(columns) == 1:
            return cells.iloc[:, 0]
        rows = [_MULTI_HOT.join(names) for names in _names_that_are_one(cells)]
        return pd.Series(rows, cells.index, dtype=object)
    if len(columns) == 1:
        separator = _separator(cells.iloc[:, 0], file, options)
        _refuse_escaped(cells.iloc[:, 0], separator, file)
        of_row = _separated(cells.iloc[:, 0], separator)
    else:
        flags = [name for name in columns if is_flags(cells[name])]
        separator = options.label_separator or NO_SEPARATOR
        of_row = _names_that_are_one(cells[flags])
        for name in columns:
            if name not in flags:
                _refuse_escaped(cells[name], separator, file)
                values = _separated(cells[name], separator)
                for names, more in zip(of_row, values, strict=True):
                    names += [f"{name}:{value}" for value in more]
    try:
        joined = [join_labels(names) for names in of_row]
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    if len(columns) == 1 and options.label_separator is None:
        _refuse_unseparated({name for names in of_row for name in names}, file, columns[0])
    return pd.Series(joined, cells.index, dtype=object)


def check_labels(
    table: pd.DataFrame, file: Path, column: str, options: TableOptions
) -> pd.DataFrame:
    """Return the image table of a table of labels with one class, or joined labels, per image.

    A list with one item is this item. Cells that hold several labels are refused where the options
    do not say that they do; a comma or semicolon is taken to separate labels if one of the parts is
    a label elsewhere, or if no other row has the same cell.

    Args:
        table: Columns path and label.
        file: The table, for errors.
        column: The column of the classes, for errors.
        options: Whether rows without a class are left out, and which class names are known.

    Raises:
        DataError: A class is blank, there are several, or they are no classes.
    """
    multi_label = bool(options.is_multi_label)
    if not multi_label:
        table = table.assign(label=table["label"].map(_unwrapped).astype(object))
    blank = table["label"] == ""
    if blank.any() and not (options.skip_unlabelled or multi_label):
        raise DataError(
            f"{file}: {blank.sum()} rows have an empty {column!r} "
            f"(first: {table.loc[blank, 'path'].iloc[0]}); "
            "label them, remove the rows, skip them: `skip_unlabelled`, or keep them as images "
            "without a label: `multi_label`."
        )
    if blank.any():
        what = "left out" if options.skip_unlabelled else "images without a label"
        logger.info("%s: %d rows without a label are %s.", file, blank.sum(), what)
        table = table[~(blank & options.skip_unlabelled)]
    if options.is_multi_label is None:
        _refuse_several(table, file, column, options)
    labels = table["label"]
    if multi_label:
        labels = labels.map(split_labels).explode().dropna()
    if labels.nunique() > max(MANY_CLASSES, len(table) / 2):
        raise DataError(
            f"{file}: column {column!r} has {labels.nunique()} different values for {len(table)} "
            f"images (such as {labels.iloc[0]!r}), so it does not contain class labels; "
            "name the column that does: `label_column`."
        )
    return table


def _names_that_are_one(flags: pd.DataFrame) -> list[list[str]]:
    """Return the names of the columns of flags that are 1, of each row."""
    of_row: list[list[str]] = [[] for _ in range(len(flags))]
    for name in flags.columns:
        for row in ones(flags[name]).nonzero()[0]:
            of_row[row].append(str(name))
    return of_row


def _separator(cells: pd.Series, file: Path, options: TableOptions) -> str:
    """Return what separates the labels in cells, the one that is named or the first in use."""
    if options.label_separator is not None:
        return options.label_separator
    texts = [cell for cell in cells if not _is_list(cell)]
    for separator in _SEPARATORS:
        first = next((cell for cell in texts if _split(cell, re.escape(separator))), None)
        if first is not None:
            logger.info(
                "%s: %r separates labels, as in %r; if not, name what does: `label_separator`.",
                *(file, separator, first),
            )
            return separator
    return NO_SEPARATOR


def _separated(cells: pd.Series, separator: str) -> list[list[str]]:
    """Return the labels in each cell: the items of a list, or what the separator separates."""
    return [_items(cell, separator) for cell in cells]


def _items(cell: str, separator: str) -> list[str]:
    items: Iterable[object] = [cell] if separator == NO_SEPARATOR else cell.split(separator)
    if match := _LIST.fullmatch(cell):
        parsed = _parsed(cell)
        if parsed is not None:
            items = parsed
        elif cell[0] in "[{" or _is_list(cell):  # without quotes
            items = re.split("[,;|]", match[1])
    texts = ("" if item is None else str(item).strip() for item in items)
    return [text for text in texts if text]


def _refuse_escaped(cells: pd.Series, separator: str, file: Path) -> None:
    r"""Refuse cells whose separator is escaped, as in `new\|york`, or stands within quotes."""
    if separator == NO_SEPARATOR:
        return
    mark = re.escape(separator)
    pattern = re.compile(rf'\\{mark}|(^|{mark})\s*"[^"]*{mark}[^"]*"\s*({mark}|$)')
    advice = "rename the label."
    if separator != _JOINER:
        advice = "write the labels as a JSON list, or rename the one that holds it."
    for cell in cells:
        if pattern.search(cell) and not _LIST.fullmatch(cell):
            raise DataError(
                f"{file}: {cell!r} in {cells.name!r} holds an escaped or quoted {separator!r}, "
                f"which separates labels; {advice}"
            )


def _refuse_unseparated(labels: set[str], file: Path, column: str) -> None:
    """Refuse labels that consist of others, whose separator nobody named."""
    several = cells_with_several(labels, labels)
    if several:
        raise DataError(
            f"{file}: {min(several)!r} in {column!r} may be several labels; name what separates "
            "labels: `label_separator`, or `label_separator=none`."
        )


def _refuse_several(table: pd.DataFrame, file: Path, column: str, options: TableOptions) -> None:
    labels = set(table["label"])
    known = set(options.exclude_class) | {item.rpartition("=")[0] for item in options.merge}
    several = cells_with_several(labels - known, labels)
    counts = table["label"].value_counts()
    separated = {label for label in labels - known if _split(label, "[,;]")}
    # A class has several images: "Korea, Republic of" is one, but nobody can tell of a single cell.
    several |= {label for label in separated if counts[label] == 1}
    if several:
        rows = table[table["label"].isin(list(several))]
        raise DataError(
            f"{file}: {len(rows)} of {len(table)} rows hold several labels in {column!r} (first: "
            f"{rows['label'].iloc[0]!r} of {rows['path'].iloc[0]}), and one per image is expected; "
            "if images may have several, use `multi_label`, and if each cell is one class, "
            "`multi_label=False`."
        )
    if separated:
        logger.info(
            "%s: a label that holds a comma or semicolon, such as %r, is taken for one class, not "
            "for several.",
            *(file, min(separated)),
        )


def cells_with_several(cells: Collection[str], labels: Collection[str]) -> set[str]:
    """Return the cells that hold several labels.

    Args:
        cells: Different cells.
        labels: All cells, which tell what is a label elsewhere.
    """
    several = {cell for cell in cells if _is_list(cell) or _split(cell, r"\|")}
    separated = {cell: _split(cell, "[,;]") for cell in cells}
    counts = Counter(part for parts in separated.values() for part in parts)
    for cell, parts in separated.items():
        if any(part in labels or counts[part] > 1 for part in parts):
            several.add(cell)
    for cell in cells:  # what separates words, too: only where each part is a label
        for separator in (r"\s*[/+&]\s*", r"\s+(?:and|or)\s+", r"\s+"):
            parts = _split(cell, separator)
            if parts and parts <= set(labels):
                several.add(cell)
    return several


def _split(cell: str, separator: str) -> set[str]:
    """Return the parts of a cell, none if there are not several."""
    parts = {part.strip() for part in re.split(separator, cell)} - {""}
    return parts if len(parts) > 1 else set()


def _is_list(cell: str) -> bool:
    match = _LIST.fullmatch(cell)
    return match is not None and bool(_split(match[1], "[,;|]"))


def _unwrapped(cell: str) -> str:
    """Return the item of a list with one item, blank for an empty list, other cells as they are."""
    items = _parsed(cell) if _LIST.fullmatch(cell) else None
    return cell if items is None or len(items) > 1 else str(next(iter(items), "")).strip()


def _parsed(cell: str) -> Collection[object] | None:
    """Return the items of a list in JSON, Python or as NumPy prints it; None for no list."""
    spaced = re.sub(r"""(['"])\s+(?=['"])""", r"\1, ", cell)
    for parse in (json.loads, ast.literal_eval):
        try:
            items = parse(spaced)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(items, list | tuple | set | dict):
            return items
    return None
