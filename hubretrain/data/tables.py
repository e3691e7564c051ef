"""A table of labels, CSV, TSV, JSON lines or parquet, becomes an image table."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hubretrain.data.layouts import SPLIT_NAMES, Place, find_images
from hubretrain.errors import DataError
from hubretrain.storage import is_remote

USUAL_COLUMNS = {
    "image": ("path", "file_name", "image_id", "filename", "image"),
    "label": ("label", "class", "dx", "labels"),
    "group": ("group", "lesion_id", "patient_id", "subject_id"),
    "split": ("split",),
}
NO_COLUMN = "none"
"""Asked for as a column: do not take the usual one."""

MANY_CLASSES = 20  # and more, and more than half as many as there are images: no classes


def labelled_by(
    labels: Path,
    places: Sequence[Place],
    columns: dict[str, str | None],
    *,
    skip_unmatched: bool = False,
) -> tuple[pd.DataFrame, dict[str, str | None]]:
    """Reads a table of labels and finds the image of each row.

    Args:
        labels: The table.
        places: The folders of the images.
        columns: The names of the columns with the image, label, group and split; None takes the
            first of `USUAL_COLUMNS` that is there, `none` no group and no split.
        skip_unmatched: Go on without rows that have no file and files that have no row.

    Returns:
        Columns path, label, group and split, all text; and the columns that were taken.

    Raises:
        DataError: See `hubretrain.data.dataset.ImageDataset.from_csv`.
    """
    rows = read_table(labels)
    taken = {role: _column(rows, labels, columns.get(role), role) for role in USUAL_COLUMNS}
    image, label = rows[str(taken["image"])], rows[str(taken["label"])]
    paths = {p.prefix + path: path for p in places for path in find_images(p.folder)}
    matched = _match(image, paths, labels)
    folders = ", ".join(str(place.folder) for place in places)
    _refuse_unmatched(folders, labels, image, list(paths), matched, skip_unmatched)
    table = pd.DataFrame({"path": matched, "label": label, "group": matched, "split": ""})
    if taken["group"] is not None:
        group = rows[taken["group"]]
        table["group"] = group.where(group != "", matched)
    if taken["split"] is not None:
        table["split"] = _split_names(rows[taken["split"]], labels)
    table = table[matched != ""]
    _check_labels(table, labels, str(taken["label"]))
    return _one_row_an_image(table.astype(object), labels), taken


def labels_images(known: Path) -> bool:
    """Whether a table that was recognised by its name is one: others have a `metadata.csv` too.

    Raises:
        DataError: See `read_table`.
    """
    generic = known.stem == "metadata"
    return not generic or "file_name" in read_table(known).columns


def read_table(labels: Path) -> pd.DataFrame:
    """Reads a table as text: a cell of a CSV stays as it is written, an empty cell is ''.

    By its suffix it is parquet, JSON lines, TSV, or else a CSV, whose separator may be a
    semicolon or a tab where its header has no comma.

    Raises:
        DataError: It is missing or no such table, or pyarrow is needed and missing.
    """
    suffix = labels.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            table = _read_parquet(labels)
        elif suffix == ".jsonl":
            lines = labels.read_text(encoding="utf-8-sig").splitlines()
            table = pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
        else:
            table = _read_csv(labels, tabs=suffix in (".tsv", ".tab"))
    except FileNotFoundError:
        raise DataError(f"{labels} does not exist; expected a table of labels.") from None
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        kind = "table" if suffix in (".parquet", ".pq", ".jsonl") else "UTF-8 table"
        what = " ".join(str(error).split())
        raise DataError(
            f"{labels} cannot be read as a {kind}: {what}; expected a header and one row an image."
        ) from error
    cells = {str(name): column.map(_text) for name, column in table.items()}
    as_text: pd.DataFrame = pd.DataFrame(cells, dtype=object)
    return as_text


def _read_csv(labels: Path, *, tabs: bool) -> pd.DataFrame:
    with labels.open(encoding="utf-8-sig") as file:
        header = file.readline()
    separators = "\t" if tabs else ",;\t"
    with warnings.catch_warnings():
        # Rows longer than the header: pandas would shift or cut them.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table: pd.DataFrame = pd.read_csv(
            labels,
            sep=next((s for s in separators if s in header), separators[0]),
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            index_col=False,
        )
    return table


def _read_parquet(labels: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(labels)
    except ImportError:
        raise DataError(
            f"{labels}: reading parquet needs pyarrow; install it with: "
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


def _column(rows: pd.DataFrame, labels: Path, asked: str | None, role: str) -> str | None:
    needed = role in ("image", "label")
    if asked == NO_COLUMN and not needed and NO_COLUMN not in rows.columns:
        return None
    usual = USUAL_COLUMNS[role]
    found = [name for name in ((asked,) if asked is not None else usual) if name in rows.columns]
    if found:
        return found[0]
    if asked is None and not needed:
        return None
    has = ", ".join(map(str, rows.columns))
    if asked is not None:
        raise DataError(f"{labels} has no column {asked!r}; its columns are: {has}.")
    raise DataError(
        f"{labels} has no {role} column (looked for {', '.join(usual)}); its columns are: {has}; "
        f"name one with --{role}-column."
    )


def _match(cells: pd.Series, paths: dict[str, str], labels: Path) -> pd.Series:
    """The path that each cell names: by path, else by file name, else by stem; '' for none.

    A URL is its own path.

    `paths` has each image's path in the data set, and within its own folder.
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
        found = by_path.get(relative) or []
        if not found and relative.startswith(("../", "/")):
            raise DataError(
                f"{labels}: {cell!r} lies outside the data set's folder; "
                "use paths below it, or name the folder above as the data set."
            )
        if not found and "/" not in relative:
            found = by_name.get(cell) or by_stem.get(cell) or []
        if len(found) > 1:
            raise DataError(
                f"{labels}: {cell!r} could be {found[0]} or {found[1]}; write the path instead."
            )
        return found[0] if found else ""

    return cells.map(find).astype(object)


def _refuse_unmatched(
    folders: str,
    labels: Path,
    cells: pd.Series,
    paths: list[str],
    matched: pd.Series,
    skip_unmatched: bool,
) -> None:
    without_file = cells[matched == ""]
    without_row = sorted(set(paths) - set(matched))
    if len(without_file) == len(cells):
        raise DataError(
            f"{labels}: none of its {len(cells)} rows names an image below {folders}; "
            "check the folder and --image-column."
        )
    advice = "mend the table, or pass --skip-unmatched to go on without them."
    if len(without_file) and not skip_unmatched:
        raise DataError(
            f"{labels}: {len(without_file)} of {len(cells)} rows have no file below {folders} "
            f"(first: {without_file.iloc[0]!r}); {advice}"
        )
    if without_row and not skip_unmatched:
        raise DataError(
            f"{folders}: {len(without_row)} of {len(paths)} images have no row in {labels} "
            f"(first: {without_row[0]}); {advice}"
        )


def _split_names(cells: pd.Series, labels: Path) -> pd.Series:
    known = cells.str.lower().map(SPLIT_NAMES)
    unknown = cells[known.isna() & (cells != "")]
    if len(unknown):
        raise DataError(
            f"{labels}: {unknown.iloc[0]!r} is no split; expected train, validation or test in "
            f"column {cells.name!r}, or pass --split-column {NO_COLUMN}."
        )
    return known.fillna("").astype(object)


def _check_labels(table: pd.DataFrame, labels: Path, column: str) -> None:
    if (unlabelled := int((table["label"] == "").sum())) > 0:
        raise DataError(
            f"{labels}: {unlabelled} rows have an empty {column!r} "
            f"(first: {table.loc[table['label'] == '', 'path'].iloc[0]}); "
            "label them or remove the rows."
        )
    n_distinct = table["label"].nunique()
    if n_distinct > max(MANY_CLASSES, len(table) / 2):
        raise DataError(
            f"{labels}: column {column!r} has {n_distinct} different values for {len(table)} "
            f"images (such as {table['label'].iloc[0]!r}), so it does not tell classes; "
            "name the column that does with --label-column."
        )


def _one_row_an_image(table: pd.DataFrame, labels: Path) -> pd.DataFrame:
    """Drops repeated rows; one image with two labels, groups or splits is an error."""
    table = table.drop_duplicates()
    twice = table[table["path"].duplicated(keep=False)]
    if len(twice):
        path = twice["path"].iloc[0]
        cells = twice[twice["path"] == path]
        column = next(c for c in ("label", "group", "split") if len(set(cells[c])) > 1)
        first, second = cells[column].unique()[:2]
        raise DataError(
            f"{labels}: {path} stands there with two {column}s ({first!r} and {second!r}); "
            "keep one row an image."
        )
    return table
