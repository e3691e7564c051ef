"""Options of a data set: how its table of labels is read, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass

from hubretrain.data.images import MAX_BITS, MAX_PIXELS, MOST_PIXELS, Reading
from hubretrain.option_fields import option

NO_COLUMN = "none"
"""Value of `group_column` and `split_column` that declines the usual column."""

NO_SEPARATOR = "none"
"""Value of `label_separator` for cells that hold one label each."""

USUAL_COLUMNS = {
    "image": (
        *("path", "file_name", "image_id", "image", "img", "file_path", "image_path", "img_path"),
        *("image_name", "image_file", "file", "fname", "picture", "photo", "images", "image_index"),
        *("isic_id", "id_code", "id"),
    ),
    "label": (
        *("label", "class", "dx", "labels", "lbl", "category", "diagnosis", "target", "species"),
        *("breed", "class_name", "label_name", "category_name", "class_label", "y", "class_id"),
        *("label_id", "category_id", "finding_labels"),
    ),
    "group": (
        *("group", "group_id", "patient_id", "patient", "subject_id", "subject", "case_id"),
        *("lesion_id", "lesion"),
    ),
    "split": ("split", "subset", "partition", "set"),
}
"""Columns that are taken where none is named: the first that the table has, written in any case,
with or without blanks, underscores and hyphens. Patients stand before lesions: a patient has
several."""


@dataclass(frozen=True)
class TableOptions:
    """How a data set is read: the columns of its table, its groups and its classes.

    A column that is not named is one of `USUAL_COLUMNS`.

    Attributes:
        image_column: Column with the image: a path below its folder, a file name or a file stem.
        label_column: Column with the class; several columns make the data set multi-label: a label
            is then `column:value`, or the column's own name where its cells are 0 and 1.
        group_column: Column with what must stay together, such as a lesion or a patient; an empty
            cell makes the image a group of its own. `none`: no groups.
        split_column: Column with a given split: train, validation or test; `none`: ignore it,
            and that of folders too.
        skip_unmatched: Skip rows without a file and files without a row, instead of an error.
        multi_label: Whether an image may have several labels, or none; `False`: each cell is one
            class, whatever it holds. None: by the two options below, else an error where cells hold
            several.
        label_separator: What separates the labels within a cell, such as `|`; `none`: nothing.
            By default a bar, a semicolon or a comma, the first that some cell holds; lists need
            none. It makes the data set multi-label.
        skip_unlabelled: Skip rows without a class, instead of an error, or of images that have no
            label in a multi-label data set.
        group_from: Groups from the paths of images: `folder:-1`, the folder that an image is in,
            `folder:0`, the first one, which may stand above those of the classes; or a regular
            expression, whose first group, or else the whole match, is the group. `none`: no groups.
        exclude_class: Classes to leave out, with their images; where images may have several
            labels the images stay, without these.
        merge: Classes to merge or rename, such as `a,b=c`.
        drop_small_classes: Leave out classes with fewer groups than these; after merging.
        bits: Bits that the values of 16-bit channels use: 12 for cameras of 12 bits, whose values
            are near black in 16. By default 16, or what the images seen by the command line say.
        max_pixels: The largest image that is read, width times height; by default
            `hubretrain.data.images.MAX_PIXELS`.
        remote: Read images at URLs also where a table was recognised by itself, not named.

    Examples:
        >>> from hubretrain import TableOptions, open_dataset
        >>> table = TableOptions(image_column="file", label_column="kind", group_column="patient")
        >>> dataset = open_dataset("data/digits", labels="labels.csv", table=table)
        >>> dataset.grouped
        True
    """

    image_column: str | None = option(
        None,
        "Column of the table that names the image: a path, a file name or a file stem.",
        metavar="NAME",
    )
    label_column: str | tuple[str, ...] | None = option(
        None,
        "Column of the table that holds the class; repeated for labels from several columns.",
        metavar="NAME",
        repeatable=True,
    )
    group_column: str | None = option(
        None,
        "Column of the table that tells which images must stay together, such as those of one "
        "patient; or none.",
        metavar="NAME",
    )
    split_column: str | None = option(
        None,
        "Column of the table with a given split: train, validation, test; or none.",
        metavar="NAME",
    )
    multi_label: bool | None = option(
        None,
        "Whether an image may have several labels or none, or has one class.",
        flag="multi-label/single-label",
    )
    label_separator: str | None = option(
        None,
        "What separates several labels in a cell, such as '|'; or none.",
        metavar="TEXT",
    )
    skip_unmatched: bool = option(False, "Skip rows without a file and files without a row.")
    skip_unlabelled: bool = option(False, "Skip rows of the table without a class.")
    group_from: str | None = option(
        None,
        "Which images must stay together, from their paths: folder:-1, the folder that each is in; "
        "folder:0, the first one; a regular expression, such as 'patient(\\d+)'; or none.",
        metavar="REGEX|folder:N",
    )
    exclude_class: tuple[str, ...] = option(
        (), "Class to leave out; may be repeated.", metavar="NAME", repeatable=True
    )
    merge: tuple[str, ...] = option(
        (),
        "Classes to merge or rename; may be repeated.",
        metavar="A,B=C",
        repeatable=True,
    )
    drop_small_classes: int | None = option(
        None,
        "Leave out classes with fewer groups (images, where there are none) than N.",
        metavar="N",
        minimum=1,
    )
    bits: int | None = option(
        None,
        "Bits that values in 16-bit images use, such as 12: the highest of them is white. By "
        "default what a sample of the images shows.",
        metavar="8..16",
        minimum=8,
        maximum=MAX_BITS,
    )
    max_pixels: int | None = option(
        None,
        f"Maximum size of an image, width times height; by default {MAX_PIXELS}. Larger ones are "
        "left out.",
        metavar="N",
        minimum=1,
        maximum=MOST_PIXELS,
    )
    remote: bool = option(
        False,
        "Read images over the network where a table that was recognised by itself names URLs.",
    )

    def __post_init__(self) -> None:
        """Write one label column as a text, several as a tuple."""
        if isinstance(self.label_column, tuple | list):
            names = tuple(dict.fromkeys(self.label_column))
            column = names if len(names) > 1 else names[0] if names else None
            object.__setattr__(self, "label_column", column)

    @property
    def is_multi_label(self) -> bool | None:
        """Whether an image may have several labels, as far as the options say."""
        if self.multi_label is not None:
            return self.multi_label
        separated = self.label_separator not in (None, NO_SEPARATOR)
        return True if separated or len(self.columns_of("label")) > 1 else None

    @property
    def reading(self) -> Reading:
        """How the images are read."""
        return Reading(self.bits or MAX_BITS, self.max_pixels or MAX_PIXELS)

    def columns(self) -> dict[str, str | list[str]]:
        """Return the columns that were named, by parameter name."""
        named = {role: self.columns_of(role) for role in USUAL_COLUMNS}
        return {
            f"{role}_column": list(names) if len(names) > 1 else names[0]
            for role, names in named.items()
            if names
        }

    def columns_of(self, role: str) -> tuple[str, ...]:
        """Return the columns named for a role, one of `USUAL_COLUMNS`."""
        names: str | tuple[str, ...] | None = getattr(self, f"{role}_column")
        return () if names is None else (names,) if isinstance(names, str) else names


@dataclass(frozen=True)
class SplitOptions:
    """How a data set is split.

    Attributes:
        n_folds: Number of folds of the cross-validation; not used where a validation split is
            given.
        test_fraction: Share of the images in the test split; not used where one is given.
        seed: Random seed of the split.
        keep_duplicates_together: Whether to search for near duplicates and keep them in one part.

    Examples:
        >>> from hubretrain import SplitOptions, check_dataset, open_dataset
        >>> check = check_dataset(open_dataset("data/digits"), SplitOptions(n_folds=10))
    """

    n_folds: int = option(5, "Folds of the cross-validation.", flag="folds")
    test_fraction: float = option(0.2, "Share of the images kept for the test split.")
    seed: int = option(0, "Random seed of the split and of the resamples.")
    keep_duplicates_together: bool = option(
        True,
        "Search for near duplicates and keep them on one side of every split. Files with the same "
        "bytes always stay together.",
    )
