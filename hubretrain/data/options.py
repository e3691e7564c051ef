"""Options of a table of labels: which columns to take, and what to do with rows without files."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    skip_unmatched: bool = False

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
