"""Everything that a report tells of, read from the run folder: no image, no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain import run_tables
from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.near_duplicates import read_near_duplicates
from hubretrain.data.splitting import TEST, read_folds
from hubretrain.errors import CacheError, HeadError, RunError
from hubretrain.evaluation import METRICS, DecisionRule, intervals
from hubretrain.heads import ENSEMBLE_NAME, ModuleHeads
from hubretrain.run_tables import ENSEMBLE, MODULE
from hubretrain.runs import FineTuneRecord, FitRecord, Run
from hubretrain.screening import Evaluator, per_class

N_RESAMPLES = 1000
HEAD, FINE_TUNED = "head", "fine-tuned"
OUT_OF_FOLD, TEST_SPLIT, VALIDATION = "out of fold", "test split", "validation fold"
Figure = tuple[float, float, float]
"""Estimate, low and high end of the 95 % interval; the ends are NaN where there is none."""


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """What one model says of some images that it was not trained on.

    Attributes:
        module: The module's name, or `ensemble`.
        kind: `head`, `fine-tuned` or `ensemble`.
        part: Which images: `out of fold`, `test split` or `validation fold`.
        rows: int64 (n_images,), rows of the image table.
        probabilities: float64 (n_images, n_classes).
        decided: int64 (n_images,), the class that the decision rule decides on.
        adjust: Strength of the rule's logit adjustment; 0: the likeliest class.
        figures: Metric name to its figure.
        classes: A row a class, as in `per_class.csv`.
    """

    module: str
    kind: str
    part: str
    rows: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    decided: npt.NDArray[np.int64]
    adjust: float
    figures: Mapping[str, Figure]
    classes: pd.DataFrame

    @property
    def title(self) -> str:
        """What the page calls it."""
        name = self.module if self.kind == ENSEMBLE else f"{self.module}, {self.kind}"
        return f"{name}: {self.part}"


@dataclass(frozen=True, eq=False)
class RunData:
    """A run, read.

    Attributes:
        run: Where it is.
        fit: What the fit recorded.
        finetune: What fine-tuning recorded.
        class_names: In class order.
        images: A row an image: path, sha256, label, group (its cluster), fold, class_index.
        board: The leaderboard.
        effects: What each ingredient was worth.
        models: The one to begin with first.
        histories: Of fine-tuned modules, a row an epoch.
        missing: What the run does not hold, a sentence each.
    """

    run: Run
    fit: FitRecord
    finetune: FineTuneRecord
    class_names: tuple[str, ...]
    images: pd.DataFrame
    board: pd.DataFrame
    effects: pd.DataFrame
    models: tuple[EvaluatedModel, ...]
    histories: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def gather(run: Run) -> RunData:
    """Reads a run folder.

    Raises:
        RunError: The run is not fitted, or a file of it is missing or damaged.
    """
    fit, finetune = run.fit, run.finetune
    names = fit.class_names
    images = read_folds(run.folds_file)
    images["class_index"] = images["label"].map({name: c for c, name in enumerate(names)})
    if images["class_index"].isna().any():
        raise RunError(f"{run.folds_file} holds classes that the fit does not know; fit again.")
    images["class_index"] = images["class_index"].astype(np.int64)
    board, effects = run_tables.LEADERBOARD.read(run.folder), run_tables.EFFECTS.read(run.folder)
    reader = _Reader(run, fit, finetune, images, board)
    models = [*reader.fine_tuned(), *reader.out_of_fold(), *reader.heads_on_test()]
    models.sort(
        key=lambda one: (
            one.kind != FINE_TUNED,
            one.kind == FINE_TUNED and one.module != finetune.chosen,
            one.kind == FINE_TUNED and one.part != TEST_SPLIT,
        )
    )
    histories = {
        folder.name: run_tables.HISTORY.read(folder)
        for folder in _fine_tuned_folders(run)
        if run_tables.HISTORY.path(folder).exists()
    }
    if not histories:
        reader.missing.append(
            "No module of this run is fine-tuned; do it with: hubretrain finetune "
            f"{run.folder.as_posix()}"
        )
    return RunData(
        run,
        fit,
        finetune,
        names,
        images,
        board,
        effects,
        tuple(models),
        histories,
        tuple(reader.missing),
    )


class _Reader:
    """Reads predictions of one run and judges those that no file judges."""

    def __init__(
        self,
        run: Run,
        fit: FitRecord,
        finetune: FineTuneRecord,
        images: pd.DataFrame,
        board: pd.DataFrame,
    ) -> None:
        self.run, self.fit, self.finetune, self.images, self.board = (
            run,
            fit,
            finetune,
            images,
            board,
        )
        self.names = fit.class_names
        self.missing: list[str] = []
        self._row_of = {path: row for row, path in enumerate(images["path"])}

    def out_of_fold(self) -> Iterator[EvaluatedModel]:
        """The heads of the shortlist, the best module and the ensemble, out of fold."""
        said = run_tables.OUT_OF_FOLD.read(self.run.folder)
        file = run_tables.OUT_OF_FOLD.path(self.run.folder)
        classes = run_tables.PER_CLASS.read(self.run.folder)
        board = self.board[self.board["kind"] == MODULE]
        wanted = [*self.fit.shortlist, *board["module"].head(1), ENSEMBLE_NAME]
        index = {name: c for c, name in enumerate(self.names)}
        for name in dict.fromkeys(wanted):
            table = said[said["module"] == name]
            if table.empty:
                continue
            kind = ENSEMBLE if name == ENSEMBLE_NAME else HEAD
            row = self.board[self.board["kind" if kind == ENSEMBLE else "module"] == name].iloc[0]
            figures = {
                metric: _figure(row, metric)
                for metric in (*METRICS, "plain_accuracy", "plain_balanced_accuracy")
                if metric in row and pd.notna(row[metric])
            }
            yield EvaluatedModel(
                name,
                kind,
                OUT_OF_FOLD,
                self._rows(table, file),
                self._probabilities(table, file),
                table["decision"].map(index).to_numpy(np.int64),
                float(row["adjust"]) if pd.notna(row.get("adjust")) else 0.0,
                figures,
                classes[classes["module"] == name].drop(columns="module").reset_index(drop=True),
            )

    def heads_on_test(self) -> Iterator[EvaluatedModel]:
        """The shortlist's heads on the test split, from the cached bottlenecks."""
        test = self.images[self.images["fold"] == TEST]
        for name in self.fit.shortlist if len(test) else ():
            try:
                head = ModuleHeads.load(self.run.heads_file(name)).deployed
                with Bottlenecks(self.fit.cache_folder / f"{name}.h5") as bottlenecks:
                    features = bottlenecks.rows(test["sha256"].tolist())
            except (CacheError, HeadError) as error:
                self.missing.append(f"The head of {name} on the test split: {error}")
                continue
            probabilities = head.probabilities(features).astype(np.float64)
            rows = test.index.to_numpy(np.int64)
            yield self._judged(name, HEAD, TEST_SPLIT, rows, probabilities, head.rule)

    def fine_tuned(self) -> Iterator[EvaluatedModel]:
        """Fine-tuned modules on the test split and on the fold that stopped them."""
        tables = {TEST_SPLIT: run_tables.PREDICTIONS, VALIDATION: run_tables.VALIDATION_PREDICTIONS}
        for folder in _fine_tuned_folders(self.run):
            there = {part: t for part, t in tables.items() if t.path(folder).exists()}
            rule = self._rule(folder.name) if there else None
            for part, file in there.items():
                table = self._still_there(file.read(folder), folder)
                if table.empty or rule is None:
                    continue
                probabilities = self._probabilities(table, file.path(folder))
                rows = self._rows(table, file.path(folder))
                yield self._judged(folder.name, FINE_TUNED, part, rows, probabilities, rule)

    def _still_there(self, table: pd.DataFrame, folder: Path) -> pd.DataFrame:
        """What fine-tuning said of the images that a later fit still holds."""
        known = table["path"].isin(self._row_of)
        if not known.all():
            self.missing.append(
                f"{int((~known).sum()):,} of {len(table):,} images that {folder.name} was judged "
                f"on are not in {self.run.folds_file} any more and left out of its figures; "
                "fine-tune it again to judge it on the others too."
            )
        return table[known]

    def _judged(
        self,
        name: str,
        kind: str,
        part: str,
        rows: npt.NDArray[np.int64],
        probabilities: npt.NDArray[np.float64],
        rule: DecisionRule,
    ) -> EvaluatedModel:
        decided = rule.adjust(probabilities)
        labels = self.images["class_index"].to_numpy()[rows]
        groups = self.images["group"].to_numpy()[rows]
        figures: dict[str, Figure] = {}
        classes = pd.DataFrame(
            {"class": self.names, "n_images": np.bincount(labels, minlength=len(self.names))}
        )
        if len(set(groups.tolist())) > 1:
            weights = intervals.group_resamples(groups, n_resamples=N_RESAMPLES, seed=self.fit.seed)
            judge = Evaluator(labels, groups, weights, "accuracy")
            columns = judge.all_columns(probabilities, decided)
            figures = {
                metric: (columns[metric], columns[f"{metric}_low"], columns[f"{metric}_high"])
                for metric in (*METRICS, "plain_accuracy", "plain_balanced_accuracy")
                if metric in columns
            }
            classes = per_class(self.names, {name: (probabilities, decided)}, judge)
        return EvaluatedModel(
            name,
            kind,
            part,
            rows,
            probabilities,
            decided.argmax(axis=1),
            rule.strength,
            figures,
            classes,
        )

    def _rule(self, module: str) -> DecisionRule:
        """The decision rule that fine-tuning was judged by: that of the head it started from."""
        record = self.finetune.modules.get(module)
        try:
            rule = ModuleHeads.load(self.run.heads_file(module)).warm_start.rule
            return DecisionRule(record.adjust if record else rule.strength, rule.priors)
        except HeadError:
            self.missing.append(
                f"The decision rule of {module}: its head file is missing, so fine-tuned "
                "decisions are the likeliest class."
            )
            return DecisionRule(0.0, ())

    def _rows(self, table: pd.DataFrame, file: Path) -> npt.NDArray[np.int64]:
        try:
            return np.array([self._row_of[path] for path in table["path"]], np.int64)
        except KeyError as error:
            raise RunError(
                f"{file} names {error}, which {self.run.folds_file} does not hold; fit "
                "again, and then fine-tune."
            ) from None

    def _probabilities(self, table: pd.DataFrame, file: Path) -> npt.NDArray[np.float64]:
        try:
            return table[[f"p({name})" for name in self.names]].to_numpy(np.float64)
        except (KeyError, ValueError) as error:
            raise RunError(f"{file} is damaged ({error}); make it again.") from error


def near_pairs(gathered: RunData) -> pd.DataFrame | None:
    """The near duplicates that the cache remembers; None where it knows of no search.

    Returns:
        Columns a, b (sha256), similarity.
    """
    near = read_near_duplicates(gathered.fit.cache_folder / "copies.csv")
    return None if near is None else near.pairs


def _fine_tuned_folders(run: Run) -> list[Path]:
    return sorted(path for path in (run.folder / "finetune").glob("*") if path.is_dir())


def _figure(row: Any, metric: str) -> Figure:
    return tuple(float(row.get(f"{metric}{end}", np.nan)) for end in ("", "_low", "_high"))  # type: ignore[return-value]
