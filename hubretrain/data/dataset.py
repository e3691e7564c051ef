"""Folders or a table become a data set: a checked table of labelled images.

`layouts` recognises folders, `tables` reads tables of labels. Opening a data set opens no image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.data.classes import (
    chosen_classes,
    in_class_order,
    join_labels,
    refuse_constant_labels,
    sorted_classes,
)
from hubretrain.data.groups import classes_below_groups, groups_from_paths, propose_groups
from hubretrain.data.image_table import (
    cluster_names,
    read_digests,
    search_near_duplicates,
    without_quarantined,
)
from hubretrain.data.images import Reading
from hubretrain.data.layouts import (
    IMAGE_SUFFIXES,
    ImageFolder,
    class_folders,
    default_folder,
    image_folders,
    labels_file,
    without_unlabelled_splits,
)
from hubretrain.data.left_out import left_out, left_out_sentences
from hubretrain.data.near_duplicates import NearDuplicates
from hubretrain.data.options import NO_COLUMN, USUAL_COLUMNS, SplitOptions, TableOptions
from hubretrain.data.splitting import cut_parts
from hubretrain.data.summary import LeftOut
from hubretrain.data.tables import (
    is_label_table,
    label_images,
    labels_beside,
    tables_beside,
    with_groups_beside,
)
from hubretrain.errors import DataError

Folder = str | os.PathLike[str]
Record = dict[str, str | bool | int | list[str]]
_ALWAYS = {"skip_unmatched", *(f"{role}_column" for role in USUAL_COLUMNS)}


@dataclass(frozen=True)
class ImageDataset:
    """A checked table of labelled images.

    Attributes:
        name: Name of the data set and of its folder in the cache: that of its first folder.
        root: The folder that image paths are relative to: the first.
        images: One row per image, columns `path` (str, relative to `root`, with `/`),
            `label` (str; of a multi-label data set the labels in class order joined by a bar, blank
            for none; see `targets`), `group` (str; images of one group never straddle splits) and
            `split` (`train`, `validation`, `test`, or empty where none was given).
        class_names: The labels in class order; class `c` is `class_names[c]`.
        multi_label: Whether an image may have several labels or none.
        grouped: Whether groups were given; otherwise each image is a group of its own.
        opened_with: The options to open it again with, for `reopen_dataset`.

    Examples:
        >>> from hubretrain import open_dataset
        >>> dataset = open_dataset("data/digits")
        >>> len(dataset.images), dataset.class_names, dataset.grouped
        (120, ('0', '1', '2'), False)
        >>> sorted(set(dataset.split()["fold"]))  # -1 is the test split
        [-1, 0, 1, 2, 3, 4]
    """

    name: str
    root: Path
    images: pd.DataFrame
    class_names: tuple[str, ...]
    grouped: bool = False
    opened_with: Record = field(default_factory=dict)
    multi_label: bool = False

    @property
    def labels(self) -> pd.Series:
        """Class index of each image, int64 in [0, n_classes).

        Raises:
            DataError: Images may have several labels.
        """
        if self.multi_label:
            raise DataError("Images may have several labels; expected `targets` to be used.")
        order = {name: index for index, name in enumerate(self.class_names)}
        return self.images["label"].map(order).astype("int64")

    @property
    def reading(self) -> Reading:
        """How the images are read."""
        return reading_as(self.opened_with)

    def left_out(self) -> LeftOut:
        """Return what lies in the folders and is not looked at.

        Raises:
            DataError: A folder cannot be read.
        """
        more = self.opened_with.get("more_roots", [])
        roots = [self.root, *map(Path, more if isinstance(more, list) else [])]
        pairs = zip(self.images["path"], self.images["label"], strict=True)
        class_folders = "labels" not in self.opened_with and (
            "merge" in self.opened_with or all(f"/{label}/" in f"/{path}" for path, label in pairs)
        )
        return left_out(roots, class_folders=class_folders)

    def cache_folder(self, cache: Folder = "cache") -> Path:
        """Return the folder of this data set in a cache."""
        return Path(cache) / self.name

    def digests(self, cache: Folder = "cache") -> list[str]:
        """Return the sha256 of each image file, in order; only changed files are read.

        Raises:
            DataError: A file cannot be read.
        """
        paths = self.images["path"].tolist()
        return read_digests(self.root, paths, self.cache_folder(cache))

    def near_duplicates(self, sha256s: Sequence[str], cache: Folder = "cache") -> NearDuplicates:
        """Return the near duplicates among the images; only new contents are searched.

        Args:
            sha256s: What `digests` returns.
            cache: The cache folder.
        """
        paths = self.images["path"].tolist()
        folder = self.cache_folder(cache)
        return search_near_duplicates(self.root, paths, sha256s, folder)

    def usable_images(
        self, cache: Folder = "cache", *, near_duplicates: bool = True
    ) -> pd.DataFrame:
        """Return the image table with contents, without images that cannot be decoded.

        Args:
            cache: The cache folder, where digests and near duplicates are kept.
            near_duplicates: Search near duplicates, and put them into one cluster.

        Returns:
            The columns of `images`, and `sha256`, `class_index` (int64; not of a multi-label
            data set) and `cluster`: groups that share an image file's content, or hold near
            duplicates of each other, are one cluster, so that duplicates of an image never
            straddle splits.

        Raises:
            DataError: A file cannot be read.
        """
        table = self.images.copy()
        table["sha256"] = self.digests(cache)
        if not self.multi_label:
            table["class_index"] = self.labels
        pairs = None
        if near_duplicates:
            pairs = self.near_duplicates(table["sha256"].tolist(), cache).pairs
        table["cluster"] = cluster_names(table["group"], table["sha256"], pairs)
        return without_quarantined(table, self.cache_folder(cache))

    def split(
        self,
        options: SplitOptions = SplitOptions(),
        *,
        folds_file: Folder | None = None,
        cache: Folder = "cache",
    ) -> pd.DataFrame:
        """Cut a test split and folds: classes stratified, groups and duplicates kept together.

        Args:
            options: How to split.
            folds_file: An earlier split, as `write_folds` of `hubretrain.data.splitting` writes
                it. Images that it holds keep their part.
            cache: The cache folder, where digests and near duplicates are kept.

        Returns:
            The columns of `usable_images`, and `fold` (int8: 0, 1, ..., -1 for the test split,
            -2 for training only).

        Raises:
            SplitError: A class has too few groups, or the earlier split does not fit.
        """
        images = self.usable_images(cache, near_duplicates=options.keep_duplicates_together)
        earlier = None if folds_file is None else Path(folds_file)
        images["fold"] = cut_parts(images, earlier, options, multi_label=self.multi_label)
        return images


def open_dataset(
    data: Folder | None = None,
    *,
    more_roots: Sequence[Folder] = (),
    labels: Folder | None = None,
    table: TableOptions = TableOptions(),
) -> ImageDataset:
    """Open a data set: the folder given, or the one in `data/`.

    Args:
        data: A folder. None: `data/` itself, or the only data set in it.
        more_roots: More folders, to enrich the first; each is recognised by itself, and paths are
            relative to the first.
        labels: A table with one row per image: CSV, or by its suffix TSV, JSON lines or parquet;
            a relative path is sought in and beside the folder too.
            None: class folders, or a table that `layouts` recognises.
        table: Columns of the table; by default the usual ones.

    Raises:
        DataError: No data set, several, or one that is not as expected: a folder or a column is
            missing, a row has no file, a file has no row, a label is empty, one image has two
            labels, there are fewer than two classes, or a table that was recognised by itself
            names images at URLs.

    Examples:
        >>> from hubretrain import open_dataset
        >>> dataset = open_dataset("data/digits")
        >>> dataset.images[["path", "label"]].head(2).values.tolist()
        [['0/0000.png', '0'], ['0/0010.png', '0']]
    """
    root = Path(data) if data is not None else default_folder(Path("data"))
    roots = [root, *map(Path, more_roots)]
    _check_options(table)
    record: Record = {}
    if labels is not None:
        file = labels_file(labels, root)
        folders = image_folders(roots, tables=False)
        record["labels"] = str(file.resolve())
        images, grouped = label_images(file, folders, table)
    else:
        folders = image_folders(roots)
        images, grouped = _recognised_images(root, folders, table)
    if table.group_from not in (None, NO_COLUMN):
        groups = groups_from_paths(images, table.group_from, multi_label=bool(table.is_multi_label))
        images, grouped = images.assign(group=groups), True
    elif not grouped and labels is None and table.group_column != NO_COLUMN:
        propose_groups(images, table.group_from)
    record |= {**table.columns(), "skip_unmatched": table.skip_unmatched, **_extras(table)}
    if table.is_multi_label:
        record["multi_label"] = True
    return _checked(folders, chosen_classes(images, table), grouped, record)


def _check_options(table: TableOptions) -> None:
    if table.multi_label is False and replace(table, multi_label=None).is_multi_label:
        separator = table.label_separator
        several = f"`label_separator` is {separator!r}" if separator else "several `label_column`"
        raise DataError(
            f"`multi_label` is False and {several}, which makes several labels per image; expected "
            "one of them."
        )
    if table.label_separator == "":
        raise DataError("`label_separator` is empty; expected a text, such as |, or none.")
    if table.group_from not in (None, NO_COLUMN) and table.group_column not in (None, NO_COLUMN):
        raise DataError(
            f"`group_column` is {table.group_column!r} and `group_from` is {table.group_from!r}; "
            "expected one of them."
        )


def _extras(table: TableOptions) -> Record:
    """Return the options that are recorded where they are given."""
    names = [option.name for option in fields(TableOptions) if option.name not in _ALWAYS]
    values = {name: getattr(table, name) for name in names}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value or (name == "multi_label" and value is False)
    }


def reopen_dataset(data: Folder, opened_with: Mapping[str, Any]) -> ImageDataset:
    """Open a data set again as it was opened.

    Args:
        data: Its first folder.
        opened_with: `ImageDataset.opened_with`, as it stands in run.json.

    Raises:
        DataError: See `open_dataset`.
    """
    names = {option.name for option in fields(TableOptions)}
    options = {name: value for name, value in opened_with.items() if name in names}
    more_roots = opened_with.get("more_roots", ())
    return open_dataset(
        data,
        more_roots=more_roots,
        labels=opened_with.get("labels"),
        table=TableOptions(**options),
    )


def reading_as(opened_with: Mapping[str, Any]) -> Reading:
    """Return how the images of a data set are read that was opened with these options."""
    bits, max_pixels = opened_with.get("bits"), opened_with.get("max_pixels")
    return TableOptions(bits=bits, max_pixels=max_pixels).reading


def _recognised_images(
    root: Path, folders: Sequence[ImageFolder], options: TableOptions
) -> tuple[pd.DataFrame, bool]:
    """Return the image table of folders, each with its own table or not, and whether grouped."""
    needed = {name: value for name, value in options.columns().items() if value != NO_COLUMN}
    if needed and not any(folder.table or tables_beside(folder.folder) for folder in folders):
        name, value = next(iter(needed.items()))
        raise DataError(f"{root}: `{name}` is {value!r}, but there is no table; name it: `labels`.")
    tables, grouped = [], False
    for folder in folders:
        if folder.table is None or (
            options.image_column is None and not is_label_table(folder.table)
        ):
            table, has_groups = _without_known_table(folder, options)
        else:
            table, has_groups = label_images(folder.table, [folder], options, is_named=False)
        grouped = grouped or has_groups
        tables.append(table.assign(split=folder.split) if folder.split else table)
    images = without_unlabelled_splits(pd.concat(tables, ignore_index=True))
    if options.split_column == NO_COLUMN:  # nor the splits that folders are named after
        images["split"] = ""
    return images, grouped


def _without_known_table(folder: ImageFolder, options: TableOptions) -> tuple[pd.DataFrame, bool]:
    """Return the image table of class folders, or by a table beside images that have none."""
    error: DataError | None = None
    images = pd.DataFrame()
    try:
        images = classes_below_groups(class_folders(folder), options.group_from)
        if options.is_multi_label:
            for name in images["label"].unique():
                join_labels([name])
    except DataError as caught:
        error = caught
    if error is not None or images["label"].nunique() < 2:
        labelled = labels_beside(folder, options)
        if labelled is not None:
            return labelled
    if error is not None:
        raise error
    return with_groups_beside(images, folder, options)


def _checked(
    folders: Sequence[ImageFolder],
    images: pd.DataFrame,
    grouped: bool,
    record: Record,
) -> ImageDataset:
    """Return the data set of an image table, whose paths are relative to the first root."""
    roots = list(dict.fromkeys(folder.root for folder in folders))
    root = roots[0]
    if not len(images):
        if any(root.rglob("*.parquet")):
            raise DataError(
                f"{root} holds no image files but parquet; if images are inside, unpack them by "
                "hubretrain data prepare images, and name the folder."
            )
        raise DataError(
            f"{root} holds no images; expected class folders or a table of labels, with images of "
            f"type {', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}.{_left_out_words(roots)}"
        )
    multi_label = record.get("multi_label") is True
    if multi_label:
        joined, class_names = in_class_order(images["label"])
        images = images.assign(label=joined)
        refuse_constant_labels(root, images["label"], class_names)
    else:
        class_names = sorted_classes(images["label"])
    if len(class_names) < 2:
        deeper = {path.split("/")[1] for path in images["path"] if path.count("/") > 1}
        inner = f"; or name {root / class_names[0]}, which holds folders" if len(deeper) > 1 else ""
        raise DataError(
            f"{root}: all {len(images)} images have the same label, {class_names[0]!r}; "
            f"expected at least two classes{inner}.{_left_out_words(roots)}"
        )
    if len(roots) > 1:
        record = {"more_roots": [str(other.resolve()) for other in roots[1:]], **record}
        # Paths that lead out of a folder that is a link would lead out of where it points to.
        root = root.resolve()
    return ImageDataset(
        name=root.resolve().name or "data",
        root=root,
        images=images.sort_values("path").reset_index(drop=True),
        class_names=class_names,
        grouped=grouped,
        opened_with=record,
        multi_label=multi_label,
    )


def _left_out_words(roots: Sequence[Path]) -> str:
    """Return sentences on pictures that are not looked at, and empty folders; blank without."""
    sentences = left_out_sentences(left_out(roots, class_folders=True))
    return "".join(f" {what} {advice}" for what, advice in sentences if advice)
