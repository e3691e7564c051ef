"""The models of a run that its export is chosen from, on the validation fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, FloatArray
from hubretrain.errors import DataError, RunError
from hubretrain.evaluation import (
    Evaluator,
    Predictions,
    metric_named,
)
from hubretrain.export import Export, why_not_joined
from hubretrain.files import file_sha256
from hubretrain.finetuning.results.criterion import labels_of, scores_of
from hubretrain.heads import ENSEMBLE_NAME, Ensemble, ModuleHeads
from hubretrain.runs import (
    ENSEMBLE,
    EXPORTED_VALIDATION,
    FINE_TUNED,
    HEAD,
    MEAN,
    OUT_OF_FOLD,
    ExportedRecord,
    Run,
)


class ExportCandidate(NamedTuple):
    """A model that may become the run's export.

    Attributes:
        kind: `fine-tuned`, `head`, `ensemble`, or `mean` of a fine-tuned model and the ensemble.
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
        is_alike = (self.kind, self.module) == (other.kind, other.module)
        return is_alike and np.allclose(first, second, atol=2e-6)


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
        probs = recorded_probs(of_model, images, multi_label=run.fit.multi_label)
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
        probs = recorded_probs(table, images, multi_label=export.multi_label)
    except (RunError, OSError):  # nothing is exported, or not by a fine-tuning
        return None
    if probs is None or len(export.class_names) != probs.shape[1]:
        return None
    labels, groups = labels_of(images, export.class_names), images["cluster"].to_numpy()
    predictions = Predictions(probs, scores_of(probs, labels, groups, export.rule))
    name = str(export.manifest.get("fine_tuned_module") or export.manifest["module"])
    if export.manifest["module"] == ENSEMBLE_NAME:
        label = f"mean of {name}, fine-tuned, and the ensemble, exported before"
        return ExportCandidate(MEAN, name, label, predictions)
    label = f"{name}, fine-tuned and exported before"
    return ExportCandidate(FINE_TUNED, name, label, predictions)


def recorded_probs(
    table: pd.DataFrame, images: pd.DataFrame, *, multi_label: bool
) -> FloatArray | None:
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
        next((candidates[i] for i in order if candidates[i].kind in kinds), None)
        for kinds in ((FINE_TUNED,), (HEAD, ENSEMBLE))
    ]
    gain, evaluator = None, Evaluator.if_grouped(labels, groups, seed)
    if evaluator is not None and firsts[0] is not None and firsts[1] is not None:
        pair = firsts[0].predictions.of(metric), firsts[1].predictions.of(metric)
        change = evaluator.effect([pair], metric)
        gain = (change.estimate, change.low, change.high)
    names = {c.name: round(value, 6) for c, value in zip(candidates, values, strict=True)}
    best = candidates[order[0]]
    return best, ExportedRecord(best.kind, best.module, best.name, metric, names, gain)
