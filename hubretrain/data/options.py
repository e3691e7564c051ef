"""Options of a data set: how its table of labels is read, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass

from hubretrain.data.images import MAX_BITS, MAX_PIXELS, MOST_PIXELS, Reading
from hubretrain.option_fields import option

NO_COLUMN = "none"
"""Value of `group_column` and `split_column` that declines the usual column."""

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
        label_column: Column with the class.
        group_column: Column with what must stay together, such as a lesion or a patient; an empty
            cell makes the image a group of its own. `none`: no groups.
        split_column: Column with a given split: train, validation or test; `none`: ignore it,
            and that of folders too.
        skip_unmatched: Skip rows without a file and files without a row, instead of an error.
        skip_unlabelled: Skip rows without a class, instead of an error.
        group_from: Groups from the paths of images: `folder:-1`, the folder that an image is in,
            `folder:0`, the first one; or a regular expression, whose first group, or else the
            whole match, is the group. `none`: no groups.
        exclude_class: Classes to leave out.
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
    label_column: str | None = option(
        None, "Column of the table that holds the class.", metavar="NAME"
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

    @property
    def reading(self) -> Reading:
        """How the images are read."""
        return Reading(self.bits or MAX_BITS, self.max_pixels or MAX_PIXELS)

    def columns(self) -> dict[str, str]:
        """Return the columns that were named, by parameter name."""
        return {
            f"{role}_column": name
            for role in USUAL_COLUMNS
            if (name := self.column_of(role)) is not None
        }

    def column_of(self, role: str) -> str | None:
        """Return the column named for a role, one of `USUAL_COLUMNS`."""
        name: str | None = getattr(self, f"{role}_column")
        return name


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
