"""The class of each row of a table: one, not blank, and no measurement."""

from __future__ import annotations

import ast
import logging
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError

logger = logging.getLogger(__name__)
MANY_CLASSES = 20
"""More values than these, and than half the number of images, are no class labels."""

_LIST = re.compile(r"[\[({](.*)[\])}]", re.DOTALL)


def check_labels(
    table: pd.DataFrame, file: Path, column: str, options: TableOptions
) -> pd.DataFrame:
    """Return the image table of a table of labels with one class per image.

    A list with one item is this item. Cells that hold several labels are refused; a comma or
    semicolon is taken to separate labels if one of the parts is a label elsewhere, or if no other
    row has the same cell.

    Args:
        table: Columns path and label.
        file: The table, for errors.
        column: The column of the classes, for errors.
        options: Whether rows without a class are left out, and which class names are known.

    Raises:
        DataError: A label is blank, there are several, or they are no classes.
    """
    table = table.assign(label=table["label"].map(_unwrapped).astype(object))
    blank = table["label"] == ""
    if blank.any() and not options.skip_unlabelled:
        raise DataError(
            f"{file}: {blank.sum()} rows have an empty {column!r} "
            f"(first: {table.loc[blank, 'path'].iloc[0]}); "
            "label them, remove the rows, or skip them: `skip_unlabelled`."
        )
    if blank.any():
        logger.info("%s: %d rows without a label are left out.", file, blank.sum())
        table = table[~blank]
    _refuse_several(table, file, column, options)
    n_distinct = table["label"].nunique()
    if n_distinct > max(MANY_CLASSES, len(table) / 2):
        raise DataError(
            f"{file}: column {column!r} has {n_distinct} different values for {len(table)} "
            f"images (such as {table['label'].iloc[0]!r}), so it does not contain class labels; "
            "name the column that does: `label_column`."
        )
    return table


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
            "keep one of them, or rename what is one class: `merge`."
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
    if not _LIST.fullmatch(cell):
        return cell
    try:
        items = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    if isinstance(items, list | tuple | set | dict) and len(items) < 2:
        return str(next(iter(items), "")).strip()
    return cell
