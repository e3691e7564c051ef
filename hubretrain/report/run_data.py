"""Everything that a report shows, read from the run folder alone: no image, no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.data import labels_of, targets
from hubretrain.data.near_duplicates import read_near_duplicates
from hubretrain.data.splitting import TEST, read_folds
from hubretrain.errors import RunError
from hubretrain.evaluation import (
    TOP_1,
    DecisionRule,
    Evaluator,
    Interval,
    LabelThresholds,
    Predictions,
    Rule,
    metrics_of,
)
from hubretrain.finetuning import recorded_rule
from hubretrain.heads import ENSEMBLE_NAME, Ensemble, Head, ModuleHeads
from hubretrain.runs import (
    ENSEMBLE,
    MODULE,
    VALIDATION_FOLD,
    FineTuneRecord,
    FitRecord,
    Run,
    RunTable,
    check_file,
    run_tables,
)

HEAD, FINE_TUNED, EXPORT = "head", "fine-tuned", "export"
OF_PROBABILITIES = ("log_loss", "calibration_error")  # what a temperature changes
OUT_OF_FOLD, TEST_SPLIT, VALIDATION = "out of fold", "test split", "validation fold"
OTHER_IMAGES = "other images"
FOLD_OF = {TEST_SPLIT: TEST, VALIDATION: VALIDATION_FOLD}


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """Predictions by one model of images that it was not trained on, evaluated.

    Attributes:
        module: Name of the module, or `ensemble`.
        kind: `head`, `fine-tuned`, `ensemble` or `export`.
        part: Which images: `out of fold`, `test split`, `validation fold` or `other images`.
        rows: int64 (n_images,), rows of the image table.
        probabilities: float64 (n_images, n_classes), at the temperature: as the exported model
            gives them.
        decisions: int64 (n_images,), the class that the decision rule decides on; of several labels
            per image bool (n_images, n_classes).
        adjust: Strength of the rule's logit adjustment of these probabilities; 0 is top-1.
        temperature: Their temperature.
        figures: Name of a metric to its estimate and interval; the ends of the interval are NaN
            where there is none.
        classes: One row per class, as in `per_class.csv`.
        thresholds: Of several labels per image the threshold of each; else ().
    """

    module: str
    kind: str
    part: str
    rows: IntArray
    probabilities: FloatArray
    decisions: AnyArray
    adjust: float
    temperature: float
    figures: Mapping[str, Interval]
    classes: pd.DataFrame
    thresholds: tuple[float, ...] = ()

    @property
    def title(self) -> str:
        """Title of the model on the page."""
        name = self.module if self.kind == ENSEMBLE else f"{self.module}, {self.kind}"
        return f"{name}: {self.part}"


@dataclass(frozen=True, eq=False)
class PredictedImages:
    """Images, and models that were evaluated on them.

    Attributes:
        class_names: Class names in class order.
        images: One row per image: path, sha256, label, and class_index where each is of one class;
            of a run also group (its cluster) and fold.
        models: The evaluated models; the page opens on the first.
        multi_label: Whether an image may have several labels.
    """

    class_names: tuple[str, ...]
    images: pd.DataFrame
    models: tuple[EvaluatedModel, ...]
    multi_label: bool = False

    @cached_property
    def labels(self) -> AnyArray:
        """Class of each image, int64 (n_images,); of several labels bool (n_images, n_classes)."""
        return targets(self.images["label"], self.class_names, self.multi_label)


@dataclass(frozen=True, eq=False, kw_only=True)
class RunData(PredictedImages):
    """What a run folder holds.

    Attributes:
        run: The run.
        fit: What the fit recorded.
        finetune: What fine-tuning recorded.
        board: The leaderboard.
        effects: The ablation.
        histories: Fine-tuned module to its history, one row per epoch.
        missing: What the run does not hold, one sentence each.
    """

    run: Run
    fit: FitRecord
    finetune: FineTuneRecord
    board: pd.DataFrame
    effects: pd.DataFrame
    histories: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def gather(run: Run) -> RunData:
    """Read a run folder.

    Raises:
        RunError: The run is not fitted, or a file of it is missing or damaged.
    """
    fit, finetune = run.fit, run.finetune
    names = fit.class_names
    images = read_folds(run.checked(run.folds_file))
    present = set(chain.from_iterable(labels_of(images["label"], fit.multi_label)))
    if not present <= set(names):
        raise RunError(
            f"{run.folds_file} names classes that the fit does not have; run `hubretrain fit` "
            "again."
        )
    if not fit.multi_label:
        images["class_index"] = targets(images["label"], names, False)
    board, effects = run_tables.LEADERBOARD.read(run.folder), run_tables.EFFECTS.read(run.folder)
    reader = _Reader(run, fit, finetune, images, board)
    models = [*reader.fine_tuned(), *reader.out_of_fold(), *reader.heads_on_test()]
    models.sort(
        key=lambda model: (
            model.kind != FINE_TUNED,
            model.kind == FINE_TUNED and model.module != finetune.chosen,
            model.kind == FINE_TUNED and model.part != TEST_SPLIT,
        )
    )
    histories = {
        folder.name: run_tables.HISTORY.read(folder)  # an error where that of a record is gone
        for folder in _fine_tuned_folders(run)
        if folder.name in finetune.modules or run_tables.HISTORY.path(folder).exists()
    }
    if not histories:
        reader.missing.append(
            "No module of this run is fine-tuned; run `hubretrain finetune "
            f"{run.folder.as_posix()}`."
        )
    return RunData(
        names,
        images,
        tuple(models),
        fit.multi_label,
        run=run,
        fit=fit,
        finetune=finetune,
        board=board,
        effects=effects,
        histories=histories,
        missing=tuple(reader.missing),
    )


class _Reader:
    """Reads the predictions of one run and evaluates those that no table evaluates."""

    def __init__(
        self,
        run: Run,
        fit: FitRecord,
        finetune: FineTuneRecord,
        images: pd.DataFrame,
        board: pd.DataFrame,
    ) -> None:
        self.run, self.fit, self.finetune = run, fit, finetune
        self.images, self.board = images, board
        self.missing: list[str] = []
        self._row_of = {path: row for row, path in enumerate(images["path"])}
        self._labels = targets(images["label"], fit.class_names, fit.multi_label)

    def out_of_fold(self) -> Iterator[EvaluatedModel]:
        """Yield the heads of the shortlist, the best module and the ensemble, out of fold."""
        predictions = run_tables.OUT_OF_FOLD.read(self.run.folder)
        classes = run_tables.PER_CLASS.read(self.run.folder)
        best = self.board.loc[self.board["kind"] == MODULE, "module"].head(1)
        for name in dict.fromkeys([*self.fit.shortlist, *best, ENSEMBLE_NAME]):
            table = predictions[predictions["module"] == name]
            if table.empty:
                continue
            kind = ENSEMBLE if name == ENSEMBLE_NAME else HEAD
            row = self._board_row(name)
            metrics = {
                metric: _interval(row, metric)
                for metric in (*metrics_of(self.fit.multi_label), *TOP_1)
                if metric in row and pd.notna(row[metric])
            }
            rows, probs, decisions = self._decided(table, run_tables.OUT_OF_FOLD)
            metrics |= {of: _interval(row, f"calibrated_{of}") for of in OF_PROBABILITIES}
            of_module = classes[classes["module"] == name].drop(columns="module")
            temperature = float(row["temperature"])
            yield EvaluatedModel(
                name,
                kind,
                OUT_OF_FOLD,
                rows,
                probs,
                decisions,
                self._adjust(row) / temperature,
                temperature,
                metrics,
                of_module.reset_index(drop=True),
                self._thresholds(name),
            )

    def heads_on_test(self) -> Iterator[EvaluatedModel]:
        """Yield the heads of the shortlist on the test split."""
        predictions = run_tables.TEST_PREDICTIONS.read(self.run.folder)
        for name in self.fit.shortlist:
            table = predictions[predictions["module"] == name]
            if table.empty:
                continue
            row = self._board_row(name)
            rows, probs, decisions = self._decided(table, run_tables.TEST_PREDICTIONS)
            temperature = float(row["temperature"])
            adjust = self._adjust(row) / temperature
            thresholds = self._thresholds(name)
            yield self._evaluated(
                name, HEAD, TEST_SPLIT, rows, probs, decisions, adjust, temperature, thresholds
            )

    def fine_tuned(self) -> Iterator[EvaluatedModel]:
        """Yield the fine-tuned modules on the test split and on the validation fold."""
        tables = {TEST_SPLIT: run_tables.PREDICTIONS, VALIDATION: run_tables.VALIDATION_PREDICTIONS}
        for folder in _fine_tuned_folders(self.run):
            record = self.finetune.modules.get(folder.name)
            recorded = record.files if record else {}
            present = {
                part: table
                for part, table in tables.items()
                if table.file_name in recorded or table.path(folder).exists()
            }
            rule, temperature = self._rule(folder.name) if present else (self._plain_rule, 1.0)
            for part, table_of in present.items():
                file = table_of.path(folder)
                if record is not None:
                    check_file(file, recorded.get(file.name), "hubretrain finetune")
                table = self._still_in_run(table_of.read(folder), folder.name, part)
                if table.empty:
                    continue
                rows, probs = self._rows(table, file), self._probs(table, file)
                decisions = rule.decide(probs)
                yield self._evaluated(
                    folder.name,
                    FINE_TUNED,
                    part,
                    rows,
                    probs,
                    decisions,
                    rule.strength if isinstance(rule, DecisionRule) else 0.0,
                    temperature,
                    _thresholds_of(rule),
                )

    def _still_in_run(self, table: pd.DataFrame, module: str, part: str) -> pd.DataFrame:
        """Return the rows of images that a later fit still holds in the same part."""
        of_part = self.images[self.images["fold"] == FOLD_OF[part]]
        sha256_of = dict(zip(of_part["path"], of_part["sha256"], strict=True))
        is_held = table["path"].map(sha256_of) == table["sha256"]
        if not is_held.all():
            self.missing.append(
                f"{int((~is_held).sum()):,} of {len(table):,} images that {module} was evaluated "
                f"on are no longer in the {part} of {self.run.folds_file} and are left out of its "
                "metrics; "
                "fine-tune it again to evaluate it on the images that were added."
            )
        return table[is_held]

    def _evaluated(
        self,
        name: str,
        kind: str,
        part: str,
        rows: IntArray,
        probs: FloatArray,
        decisions: AnyArray,
        adjust: float,
        temperature: float,
        thresholds: tuple[float, ...] = (),
    ) -> EvaluatedModel:
        names = self.fit.class_names
        labels, groups = self._labels[rows], self.images["group"].to_numpy()[rows]
        metrics: dict[str, Interval] = {}
        n_images = indicators(labels, len(names)).sum(axis=0)
        classes = pd.DataFrame({"class": names, "n_images": n_images})
        evaluator = Evaluator.if_grouped(labels, groups, self.fit.seed)
        if evaluator is not None:
            # Metrics of decisions depend on the class that is the largest alone, and of labels on
            # which are above 1/2.
            predictions = Predictions(probs, 1.0 * indicators(decisions, len(names)))
            metrics = evaluator.metrics(predictions)
            classes = evaluator.per_class(names, name, predictions)
        evaluated = (rows, probs, decisions, adjust, temperature, metrics, classes, thresholds)
        return EvaluatedModel(name, kind, part, *evaluated)

    @property
    def _plain_rule(self) -> Rule:
        """The rule of a module whose own is unknown: top-1, or thresholds of 1/2."""
        if self.fit.multi_label:
            return LabelThresholds((0.5,) * len(self.fit.class_names))
        return DecisionRule(0.0, ())

    def _thresholds(self, name: str) -> tuple[float, ...]:
        """Return the thresholds of a head or the ensemble at its temperature; () of classes."""
        if not self.fit.multi_label:
            return ()
        if name == ENSEMBLE_NAME:
            model: Ensemble | Head = Ensemble.load(self.run.checked_ensemble())
        else:
            model = ModuleHeads.load(self.run.checked_heads(name)).deployed
        return _thresholds_of(model.rule.at_temperature(model.calibration.temperature))

    def _rule(self, module: str) -> tuple[Rule, float]:
        """Return the decision rule of a fine-tuned module, and the temperature it is for."""
        record = self.finetune.modules.get(module)
        if record is None:
            self.missing.append(
                f"The decision rule of {module} is not recorded, so its decisions are top-1; "
                "run `hubretrain finetune` again to finish it."
            )
            return self._plain_rule, 1.0
        return recorded_rule(record), record.temperature

    def _board_row(self, name: str) -> pd.Series[Any]:
        """Return a row of the leaderboard; an ensemble of one member has its module's name."""
        is_ensemble = self.board["kind"] == ENSEMBLE
        if name == ENSEMBLE_NAME:
            return self.board[is_ensemble].iloc[0]
        return self.board[(self.board["module"] == name) & ~is_ensemble].iloc[0]

    def _adjust(self, row: Any) -> float:
        return float(row["adjust"]) if pd.notna(row.get("adjust")) else 0.0

    def _decided(
        self, table: pd.DataFrame, table_of: RunTable
    ) -> tuple[IntArray, FloatArray, AnyArray]:
        """Return image rows, probabilities and decisions of a table of `fit`."""
        file = table_of.path(self.run.folder)
        decisions = targets(table["decision"], self.fit.class_names, self.fit.multi_label)
        return self._rows(table, file), self._probs(table, file), decisions

    def _rows(self, table: pd.DataFrame, file: Path) -> IntArray:
        try:
            return np.array([self._row_of[path] for path in table["path"]], np.int64)
        except KeyError as error:
            raise RunError(
                f"{file} names {error}, which {self.run.folds_file} does not hold; run "
                "`hubretrain fit` again, and then `hubretrain finetune`."
            ) from None

    def _probs(self, table: pd.DataFrame, file: Path) -> FloatArray:
        try:
            return table[[f"p({name})" for name in self.fit.class_names]].to_numpy(np.float64)
        except (KeyError, ValueError) as error:
            raise RunError(
                f"{file} cannot be read ({error}); run the command that wrote it again."
            ) from error


def _thresholds_of(rule: Rule) -> tuple[float, ...]:
    return rule.values if isinstance(rule, LabelThresholds) else ()  # noqa: PD011 - no table


def indicators(labels: AnyArray, n_classes: int) -> BoolArray:
    """Return whether each image is of each class, or has each label: bool (n_images, n_classes).

    Args:
        labels: Class of each image, int64 (n_images,); or bool (n_images, n_classes) already.
        n_classes: Number of classes.
    """
    return np.asarray(labels if labels.ndim > 1 else np.eye(n_classes, dtype=bool)[labels])


def near_pairs(run_data: RunData) -> pd.DataFrame | None:
    """Return the near duplicates in the cache; None where there was no search.

    Returns:
        Columns a, b (sha256), similarity.
    """
    near = read_near_duplicates(run_data.fit.cache_folder)
    return None if near is None else near.pairs


def _fine_tuned_folders(run: Run) -> list[Path]:
    return sorted(path for path in (run.folder / "finetune").glob("*") if path.is_dir())


def _interval(row: Any, metric: str) -> Interval:
    return Interval(*(float(row.get(f"{metric}{end}", np.nan)) for end in ("", "_low", "_high")))
