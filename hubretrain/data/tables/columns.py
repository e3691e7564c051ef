"""Which column of a table holds the image, the class, the group and the given split."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hubretrain.arrays import BoolArray
from hubretrain.data.layouts import IMAGE_SUFFIXES, SPLIT_NAMES
from hubretrain.data.options import NO_COLUMN, USUAL_COLUMNS, TableOptions
from hubretrain.data.tables.matching import ImageIndex
from hubretrain.data.tables.reading import has_header_row, read_table
from hubretrain.errors import DataError

logger = logging.getLogger(__name__)
_PROBED = 100  # cells of a column that tell whether it names images
_FLAGS = {"": 0, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_SHOWN = 8  # usual names in a message
_SHOWN_FLAGS = 20


@dataclass(frozen=True)
class LabelColumns:
    """The columns of a table by what they hold, as text, one row per row of the table.

    Attributes:
        image: What names the image.
        label: The class, in one column; or several columns, of flags or named by options.
        group: What must stay together, or None.
        split: The given split, or None.
    """

    image: pd.Series
    label: pd.DataFrame
    group: pd.Series | None
    split: pd.Series | None


def read_columns(file: Path, options: TableOptions, index: ImageIndex) -> LabelColumns:
    """Read a table of labels and choose its columns.

    Columns that are not named are those of `USUAL_COLUMNS`, whatever their case, blanks and
    underscores. Without one, the image is in the column whose cells name images, and the class
    in the only other column of text, or in several columns of flags. What was chosen other than
    by its name is logged.

    Raises:
        DataError: There is no such table or column.
    """
    rows = read_table(file)
    is_named = any(
        name in rows.columns for role in USUAL_COLUMNS for name in options.columns_of(role)
    )
    headerless = has_header_row(file) and not is_named and _names_image(rows, index)
    if headerless:
        rows = read_table(file, header=False)
    image = given_column(rows, file, options, "image", index)
    if image is None or (options.image_column is None and not _names_images(rows, image, index)):
        image = _by_content(rows, file, index, image)
    group, split = (given_column(rows, file, options, role, index) for role in ("group", "split"))
    labels = given_columns(rows, file, options, "label", index)
    if not labels:
        names = list(map(str, rows.columns))
        if headerless:  # what stands before the image is a number of the row, if anything
            names = names[names.index(image) + 1 :] or names
        others = [name for name in names if name not in (image, group, split)]
        labels = _by_elimination(rows, file, others, options, is_first=headerless)
    elif len(labels) > 1:
        logger.info("%s: the labels are from columns %s.", file, ", ".join(labels))
    for role, taken in (("label", labels[0]), ("group", group)):
        others = [name for name in _usual_columns(rows, role) if name != taken]
        if taken is not None and others and not options.columns_of(role):
            logger.info("%s: column %r is the %s, not %s.", file, taken, role, ", ".join(others))
    if headerless:
        logger.info(
            "%s has no header: column %s names the image, column %s the class.",
            *(file, image, labels[0]),
        )
    return LabelColumns(
        rows[image],
        rows[labels],
        rows[group] if group is not None else None,
        rows[split] if split is not None else None,
    )


def normal(name: str) -> str:
    """Return the name of a column without case, blanks, underscores and the like."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in folded if c.isalnum())


def usual_column(rows: pd.DataFrame, role: str, index: ImageIndex | None = None) -> str | None:
    """Return the column with a usual name for a role; of several for the image one that fits.

    Args:
        rows: The table.
        role: One of `USUAL_COLUMNS`.
        index: The images.
    """
    names = _usual_columns(rows, role)
    if role == "image" and index is not None:
        names = _best_first(rows, names, index) or names
    return names[0] if names else None


def _usual_columns(rows: pd.DataFrame, role: str) -> list[str]:
    by_normal: dict[str, str] = {}
    for name in rows.columns:
        by_normal.setdefault(normal(str(name)), str(name))
    names = [by_normal[n] for n in map(normal, USUAL_COLUMNS[role]) if n in by_normal]
    if role == "split":  # `set` and the like may be something else
        names = [n for n in names if n.strip() == "split" or _holds_splits(rows[n])]
    return list(dict.fromkeys(names))


def _best_first(rows: pd.DataFrame, names: list[str], index: ImageIndex) -> list[str]:
    """Return the columns that name images; first those with whole names of files, then stems."""

    def looseness(name: str) -> int:
        exact = [str(cell) for cell in rows[name][:_PROBED] if index.has(str(cell))]
        whole = any(cell.lower().endswith(tuple(IMAGE_SUFFIXES)) for cell in exact)
        return 0 if whole else 1 if exact else 2

    return sorted((n for n in names if _names_images(rows, n, index)), key=looseness)


def _names_images(rows: pd.DataFrame, name: str, index: ImageIndex) -> bool:
    return index.names_images(rows[name][:_PROBED])


def one_hot_columns(rows: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Return the columns of flags, where there are several."""
    flags = [name for name in names if is_flags(rows[name])]
    return flags if len(flags) > 1 else []


def is_flags(cells: pd.Series) -> bool:
    """Return whether cells are zeros and ones."""
    return set(cells.str.lower()) <= _FLAGS.keys()


def ones(cells: pd.Series) -> BoolArray:
    """Return whether each flag is one."""
    return (cells.str.lower().map(_FLAGS) == 1).to_numpy(bool)


def _holds_splits(cells: pd.Series) -> bool:
    return bool(set(cells.str.lower()) <= {"", *SPLIT_NAMES})


def given_column(
    rows: pd.DataFrame, file: Path, options: TableOptions, role: str, index: ImageIndex
) -> str | None:
    """Return the column that is named for a role, or has a usual name; None for none.

    Raises:
        DataError: The column that is named does not exist.
    """
    names = given_columns(rows, file, options, role, index)
    return names[0] if names else None


def given_columns(
    rows: pd.DataFrame, file: Path, options: TableOptions, role: str, index: ImageIndex
) -> list[str]:
    """Return the columns that are named for a role, or the one that has a usual name; or none.

    Raises:
        DataError: A column that is named does not exist.
    """
    named = options.columns_of(role)
    if not named:
        usual = usual_column(rows, role, index)
        return [] if usual is None else [usual]
    if named == (NO_COLUMN,) and NO_COLUMN not in rows.columns and role in ("group", "split"):
        return []
    return [_column_named(rows, file, name) for name in named]


def _column_named(rows: pd.DataFrame, file: Path, named: str) -> str:
    if named in rows.columns:
        return named
    alike = [str(name) for name in rows.columns if normal(str(name)) == normal(named)]
    if len(alike) != 1:
        present = ", ".join(map(str, rows.columns))
        raise DataError(f"{file} has no column {named!r}; its columns are: {present}.")
    return alike[0]


def _names_image(rows: pd.DataFrame, index: ImageIndex) -> bool:
    """Return whether the names of columns are in truth a row, which names an image."""
    if usual_column(rows, "image") is not None and usual_column(rows, "label") is not None:
        return False
    names = [str(name) for name in rows.columns]
    if any(name.lower().endswith(tuple(IMAGE_SUFFIXES)) for name in names):
        return True
    return usual_column(rows, "image") is None and any(map(index.has, names))


def _by_content(rows: pd.DataFrame, file: Path, index: ImageIndex, usual: str | None) -> str:
    """Return the column whose cells name images, or else the one with a usual name."""
    fitting = _best_first(rows, list(map(str, rows.columns)), index)
    if not fitting and usual is not None:
        return usual
    if not fitting:
        raise _no_column(rows, file, "image")
    if not fitting[0].isdigit():
        logger.info("%s: column %r names the images.", file, fitting[0])
    return fitting[0]


def _by_elimination(
    rows: pd.DataFrame, file: Path, others: list[str], options: TableOptions, *, is_first: bool
) -> list[str]:
    """Return the columns of the classes where none has a usual name for them."""
    if is_first and others:
        return others[:1]
    if flags := one_hot_columns(rows, others):
        what = "labels are those" if options.is_multi_label else "class is the one"
        listed = ", ".join(flags[:_SHOWN_FLAGS]) + ", ..." * (len(flags) > _SHOWN_FLAGS)
        logger.info("%s: the %s of these that is 1: %s.", file, what, listed)
        return flags
    texts = [
        name
        for name in others
        if not name.startswith("column ") and pd.to_numeric(rows[name], "coerce").isna().any()
    ]
    if len(texts) == 1 == len([n for n in others if not n.startswith("column ")]):
        logger.info("%s: column %r holds the class.", file, texts[0])
        return texts
    raise _no_column(rows, file, "label")


def _no_column(rows: pd.DataFrame, file: Path, role: str) -> DataError:
    present = ", ".join(map(str, rows.columns))
    usual = ", ".join(USUAL_COLUMNS[role][:_SHOWN])
    return DataError(
        f"{file} has no {role} column (looked for {usual}, ...); its columns are: "
        f"{present}; name one: `{role}_column`."
    )
