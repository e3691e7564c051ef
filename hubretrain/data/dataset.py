"""Folders or a table become a data set: a checked table of labelled images.

The layouts that are recognised stand in `layouts`, the tables in `tables`. Nothing here opens
an image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from hubretrain.data.image_table import usable_images
from hubretrain.data.layouts import IMAGE_SUFFIXES, Place, class_folders, default_folder, places_of
from hubretrain.data.splitting import cut_parts
from hubretrain.data.tables import NO_COLUMN, labelled_by, labels_images
from hubretrain.errors import DataError

Folder = str | os.PathLike[str]
Options = dict[str, str | bool | list[str]]


@dataclass(frozen=True)
class ImageDataset:
    """A checked table of labelled images.

    Attributes:
        name: The data set's name, used for its folder in the cache: that of its first folder.
        root: The folder that image paths are relative to: the first.
        images: One row an image, columns `path` (str, relative to `root`, with `/`),
            `label` (str), `group` (str; images of one group never straddle splits) and
            `split` (`train`, `validation`, `test`, or empty where none was given).
        class_names: The labels in class order; class `c` is `class_names[c]`.
        grouped: Whether groups were given; otherwise each image is a group of its own.
        opened_with: The options of `open_dataset` that open it again.
    """

    name: str
    root: Path
    images: pd.DataFrame
    class_names: tuple[str, ...]
    grouped: bool = False
    opened_with: Options = field(default_factory=dict)

    @classmethod
    def from_folder(cls, root: Folder, *, more_roots: Sequence[Folder] = ()) -> ImageDataset:
        """Reads a folder of class-named sub-folders, with or without train/val/test above them.

        Args:
            root: The folder.
            more_roots: More such folders, to enrich the first.

        Raises:
            DataError: A folder is missing or holds no class folders, images lie outside them, or
                there are fewer than two classes.
        """
        places = places_of([Path(root), *map(Path, more_roots)], tables=False)
        table = pd.concat([class_folders(place) for place in places])
        return _checked(places, table, grouped=False)

    @classmethod
    def from_csv(
        cls,
        root: Folder,
        labels: Folder,
        *,
        more_roots: Sequence[Folder] = (),
        image_column: str | None = None,
        label_column: str | None = None,
        group_column: str | None = None,
        split_column: str | None = None,
        skip_unmatched: bool = False,
    ) -> ImageDataset:
        """Reads folders of images and a table that labels them.

        Args:
            root: The folder that holds the images, at any depth.
            labels: A table with one row an image: CSV, or by its suffix TSV, JSON lines or
                parquet.
            more_roots: More folders that hold images of the table.
            image_column: Names the image: a path below its folder, a file name, or a file stem.
                By default the first of `path`, `file_name`, `image_id`, `filename`,
                `image` that is there.
            label_column: The class. By default the first of `label`, `class`, `dx`,
                `labels`.
            group_column: Images that belong together (a lesion, a patient). An empty cell
                makes the image a group of its own. By default the first of `group`,
                `lesion_id`, `patient_id`, `subject_id`; `none` takes none.
            split_column: A split that was given: `train`, `validation` or `test`. By
                default `split`; `none` takes none.
            skip_unmatched: Go on without rows that have no file and files that have no row.

        Raises:
            DataError: A column is missing, a row has no file, a file has no row, a label is
                empty, one image has two labels, there are fewer than two classes, or the labels
                are no classes.
        """
        places = places_of([Path(root), *map(Path, more_roots)], tables=False)
        columns = {
            "image": image_column,
            "label": label_column,
            "group": group_column,
            "split": split_column,
        }
        labels = Path(labels)
        table, taken = labelled_by(labels, places, columns, skip_unmatched=skip_unmatched)
        dataset = _checked(places, table, grouped=taken["group"] is not None)
        given = {f"{role}_column": name for role, name in columns.items() if name is not None}
        options: Options = {"labels": str(labels.resolve()), **given}
        options["skip_unmatched"] = skip_unmatched
        return replace(dataset, opened_with=dataset.opened_with | options)

    @property
    def labels(self) -> pd.Series:
        """The class index of each image, int64 in [0, n_classes)."""
        order = {name: index for index, name in enumerate(self.class_names)}
        return self.images["label"].map(order).astype("int64")

    def split(
        self,
        *,
        n_folds: int = 5,
        test_fraction: float = 0.2,
        seed: int = 0,
        keep_duplicates_together: bool = True,
        folds_file: Folder | None = None,
        cache: Folder = "cache",
    ) -> pd.DataFrame:
        """Cuts a test split and folds: classes stratified, groups and duplicates kept together.

        Args:
            n_folds: Folds of the cross-validation; not used where a validation split is given.
            test_fraction: Share of the images in the test split; not used where one is given.
            seed: Another seed is another split.
            keep_duplicates_together: Look for near duplicates and keep them in one part.
            folds_file: An earlier split, as `hubretrain.data.splitting.folds.write_folds`
                writes it. Images that it holds keep their part.
            cache: Where digests and near duplicates are kept, so that they are sought once.

        Returns:
            The images that can be decoded: the columns of `images`, `sha256`,
            `class_index` (int64), `cluster` (str; what was kept together) and `fold` (int8:
            0, 1, ..., -1 for the test split, -2 for training only).

        Raises:
            SplitError: A class has too few groups, or the earlier split does not fit.
        """
        images = usable_images(self, Path(cache), near_duplicates=keep_duplicates_together)
        images["fold"] = cut_parts(
            images,
            None if folds_file is None else Path(folds_file),
            n_folds=n_folds,
            test_fraction=test_fraction,
            seed=seed,
        )
        return images


def open_dataset(
    data: Folder | None = None,
    *,
    more_roots: Sequence[Folder] = (),
    labels: Folder | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    skip_unmatched: bool = False,
) -> ImageDataset:
    """Opens a data set: the folder given, or the one in `data/`.

    Args:
        data: A folder. None: `data/` itself, or the one data set in it.
        more_roots: More folders, to enrich the first; each is recognised by itself, and paths are
            relative to the first.
        labels: A table of labels; see `ImageDataset.from_csv` for this and the columns.
        image_column: The column that names the image.
        label_column: The column that names the class.
        group_column: The column that names what must stay together.
        split_column: The column with a given split; `none` forgets that of folders too.
        skip_unmatched: Go on without rows that have no file and files that have no row.

    Raises:
        DataError: No data set, several, or one that is not as expected; the message says which.
    """
    root = Path(data) if data is not None else default_folder(Path("data"))
    columns = {
        "image_column": image_column,
        "label_column": label_column,
        "group_column": group_column,
        "split_column": split_column,
    }
    asked: dict[str, str] = {name: value for name, value in columns.items() if value is not None}
    if labels is not None:
        return ImageDataset.from_csv(
            root, labels, more_roots=more_roots, skip_unmatched=skip_unmatched, **asked
        )
    places = places_of([root, *map(Path, more_roots)])
    needed = {name: value for name, value in asked.items() if value != NO_COLUMN}
    if needed and not any(place.table for place in places):
        name, value = next(iter(needed.items()))
        option = name.replace("_", "-")
        raise DataError(f"{root}: --{option} {value} needs a table; name it with --labels FILE.")
    tables, grouped = [], False
    roles = {name.removesuffix("_column"): value for name, value in columns.items()}
    for place in places:
        if place.table is None or (image_column is None and not labels_images(place.table)):
            tables.append(class_folders(place))
            continue
        table, taken = labelled_by(place.table, [place], roles, skip_unmatched=skip_unmatched)
        grouped = grouped or taken["group"] is not None
        tables.append(table.assign(split=place.split) if place.split else table)
    table = pd.concat(tables)
    if split_column == NO_COLUMN:  # nor those of folders
        table["split"] = ""
    dataset = _checked(places, table, grouped=grouped)
    options: Options = {**asked, "skip_unmatched": skip_unmatched}
    return replace(dataset, opened_with=dataset.opened_with | options)


def sorted_classes(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels in class order: by number where all are whole numbers, else by text."""
    distinct = set(labels)
    if all(label.isascii() and label.isdigit() for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def _checked(places: Sequence[Place], table: pd.DataFrame, *, grouped: bool) -> ImageDataset:
    """The data set of a table, whose paths are relative to the first of some folders."""
    roots = list(dict.fromkeys(place.root for place in places))
    root = roots[0]
    if not len(table):
        raise DataError(
            f"{root} holds no images; expected class folders or a table of labels, with images of "
            f"type {', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}."
        )
    class_names = sorted_classes(table["label"].tolist())
    if len(class_names) < 2:
        deeper = {path.split("/")[1] for path in table["path"] if path.count("/") > 1}
        inner = f"; or name {root / class_names[0]}, which holds folders" if len(deeper) > 1 else ""
        raise DataError(
            f"{root}: all {len(table)} images have the one label {class_names[0]!r}; "
            f"at least two classes are needed{inner}."
        )
    table = table.sort_values("path").reset_index(drop=True)
    more = [str(place.resolve()) for place in roots[1:]]
    # Paths that lead out of a folder that is a link would lead out of where it points to.
    root = root.resolve() if more else root
    opened_with: Options = {"more_roots": more} if more else {}
    name = root.resolve().name or "data"
    return ImageDataset(name, root, table, class_names, grouped, opened_with)
