"""Options of a data set: how its table of labels is read, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass

from hubretrain.option_fields import option

NO_COLUMN = "none"
"""Value of `group_column` and `split_column` that declines the usual column."""

USUAL_COLUMNS = {
    "image": ("path", "file_name", "image_id", "filename", "image"),
    "label": ("label", "class", "dx", "labels"),
    "group": ("group", "lesion_id", "patient_id", "subject_id"),
    "split": ("split",),
}
"""Columns that are taken where none is named: the first that the table has."""


@dataclass(frozen=True)
class TableOptions:
    """How a table of labels is read; a column that is not named is one of `USUAL_COLUMNS`.

    Attributes:
        image_column: Column with the image: a path below its folder, a file name or a file stem.
        label_column: Column with the class.
        group_column: Column with what must stay together, such as a lesion or a patient; an empty
            cell makes the image a group of its own. `none`: no groups.
        split_column: Column with a given split: train, validation or test; `none`: ignore it,
            and that of folders too.
        skip_unmatched: Skip rows without a file and files without a row, instead of an error.
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
    remote: bool = option(
        False,
        "Read images over the network where a table that was recognised by itself names URLs.",
    )

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
