"""Tables that lie beside the images and that no option names: used, or the reason is logged."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from hubretrain.data.layouts import ImageFolder
from hubretrain.data.options import NO_COLUMN, TableOptions
from hubretrain.data.tables.columns import (
    given_column,
    given_columns,
    one_hot_columns,
)
from hubretrain.data.tables.labelling import label_images, split_names
from hubretrain.data.tables.matching import ImageIndex
from hubretrain.data.tables.reading import TABLE_SUFFIXES, read_table
from hubretrain.errors import DataError

logger = logging.getLogger(__name__)


def tables_beside(folder: Path) -> list[Path]:
    """Return the tables that lie directly in a folder of images; a `.txt` is none."""
    suffixes = set(TABLE_SUFFIXES) - {".txt"}
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")
    )


def labels_beside(folder: ImageFolder, options: TableOptions) -> tuple[pd.DataFrame, bool] | None:
    """Return the image table of a folder without class folders, by the table that lies in it.

    Returns:
        See `label_images`; None where no table, or more than one, labels the images.

    Raises:
        DataError: The table is not as expected, see `hubretrain.data.dataset.open_dataset`.
    """
    files = [file for file in tables_beside(folder.folder) if _labels_images(file, folder, options)]
    if len(files) != 1:
        return None
    logger.info("%s labels the images.", files[0])
    images, grouped = label_images(files[0], [folder], options, is_named=False)
    if grouped or options.group_column == NO_COLUMN:
        return images, grouped
    return with_groups_beside(images, folder, options, labels=files[0])


def _labels_images(file: Path, folder: ImageFolder, options: TableOptions) -> bool:
    try:
        rows = read_table(file)
        index = ImageIndex([folder], file)
        image = given_column(rows, file, options, "image", index)
        labels = given_columns(rows, file, options, "label", index)
    except DataError:
        return False
    if image is None or not index.names_images(rows[image]):
        return False
    others = [name for name in rows.columns if name != image]
    return bool(labels) or bool(one_hot_columns(rows, others))


def with_groups_beside(
    images: pd.DataFrame, folder: ImageFolder, options: TableOptions, labels: Path | None = None
) -> tuple[pd.DataFrame, bool]:
    """Return the image table of a folder with groups and splits of a table that lies in it.

    The classes stay. A table whose columns do not fit is not used, and the
    log says why.

    Args:
        images: The image table.
        folder: Its folder.
        options: Columns, by default the usual ones.
        labels: The table that its classes are from; None: class folders.

    Returns:
        The image table, and whether it got groups.
    """
    for file in tables_beside(folder.folder):
        if file == labels:
            continue
        try:
            columns = _columns_beside(file, images, folder, options)
        except DataError as error:
            reason = str(error).removeprefix(f"{file}").removeprefix(":").strip()
            logger.info("%s is not used: %s", file, reason)
            continue
        taken = [f"{role}s from column {name!r}" for role, name in columns.attrs["names"].items()]
        logger.info(
            "%s: %s, for %d of %d images; classes are those of %s.",
            *(file, " and ".join(taken), len(columns), len(images)),
            "the folders" if labels is None else labels.name,
        )
        images = images.set_index("path", drop=False)
        for role in columns.attrs["names"]:
            values = columns[role][columns[role] != ""]
            images.loc[values.index, role] = values
        return images.reset_index(drop=True), "group" in columns.attrs["names"]
    return images, False


def _columns_beside(
    file: Path, images: pd.DataFrame, folder: ImageFolder, options: TableOptions
) -> pd.DataFrame:
    """Return groups and splits of a table, by image path; `attrs["names"]` are their columns.

    Raises:
        DataError: It names no images, or holds no groups and no splits.
    """
    rows = read_table(file)
    index = ImageIndex([folder], file)
    image = given_column(rows, file, options, "image", index)
    if image is None or not index.names_images(rows[image]):
        raise DataError(
            f"{file} no column with a usual name names its images; if one does, name the table "
            "and the column: `labels`, `image_column`."
        )
    names = {role: given_column(rows, file, options, role, index) for role in ("group", "split")}
    if (images["split"] != "").any():
        del names["split"]
    names = {role: name for role, name in names.items() if name is not None}
    if not names:
        without = options.columns_of("group") == (NO_COLUMN,)
        groups = (
            "it has no column with a usual name for groups, such as patient_id; name one: "
            f"`group_column`, or `group_column={NO_COLUMN}`; "
        )
        raise DataError(
            f"{file} {'' if without else groups}if it holds the classes, name it: `labels={file}`."
        )
    paths = index.match(rows[image])
    table = pd.DataFrame({role: rows[name] for role, name in names.items()}, dtype=object)
    if "split" in table:
        table["split"] = split_names(table["split"], file)
    table = table.assign(path=paths)[paths.isin(images["path"])].drop_duplicates()
    if (twice := table["path"].duplicated()).any():
        path = table.loc[twice, "path"].iloc[0]
        raise DataError(f"{file} {path} has two rows that differ; keep one row per image.")
    table = table.set_index("path")
    table.attrs["names"] = names
    return table
