"""A table of labels (CSV, TSV, JSON lines or parquet) becomes an image table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hubretrain.data.layouts import SPLIT_NAMES, ImageFolder, find_images
from hubretrain.data.options import NO_COLUMN, USUAL_COLUMNS, TableOptions
from hubretrain.errors import DataError
from hubretrain.storage import check_url, is_remote

MANY_CLASSES = 20
"""More values than these, and than half the number of images, are no class labels."""


def label_images(
    file: Path, folders: Sequence[ImageFolder], options: TableOptions, *, is_named: bool = True
) -> tuple[pd.DataFrame, dict[str, str | None]]:
    """Read a table of labels and find the image of each row.

    Args:
        file: The table.
        folders: The folders of the images.
        options: Its columns.
        is_named: Whether the user named the table; one that was recognised by itself may name
            URLs only with the option `remote`.

    Returns:
        Columns path, label, group and split, all text; and the column taken for each role.

    Raises:
        DataError: See `hubretrain.data.dataset.open_dataset`.
    """
    rows = read_table(file)
    columns = {role: _column(rows, file, options, role) for role in USUAL_COLUMNS}
    image, label = rows[str(columns["image"])], rows[str(columns["label"])]
    _check_urls(image, file, is_allowed=is_named or options.remote)
    paths = {f.prefix + path: path for f in folders for path in find_images(f.folder)}
    matched = _match(image, paths, file)
    where = ", ".join(str(folder.folder) for folder in folders)
    _refuse_unmatched(where, file, image, list(paths), matched, options.skip_unmatched)
    table = pd.DataFrame({"path": matched, "label": label, "group": matched, "split": ""})
    if columns["group"] is not None:
        group = rows[columns["group"]]
        table["group"] = group.where(group != "", matched)
    if columns["split"] is not None:
        table["split"] = _split_names(rows[columns["split"]], file)
    table = table[matched != ""]
    _check_labels(table, file, str(columns["label"]))
    return _one_row_per_image(table.astype(object), file), columns


def is_label_table(file: Path) -> bool:
    """Return whether a table that was recognised by its name labels images.

    Other programs write a `metadata.csv` too; one of images has a column `file_name`.

    Raises:
        DataError: See `read_table`.
    """
    return file.stem != "metadata" or "file_name" in read_table(file).columns


def read_table(file: Path) -> pd.DataFrame:
    """Read a table as text: a cell of a CSV stays as it is written, an empty cell is ''.

    By its suffix it is parquet, JSON lines, TSV, or else a CSV, whose separator may be a
    semicolon or a tab where its header has no comma.

    Raises:
        DataError: It is missing or no such table, or pyarrow is needed and not installed.
    """
    suffix = file.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            table = _read_parquet(file)
        elif suffix == ".jsonl":
            # Not splitlines, which takes some characters within a text for ends of lines.
            lines = file.read_text(encoding="utf-8-sig").split("\n")
            table = pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
        else:
            table = _read_csv(file, tabs=suffix in (".tsv", ".tab"))
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; expected a table of labels.") from None
    except (OSError, ValueError) as error:
        kind = "table" if suffix in (".parquet", ".pq", ".jsonl") else "UTF-8 table"
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file} cannot be read as a {kind}: {reason}; expected a header and one row per image."
        ) from error
    cells = {str(name): column.map(_text) for name, column in table.items()}
    as_text: pd.DataFrame = pd.DataFrame(cells, dtype=object)
    return as_text


def _read_csv(file: Path, *, tabs: bool) -> pd.DataFrame:
    with file.open(encoding="utf-8-sig") as stream:
        header = stream.readline()
    separators = "\t" if tabs else ",;\t"
    # With the header as a row, rows longer than it are an error; pandas would shift or cut them.
    rows: pd.DataFrame = pd.read_csv(
        file,
        sep=next((s for s in separators if s in header), separators[0]),
        dtype=str,
        keep_default_na=False,
        encoding="utf-8-sig",
        header=None,
    )
    names = rows.iloc[0].tolist()
    repeated = [f"{n}.{names[:i].count(n)}" if n in names[:i] else n for i, n in enumerate(names)]
    return rows.iloc[1:].set_axis(repeated, axis=1).reset_index(drop=True)


def _read_parquet(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except ImportError:
        raise DataError(
            f"{file}: reading parquet needs pyarrow; install it with: "
            "pip install 'hubretrain[parquet]', or save the table as a CSV."
        ) from None


def _text(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():  # whole numbers with gaps are floats
        return str(int(value))
    return str(value).strip()


def _column(rows: pd.DataFrame, file: Path, options: TableOptions, role: str) -> str | None:
    """Return the column to take for a role; None for no group or no split."""
    is_needed = role in ("image", "label")
    named, usual = options.column_of(role), USUAL_COLUMNS[role]
    if named == NO_COLUMN and not is_needed and NO_COLUMN not in rows.columns:
        return None
    candidates = (named,) if named is not None else usual
    column = next((name for name in candidates if name in rows.columns), None)
    if column is not None or (named is None and not is_needed):
        return column
    present = ", ".join(map(str, rows.columns))
    if named is not None:
        raise DataError(f"{file} has no column {named!r}; its columns are: {present}.")
    raise DataError(
        f"{file} has no {role} column (looked for {', '.join(usual)}); its columns are: "
        f"{present}; name one: `{role}_column`."
    )


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


def _match(cells: pd.Series, paths: dict[str, str], file: Path) -> pd.Series:
    """Return the path that each cell names: by path, else by file name, else by stem; '' for none.

    A URL is its own path.

    Args:
        cells: Column with the images.
        paths: Path of each image within its own folder, by its path in the data set.
        file: The table, for errors.
    """
    by_path: dict[str, list[str]] = {}
    by_name: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for path, own in paths.items():
        name = own.rsplit("/", 1)[-1]
        by_path.setdefault(own, []).append(path)
        by_name.setdefault(name, []).append(path)
        by_stem.setdefault(os.path.splitext(name)[0], []).append(path)

    def find(cell: str) -> str:
        if is_remote(cell):
            return cell
        relative = os.path.normpath(cell).replace(os.sep, "/") if cell else ""
        if relative in paths and len(by_path.get(relative, ())) <= 1:
            return relative
        matches = by_path.get(relative) or []
        if not matches and relative.startswith(("../", "/")):
            raise DataError(
                f"{file}: {cell!r} lies outside the data set's folder; "
                "use paths below it, or name the folder above as the data set."
            )
        if not matches and "/" not in relative:
            matches = by_name.get(cell) or by_stem.get(cell) or []
        if len(matches) > 1:
            raise DataError(
                f"{file}: {cell!r} could be {matches[0]} or {matches[1]}; write the path instead."
            )
        return matches[0] if matches else ""

    return cells.map(find).astype(object)


def _refuse_unmatched(
    where: str,
    file: Path,
    cells: pd.Series,
    paths: list[str],
    matched: pd.Series,
    skip_unmatched: bool,
) -> None:
    without_file = cells[matched == ""]
    without_row = sorted(set(paths) - set(matched))
    if len(without_file) == len(cells):
        raise DataError(
            f"{file}: none of its {len(cells)} rows names an image below {where}; "
            "check the folder and `image_column`."
        )
    advice = "fix the table, or skip them: `skip_unmatched`."
    if len(without_file) and not skip_unmatched:
        raise DataError(
            f"{file}: {len(without_file)} of {len(cells)} rows have no file below {where} "
            f"(first: {without_file.iloc[0]!r}); {advice}"
        )
    if without_row and not skip_unmatched:
        raise DataError(
            f"{where}: {len(without_row)} of {len(paths)} images have no row in {file} "
            f"(first: {without_row[0]}); {advice}"
        )


def _split_names(cells: pd.Series, file: Path) -> pd.Series:
    names = cells.str.lower().map(SPLIT_NAMES)
    unknown = cells[names.isna() & (cells != "")]
    if len(unknown):
        raise DataError(
            f"{file}: {unknown.iloc[0]!r} is no split; expected train, validation or test in "
            f"column {cells.name!r}, or `split_column={NO_COLUMN}` to ignore it."
        )
    return names.fillna("").astype(object)


def _check_labels(table: pd.DataFrame, file: Path, column: str) -> None:
    if (unlabelled := int((table["label"] == "").sum())) > 0:
        raise DataError(
            f"{file}: {unlabelled} rows have an empty {column!r} "
            f"(first: {table.loc[table['label'] == '', 'path'].iloc[0]}); "
            "label them or remove the rows."
        )
    n_distinct = table["label"].nunique()
    if n_distinct > max(MANY_CLASSES, len(table) / 2):
        raise DataError(
            f"{file}: column {column!r} has {n_distinct} different values for {len(table)} "
            f"images (such as {table['label'].iloc[0]!r}), so it does not contain class labels; "
            "name the column that does: `label_column`."
        )


def _one_row_per_image(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Drop repeated rows; one image with two labels, groups or splits is an error."""
    table = table.drop_duplicates()
    twice = table[table["path"].duplicated(keep=False)]
    if len(twice):
        path = twice["path"].iloc[0]
        cells = twice[twice["path"] == path]
        column = next(c for c in ("label", "group", "split") if len(set(cells[c])) > 1)
        first, second = cells[column].unique()[:2]
        raise DataError(
            f"{file}: {path} has two {column}s ({first!r} and {second!r}); keep one row per image."
        )
    return table
