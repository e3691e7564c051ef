"""The tables of a run: one object per CSV file, which writes and reads it.

Names of classes, modules and files are text whatever they look like: a class may be called NA, a
module 2024. A column that is not declared is a number, such as a metric of the leaderboard or the
probability of a class, `p(<class>)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubretrain.csv_tables import (
    FLAG,
    INTEGER,
    NAME,
    NUMBER,
    OPTIONAL_INTEGER,
    TEXT,
    read_table,
    write_table,
)
from hubretrain.errors import RunError, unreadable
from hubretrain.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

MODULE, ENSEMBLE, REFERENCE = "module", "ensemble", "reference"
"""Values of the column `kind` of the leaderboard."""


@dataclass(frozen=True)
class RunTable:
    """A CSV file of a run.

    Attributes:
        file_name: Name of the file in its folder.
        columns: Column name to its type, of the columns that each such file has.
        stage: Command that writes it.
        digested: Whether it has its own digest, because `run.json` does not hold it.
    """

    file_name: str
    columns: Mapping[str, str]
    stage: str = "fit"
    digested: bool = False

    def path(self, folder: Path) -> Path:
        """Return the path of the file in a run's folder, or in one of its folders."""
        return folder / self.file_name

    def write(self, folder: Path, table: pd.DataFrame) -> None:
        """Write the file, whole or not at all.

        Raises:
            KeyError: The table lacks a column.
            WriteError: The file cannot be written.
        """
        if absent := self._absent(table):
            raise KeyError(absent)
        write_table(self.path(folder), table, digested=self.digested)

    def read(self, folder: Path) -> pd.DataFrame:
        """Read the file.

        Args:
            folder: A run's folder, or one of its folders. A table of the fit must be the one that
                `run.json` names.

        Raises:
            RunError: It is missing or damaged, or lacks a column.
        """
        path = self.path(folder)
        if self.stage == "fit" and Run(folder).is_fitted:
            Run(folder).checked(path)
        try:
            table = self._read(path)
        except FileNotFoundError as error:
            raise RunError(f"{path} is missing; run `hubretrain {self.stage}` again.") from error
        except (OSError, ValueError) as error:
            remedy = f"run `hubretrain {self.stage}` again"
            raise RunError(unreadable(path, error, remedy)) from error
        if absent := self._absent(table):
            raise RunError(
                f"{path} has no column {absent!r}: another version wrote it; "
                f"run `hubretrain {self.stage}` again."
            )
        return table

    def _read(self, path: Path) -> pd.DataFrame:
        table = read_table(path, self.columns, digested=self.digested)
        for name in table.columns.difference(list(self.columns)):
            if table[name].dtype.kind not in "biuf":
                raise ValueError(f"the column {name!r} holds text")
        return table

    def _absent(self, table: pd.DataFrame) -> str | None:
        return next((name for name in self.columns if name not in table), None)


_IMAGE = {"path": NAME, "sha256": NAME, "label": NAME}

LEADERBOARD = RunTable(
    "leaderboard.csv",
    {
        "rank": OPTIONAL_INTEGER,
        "module": NAME,
        "kind": NAME,
        "layers": TEXT,
        "trained_on": TEXT,
        "head": TEXT,
        "class_weight": TEXT,
        "l2": NUMBER,
        "adjust": NUMBER,
        "tied": FLAG,
        "shortlist": OPTIONAL_INTEGER,
        "n_members": OPTIONAL_INTEGER,
        "averaged_views": OPTIONAL_INTEGER,
    },
)
"""One row per module, then the ensemble and the baselines: metrics with intervals, costs."""

CANDIDATES = RunTable(
    "heads.csv",
    {
        "module": NAME,
        "layers": NAME,
        "trained_on": NAME,
        "head": NAME,
        "class_weight": NAME,
        "l2": NUMBER,
        "adjust": NUMBER,
        "passes": INTEGER,
        "converged": FLAG,
    },
)
"""One row per fitted head and decision rule, with its metrics before any correction."""

PER_CLASS = RunTable(
    "per_class.csv",
    {"module": NAME, "class": NAME, "n_images": INTEGER, "n_groups": INTEGER},
)
"""One row per module and class: recall and average precision with intervals."""

EFFECTS = RunTable(
    "effects.csv",
    {
        "effect": NAME,
        "metric": NAME,
        "estimate": NUMBER,
        "low": NUMBER,
        "high": NUMBER,
        "p": NUMBER,
        "n_modules": INTEGER,
        "sentence": NAME,
    },
)
"""One row per ablation: what views, class weights and the like are worth."""

OUT_OF_FOLD = RunTable(
    "out_of_fold.csv", {"module": NAME, **_IMAGE, "fold": INTEGER, "decision": NAME}
)
"""One row per module and image: probabilities of heads that never saw the image."""

TEST_PREDICTIONS = RunTable("test_predictions.csv", {"module": NAME, **_IMAGE, "decision": NAME})
"""One row per shortlisted module and image of the test split."""

HISTORY = RunTable(
    "history.csv", {"epoch": INTEGER, "phase": NAME, "kept": FLAG}, "finetune", digested=True
)
"""One row per epoch of a fine-tuning."""

PREDICTIONS = RunTable("predictions.csv", _IMAGE, "finetune")
"""One row per image of the test split: probabilities of a fine-tuned module."""

VALIDATION_PREDICTIONS = RunTable("validation.csv", _IMAGE, "finetune")
"""One row per image of the validation fold: probabilities of a fine-tuned module."""

EXPORTED_VALIDATION = RunTable("exported_validation.csv", _IMAGE, "finetune")
"""The same of the fine-tuned model that is exported, whose training may be gone."""

METRICS = RunTable(
    "metrics.csv", {"metric": NAME, "estimate": NUMBER, "low": NUMBER, "high": NUMBER}, "evaluate"
)
"""One row per metric of an export on another data set, with its interval."""

EVALUATED = RunTable("predictions.csv", {**_IMAGE, "decision": NAME}, "evaluate")
"""One row per image of another data set: probabilities of an export, and its decision."""

CONFUSION = RunTable("confusion.csv", {"label": NAME}, "evaluate")
"""One row per label of another data set: number of images by decision, a column per class."""

LABEL_COUNTS = RunTable(
    "label_counts.csv",
    {
        "label": NAME,
        "true_positives": INTEGER,
        "false_positives": INTEGER,
        "false_negatives": INTEGER,
        "true_negatives": INTEGER,
    },
    "evaluate",
)
"""In its place where images may have several labels: how often each is decided on."""
