"""A table of labels (text, JSON lines or parquet) becomes an image table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from hubretrain.data.classes import join_labels, split_labels
from hubretrain.data.layouts import SPLIT_NAMES, ImageFolder
from hubretrain.data.options import NO_COLUMN, TableOptions
from hubretrain.data.tables.columns import read_columns
from hubretrain.data.tables.labels import check_labels, labels_of_rows
from hubretrain.data.tables.matching import ImageIndex
from hubretrain.data.tables.reading import read_table
from hubretrain.errors import DataError
from hubretrain.storage import check_url, is_remote


def label_images(
    file: Path, folders: Sequence[ImageFolder], options: TableOptions, *, is_named: bool = True
) -> tuple[pd.DataFrame, bool]:
    """Read a table of labels and find the image of each row.

    Args:
        file: The table.
        folders: The folders of the images.
        options: Its columns.
        is_named: Whether the user named the table; one that was recognised by itself may name
            URLs only with the option `remote`.

    Returns:
        Columns path, label, group and split, all text; and whether groups are given.

    Raises:
        DataError: See `hubretrain.data.dataset.open_dataset`.
    """
    index = ImageIndex(folders, file)
    columns = read_columns(file, options, index)
    _check_urls(columns.image, file, is_allowed=is_named or options.remote)
    matched = index.match(columns.image)
    where = ", ".join(str(folder.folder) for folder in folders)
    _refuse_unmatched(where, columns.image, matched, index, options.skip_unmatched)
    labels = labels_of_rows(columns.label, file, options)
    table = pd.DataFrame({"path": matched, "label": labels, "group": matched, "split": ""})
    if columns.group is not None:
        table["group"] = columns.group.where(columns.group != "", matched)
    if columns.split is not None:
        table["split"] = split_names(columns.split, file)
    table = check_labels(table[matched != ""], file, ", ".join(columns.label.columns), options)
    if options.is_multi_label:
        table = _labels_united(table)
    return _one_row_per_image(table.astype(object), file), columns.group is not None


def is_label_table(file: Path) -> bool:
    """Return whether a table that was recognised by its name labels images.

    Other programs write a `metadata.csv` too; one of images has a column `file_name`.

    Raises:
        DataError: See `read_table`.
    """
    return file.stem != "metadata" or "file_name" in read_table(file).columns


def _check_urls(cells: pd.Series, file: Path, *, is_allowed: bool) -> None:
    """Raise DataError where a cell is a URL that is not read, or no URL is to be read."""
    urls = [cell for cell in cells if is_remote(cell)]
    for url in urls:
        try:
            check_url(url)
        except DataError as error:
            raise DataError(f"{file}: {error}") from None
    if urls and not is_allowed:
        raise DataError(
            f"{file} names images at URLs (first: {urls[0]}), and was recognised by its name "
            "alone; if they are to be read over the network, use `remote`."
        )


def _refuse_unmatched(
    where: str, cells: pd.Series, matched: pd.Series, index: ImageIndex, skip_unmatched: bool
) -> None:
    file, n_files = index.file, len(index.paths)
    without_file = cells[matched == ""]
    without_row = sorted(set(index.paths) - set(matched))
    first = nearest = ""
    if len(without_file):
        first = f"{without_file.iloc[0]!r}"
        nearest = index.nearest(without_file.iloc[0])
        first += f", nearest file: {nearest}" if nearest else ""
    if len(without_file) == len(cells):
        raise DataError(
            f"{file}: none of its {len(cells)} rows names an image below {where}"
            f"{f' (first: {first})' if first else ''}; check the folder and `image_column`."
        )
    advice = "fix the table, or skip them: `skip_unmatched`."
    if len(without_file) and not skip_unmatched:
        raise DataError(
            f"{file}: {len(without_file)} of {len(cells)} rows have no file below {where} "
            f"(first: {first}); {advice}"
        )
    if without_row and not skip_unmatched:
        raise DataError(
            f"{where}: {len(without_row)} of {n_files} images have no row in {file} "
            f"(first: {without_row[0]}); {advice}"
        )


def split_names(cells: pd.Series, file: Path) -> pd.Series:
    """Return the splits that cells name as `train`, `validation`, `test`, or blank.

    Raises:
        DataError: A cell names no split.
    """
    names = cells.str.lower().map(SPLIT_NAMES)
    unknown = cells[names.isna() & (cells != "")]
    if len(unknown):
        raise DataError(
            f"{file}: {unknown.iloc[0]!r} is no split; expected train, validation or test in "
            f"column {cells.name!r}, or `split_column={NO_COLUMN}` to ignore it."
        )
    return names.fillna("").astype(object)


def _labels_united(table: pd.DataFrame) -> pd.DataFrame:
    """Give each row of an image the labels of all of its rows."""
    rows_of = table.groupby("path", sort=False)["label"]
    united = {path: join_labels(chain(*map(split_labels, cells))) for path, cells in rows_of}
    return table.assign(label=table["path"].map(united))


def _one_row_per_image(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Drop repeated rows; one image with two labels, groups or splits is an error."""
    table = table.drop_duplicates()
    twice = table[table["path"].duplicated(keep=False)]
    if len(twice):
        path = twice["path"].iloc[0]
        cells = twice[twice["path"] == path]
        column = next(c for c in ("label", "group", "split") if len(set(cells[c])) > 1)
        first, second = cells[column].unique()[:2]
        several = ", or if images may have several, use `multi_label`" * (column == "label")
        raise DataError(
            f"{file}: {path} has two {column}s ({first!r} and {second!r}); keep one row per image"
            f"{several}."
        )
    return table
