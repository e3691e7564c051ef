"""Fine-tuning results: metrics, predictions, and whether the order of the screening held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from hubretrain.arrays import AnyArray, BoolArray, Float32Array, FloatArray
from hubretrain.data import targets
from hubretrain.errors import DataError, RunError
from hubretrain.evaluation import (
    FEWEST_POSITIVES,
    UNCALIBRATED,
    Calibration,
    DecisionRule,
    Evaluator,
    LabelThresholds,
    Predictions,
    Rule,
    at_temperature,
    best_thresholds,
    calibrate,
    choice_parts,
    metric_named,
)
from hubretrain.export import Export, why_not_joined
from hubretrain.files import file_sha256
from hubretrain.heads import ENSEMBLE_NAME, Ensemble, ModuleHeads
from hubretrain.runs import (
    ENSEMBLE,
    EXPORTED_VALIDATION,
    FINE_TUNED,
    HEAD,
    OUT_OF_FOLD,
    VALIDATION_PREDICTIONS,
    ExportedRecord,
    Figures,
    FineTunedModuleRecord,
    OrderRecord,
    Run,
)

COSTS = ("n_parameters", "gflops", "ms_per_image")  # of a pass, which training leaves as they are


@dataclass(frozen=True)
class FineTuneResult:
    """The result of fine-tuning one module.

    Attributes:
        module: Name of the module.
        history: One row per epoch.
        test: Metrics on the test split, {} without one; with `all_folds` of what they trained.
        head_test: The same of the head that training started from.
        validation: Metrics on the validation fold, of what was trained without it.
        head_validation: The same of the head that training started from.
        export: Folder of the run's export: of the model that is best on the validation fold.
        notes: Sentences that a reader of the result should know.
        temperature: Temperature of the model's probabilities; all metrics are with it.
        uncalibrated_log_loss: Log loss without it of `test` and `validation`, nats; a part without
            images is absent.
        over_head: Metric of choice minus that of the head that training started from, of `test` and
            `validation`, with paired intervals.
        diverged: What to do about a loss that became NaN or infinite; None if it did not.
        all_folds: Whether the model was trained once more, on all folds.
    """

    module: str
    history: pd.DataFrame
    test: Figures
    head_test: Figures
    validation: Figures
    head_validation: Figures
    export: Path
    notes: tuple[str, ...] = ()
    temperature: float = 1.0
    uncalibrated_log_loss: Mapping[str, float] = field(default_factory=dict)
    over_head: Figures = field(default_factory=dict)
    diverged: str | None = None
    all_folds: bool = False

    @property
    def kept_epoch(self) -> int:
        """Epoch whose weights were kept; 0 is the head that training started from."""
        return int(self.history.loc[self.history["kept"], "epoch"].iloc[0])


_TOP_1 = DecisionRule(0.0, ())


def labels_of(images: pd.DataFrame, class_names: Sequence[str]) -> AnyArray:
    """Return the labels of images of a data set as `TrainingImages` has them.

    Args:
        images: Column `class_index`, or where images may have several labels `label`.
        class_names: Class names in class order.
    """
    if "class_index" in images:
        return np.asarray(images["class_index"], dtype=np.int64)
    return targets(images["label"], class_names, True)


def recorded_rule(record: FineTunedModuleRecord) -> Rule:
    """Return the decision rule of a fine-tuned module, for probabilities at its temperature."""
    thresholds = tuple(map(float, record.thresholds))
    rule = LabelThresholds(thresholds) if thresholds else DecisionRule(record.adjust, record.priors)
    return rule.at_temperature(record.temperature)


def top_1_accuracy(probs: Float32Array, labels: AnyArray) -> float:
    """Return the share of images whose top-1 class is right.

    Of several labels per image it is the share whose labels are those with more than 1/2.
    """
    if labels.ndim > 1:
        return float(((probs > 0.5) == labels).all(axis=1).mean())
    return float((probs.argmax(axis=1) == labels).mean())


def thresholds_on(probs: AnyArray, labels: BoolArray, otherwise: LabelThresholds) -> Rule:
    """Return the thresholds of the best F1 on images.

    A label that too few of them have, or lack, keeps the threshold that it had: the head's was
    chosen on all folds.

    Args:
        probs: float (n_images, n_labels), of images that were not trained on.
        labels: bool (n_images, n_labels).
        otherwise: Thresholds of labels with too few images.
    """
    n_positive = labels.sum(axis=0)
    is_chosen = np.minimum(n_positive, len(labels) - n_positive) >= FEWEST_POSITIVES
    chosen = best_thresholds(probs, labels).values  # noqa: PD011 - no table
    return LabelThresholds(tuple(np.where(is_chosen, chosen, otherwise.values).tolist()))


def scores_of(probs: AnyArray, labels: AnyArray, groups: AnyArray, rule: Rule) -> AnyArray:
    """Return the scores that decide about the images of the validation fold after training.

    That fold chooses the thresholds of labels. So that they are not evaluated on the images that
    they were chosen on, each half of the groups is decided by the thresholds of the other.

    Args:
        probs: float (n_images, n_classes), of the validation fold.
        labels: Its labels, see `TrainingImages`.
        groups: Group of each image, (n_images,).
        rule: Decision rule; of labels, the thresholds where there are too few images.
    """
    if isinstance(rule, DecisionRule) or len(set(groups.tolist())) < 2:
        return rule.adjust(probs)
    scores, parts = np.empty_like(probs), choice_parts(labels, groups)
    for part in np.unique(parts):
        here = parts == part
        scores[here] = thresholds_on(probs[~here], labels[~here], rule).adjust(probs[here])
    return scores


class Validation(NamedTuple):
    """Values of an epoch on the validation fold.

    Attributes:
        loss: Mean loss, weighted as in training.
        accuracy: See `top_1_accuracy`.
        metric: Metric of choice; NaN where there is none, or where it is undefined.
    """

    loss: float
    accuracy: float
    metric: float


UNKNOWN = Validation(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, eq=False)
class Criterion:
    """How epochs are compared on the validation fold: by the metric of choice.

    It is that of the decisions after the rule, or of the probabilities at the temperature, of the
    model as it would be exported at the end of the epoch. Thresholds of labels are chosen anew for
    each epoch, as `scores_of` does.

    Attributes:
        metric: Name of the metric; None where epochs are compared by their loss.
        labels: Labels of the validation fold, see `TrainingImages`.
        groups: Group of each image, (n_images,).
        head_rule: Decision rule of the head that training starts from.
        rule: Decision rule of what was trained.
        head_calibration: Calibration of the head, by its out-of-fold probabilities.
    """

    metric: str | None = None
    labels: AnyArray = field(default_factory=lambda: np.zeros(0, np.int64))
    groups: AnyArray = field(default_factory=lambda: np.zeros(0, np.int64))
    head_rule: Rule = _TOP_1
    rule: Rule = _TOP_1
    head_calibration: Calibration = UNCALIBRATED

    def rule_of(self, probs: AnyArray, epoch: int) -> Rule:
        """Return the decision rule of an epoch's model; epoch 0 is the head.

        Args:
            probs: Its probabilities of the validation fold.
            epoch: Number of the epoch.
        """
        if epoch and isinstance(self.rule, LabelThresholds):
            return thresholds_on(probs, self.labels, self.rule)
        return self.rule if epoch else self.head_rule

    def scores(self, probs: AnyArray, epoch: int) -> AnyArray:
        """Return the scores that decide about the images of the validation fold in an epoch."""
        if epoch == 0:
            return self.head_rule.adjust(probs)
        return scores_of(probs, self.labels, self.groups, self.rule)

    def calibration_of(self, probs: Float32Array, epoch: int) -> Calibration:
        """Return the calibration of an epoch's model, by its probabilities of the validation fold.

        That fold chooses the epoch, so it flatters what was trained, which it may only soften.
        """
        if epoch == 0:
            return self.head_calibration
        return calibrate(probs, self.labels, self.groups, may_sharpen=False)

    def value(self, probs: Float32Array, epoch: int) -> float:
        """Return the metric of an epoch's probabilities (n_images, n_classes)."""
        if self.metric is None:
            return float("nan")
        metric = metric_named(self.metric)
        if metric.is_of_decision:  # the temperature keeps decisions
            values = self.scores(probs, epoch)
        else:
            temperature = self.calibration_of(probs, epoch).temperature
            values = at_temperature(probs, temperature, self.labels.ndim > 1)
        try:
            return float(metric.function(values, self.labels, None))
        except DataError:  # such as ROC AUC without images of a class
            return float("nan")

    def score(self, value: float) -> float:
        """Return what epochs are compared by, larger is better: 0 for an undefined metric."""
        if self.metric is None or np.isnan(value):
            return 0.0
        return value if metric_named(self.metric).higher_is_better else -value


class ExportCandidate(NamedTuple):
    """A model that may become the run's export.

    Attributes:
        kind: `fine-tuned`, `head` or `ensemble`.
        module: Its module, or `ensemble`.
        name: Name for people.
        predictions: Of the images of the validation fold, by a model that was not fitted on it.
    """

    kind: str
    module: str
    name: str
    predictions: Predictions

    def is_of(self, other: ExportCandidate) -> bool:
        """Return whether it is the same model, by its module and the digits that files hold."""
        first, second = self.predictions.unadjusted, other.predictions.unadjusted
        return self.module == other.module and np.allclose(first, second, atol=2e-6)


def fitted_candidates(
    run: Run, modules: Iterable[str], images: pd.DataFrame
) -> list[ExportCandidate]:
    """Return the heads of modules, and the ensemble, as they predict the validation fold.

    Out-of-fold probabilities there are of heads that were fitted on the other folds; those that are
    exported are fitted on all folds.

    Args:
        run: A fitted run.
        modules: Names of modules.
        images: The images of the validation fold; a model that was not fitted on all of them is
            left out, and so is an ensemble that cannot be exported.
    """
    table, candidates = OUT_OF_FOLD.read(run.folder), []
    for name in (*modules, ENSEMBLE_NAME):
        of_model = table[table["module"] == name]
        probs = _probs_of(of_model, images, multi_label=run.fit.multi_label)
        if probs is None:
            continue
        kind = ENSEMBLE if name == ENSEMBLE_NAME else HEAD
        model = (
            Ensemble.load(run.checked_ensemble())
            if kind == ENSEMBLE
            else ModuleHeads.load(run.checked_heads(name)).deployed
        )
        if isinstance(model, Ensemble) and why_not_joined(run.fit, model.weights):
            continue
        rule = model.rule.at_temperature(model.calibration.temperature)
        predictions = Predictions(probs, rule.adjust(probs))  # the file is at the temperature
        label = kind if kind == ENSEMBLE else f"{name}, {kind}"
        candidates.append(ExportCandidate(kind, name, label, predictions))
    return candidates


def exported_candidate(run: Run, images: pd.DataFrame) -> ExportCandidate | None:
    """Return the fine-tuned model that the run's export is, if it was trained on the same folds.

    Args:
        run: A fitted run.
        images: The images of the validation fold.
    """
    folder = run.folder / "finetune"
    try:
        export = Export.open(run.export_folder)
        digest = file_sha256(EXPORTED_VALIDATION.path(folder))
        if digest != export.manifest.get("validation_sha256"):
            return None
        table = EXPORTED_VALIDATION.read(folder)
        probs = _probs_of(table, images, multi_label=export.multi_label)
    except (RunError, OSError):  # nothing is exported, or not by a fine-tuning
        return None
    if probs is None or len(export.class_names) != probs.shape[1]:
        return None
    labels, groups = labels_of(images, export.class_names), images["cluster"].to_numpy()
    predictions = Predictions(probs, scores_of(probs, labels, groups, export.rule))
    name = str(export.manifest["module"])
    label = f"{name}, fine-tuned and exported before"
    return ExportCandidate(FINE_TUNED, name, label, predictions)


def _probs_of(table: pd.DataFrame, images: pd.DataFrame, *, multi_label: bool) -> FloatArray | None:
    """Return probabilities of images, float64 (n_images, n_classes); None if one is absent."""
    columns = [name for name in table if str(name).startswith("p(")]
    rows = table.drop_duplicates("path").set_index("path").reindex(images["path"])
    if not (rows["sha256"].to_numpy() == images["sha256"].to_numpy()).all():
        return None
    probs = rows[columns].to_numpy(np.float64)
    if multi_label:
        return probs
    return probs / probs.sum(axis=1, keepdims=True)  # the files hold six digits


def best_candidate(
    candidates: Sequence[ExportCandidate],
    labels: AnyArray,
    groups: AnyArray,
    metric: str,
    seed: int,
) -> tuple[ExportCandidate, ExportedRecord]:
    """Return the model that is best by a metric; of equal ones the one of the least log loss.

    Args:
        candidates: At least one model.
        labels: Labels of the images, see `TrainingImages`.
        groups: Group of each image, (n_images,).
        metric: Metric of choice; log loss is used where it is undefined on these images.
        seed: Random seed of the resamples.
    """

    def values_of(name: str) -> list[float]:
        function = metric_named(name).function
        return [float(function(c.predictions.of(name), labels, None)) for c in candidates]

    losses = values_of("log_loss")
    try:
        values = values_of(metric)
    except DataError:  # such as ROC AUC without images of a class
        values = [np.nan]
    if np.isnan(values).any():  # of labels, which say so by NaN
        metric, values = "log_loss", losses
    sign = 1.0 if metric_named(metric).higher_is_better else -1.0
    order = sorted(range(len(candidates)), key=lambda i: (-sign * values[i], losses[i]))
    firsts = [
        next((candidates[i] for i in order if (candidates[i].kind == FINE_TUNED) == is_tuned), None)
        for is_tuned in (True, False)
    ]
    gain, evaluator = None, Evaluator.if_grouped(labels, groups, seed)
    if evaluator is not None and firsts[0] is not None and firsts[1] is not None:
        pair = firsts[0].predictions.of(metric), firsts[1].predictions.of(metric)
        change = evaluator.effect([pair], metric)
        gain = (change.estimate, change.low, change.high)
    names = {c.name: round(value, 6) for c, value in zip(candidates, values, strict=True)}
    best = candidates[order[0]]
    return best, ExportedRecord(best.kind, best.module, best.name, metric, names, gain)


def rounded_metrics(
    predictions: Predictions, labels: AnyArray, groups: AnyArray, seed: int
) -> Figures:
    """Return every metric on some images with its interval, rounded for `run.json`.

    Metrics of decisions are those of the decision rule, as on the leaderboard; `unadjusted_*` are
    those of the top-1 class. One that is undefined there is absent, all of them for fewer than
    two groups.
    """
    evaluator = Evaluator.if_grouped(labels, groups, seed)
    if evaluator is None:
        return {}
    metrics = evaluator.metrics(predictions)
    return {
        name: (round(estimate, 6), round(low, 6), round(high, 6))
        for name, (estimate, low, high) in metrics.items()
    }


def predictions_table(
    images: pd.DataFrame, probs: Float32Array, class_names: Sequence[str]
) -> pd.DataFrame:
    """Return path, sha256, label and the probability of each class, one row per image."""
    table = images[["path", "sha256", "label"]].copy()
    for c, name in enumerate(class_names):
        table[f"p({name})"] = probs[:, c].round(6)
    return table


def with_fine_tuned(
    board: pd.DataFrame, records: Mapping[str, FineTunedModuleRecord]
) -> pd.DataFrame:
    """Return the leaderboard with a row for each fine-tuned module, below that of its head.

    Its metrics are of the validation fold, those of heads of all folds; so it has no rank, but
    `over_head` is the difference on that fold, paired. As with heads, what was trained on all folds
    is evaluated on the test split alone; on the fold it is the model that chose the epoch.

    Args:
        board: The leaderboard, with such rows of before or without.
        records: Module name to the result of its fine-tuning.
    """
    board = board[board["kind"] != FINE_TUNED].reset_index(drop=True)
    position = {name: i for i, name in reversed([*board["module"].items()])}
    rows, places = [], [float(i) for i in board.index]
    for name, record in records.items():
        if name not in position:
            continue
        head = board.loc[position[name]]
        row: dict[str, Any] = {"module": f"{name}, {FINE_TUNED}", "kind": FINE_TUNED}
        trained_on = ", all folds" if record.all_folds else ""
        row |= {"head": f"epoch {record.kept_epoch}{trained_on}", "tied": False, "n_members": 1}
        row |= {} if record.thresholds else {"adjust": record.adjust}
        row |= {"temperature": record.temperature}
        row |= {cost: head[cost] for cost in COSTS if cost in board}
        # On the leaderboard these two names are of probabilities before the temperature.
        after = {name: f"calibrated_{name}" for name in ("log_loss", "calibration_error")}
        figures = {after.get(name, name): values for name, values in record.validation.items()}
        row["uncalibrated_log_loss"] = record.uncalibrated_log_loss.get("validation", np.nan)
        figures |= {f"test_{m}": v for m, v in record.test.items() if f"test_{m}" in board}
        if "validation" in record.over_head:
            figures["over_head"] = record.over_head["validation"]
        for metric, values in figures.items():
            ends = (metric, f"{metric}_low", f"{metric}_high")
            row |= dict(zip(ends, values, strict=True))
        rows.append(row)
        places.append(position[name] + 0.5)
    table = pd.concat([board, pd.DataFrame(rows)], ignore_index=True) if rows else board
    order = np.argsort(places, kind="stable")
    return table.iloc[order].astype({"tied": bool}).reset_index(drop=True)


def screening_metric(board: pd.DataFrame, modules: Iterable[str], metric: str) -> dict[str, float]:
    """Return a metric of the modules on the leaderboard: module name to its value."""
    # An ensemble of one member has its module's name.
    rows = board[board["module"].isin(list(modules)) & (board["kind"] != ENSEMBLE)]
    return dict(zip(rows["module"], rows[metric].astype(float), strict=True))


def order_of(
    screening: Mapping[str, float], finetuned: Mapping[str, float], metric: str
) -> OrderRecord:
    """Return whether modules rank after fine-tuning as they did when they were screened.

    Args:
        screening: Module name to its metric on the leaderboard; other modules are left out.
        finetuned: Module name to its metric on the validation fold after fine-tuning.
        metric: Name of the metric.
    """
    sign = 1.0 if metric_named(metric).higher_is_better else -1.0
    names = list(finetuned)
    first, second = ([sign * values[n] for n in names] for values in (screening, finetuned))
    tau = float(kendalltau(first, second).statistic)
    chosen = names[int(np.argmax(first))]
    return OrderRecord(
        screening=_best_first(names, first),
        finetuned=_best_first(names, second),
        kendall_tau=tau if np.isfinite(tau) else None,
        regret=max(second) - second[names.index(chosen)],
        metric=metric,
    )


def regret_ends(
    run: Run,
    records: Mapping[str, FineTunedModuleRecord],
    order: OrderRecord,
    images: pd.DataFrame,
    seed: int,
) -> tuple[float, float] | None:
    """Return the paired 95 % interval of the regret of an order; see `OrderRecord`.

    Args:
        run: The run, which holds the predictions of its fine-tuned modules.
        records: Module name to its result.
        order: The order.
        images: Validation fold: path, sha256, label, cluster, and `class_index` of one class each.
        seed: Random seed of the resamples.
    """
    class_names = () if "class_index" in images else run.fit.class_names
    labels, groups = labels_of(images, class_names), images["cluster"].to_numpy()
    evaluator, pair = Evaluator.if_grouped(labels, groups, seed), []
    for name in (order.finetuned[0], order.screening[0]):
        record = records[name]
        table = VALIDATION_PREDICTIONS.read(run.finetune_folder(name))
        probs = _probs_of(table, images, multi_label=labels.ndim > 1)
        if probs is None or evaluator is None or order.regret == 0:
            return None
        scores = scores_of(probs, labels, groups, recorded_rule(record))
        pair.append(Predictions(probs, scores).of(order.metric))
    assert evaluator is not None
    change = evaluator.effect([(pair[0], pair[1])], order.metric)
    ends = round(change.low, 6), round(change.high, 6)
    return ends if metric_named(order.metric).higher_is_better else (-ends[1], -ends[0])


def _best_first(names: Sequence[str], values: Sequence[float]) -> tuple[str, ...]:
    return tuple(names[i] for i in np.argsort(-np.asarray(values), kind="stable"))
