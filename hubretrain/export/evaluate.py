"""The evaluation of an exported model on labelled images of another data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, FloatArray
from hubretrain.data import ImageDataset, Quarantine, join_labels, targets
from hubretrain.data.splitting import TEST, read_folds
from hubretrain.errors import DataError
from hubretrain.evaluation import TOP_1, DecisionRule, Evaluator, Interval, Predictions
from hubretrain.export.manifest import Export
from hubretrain.export.predict import predict_images
from hubretrain.progress import Bar
from hubretrain.runs import Run, run_tables


@dataclass(frozen=True, eq=False)
class EvaluatedExport:
    """What an export predicts of labelled images, and how well.

    Attributes:
        name: Name of the model.
        class_names: Classes of the model.
        images: One row per image: path, sha256, label, cluster, and of one class per image
            class_index (of the model).
        probabilities: float64 (n_images, n_classes), as `predict` gives them.
        decisions: int64 (n_images,), the class that the decision rule decides on; of several labels
            per image bool (n_images, n_classes).
        adjust: Strength of the rule's logit adjustment; 0 is top-1.
        temperature: Temperature of the probabilities.
        figures: Name of a metric to its estimate and 95 % confidence interval, fractions (log loss
            in nats). Metrics that are undefined for these labels are absent.
        per_class: One row per class: recall and average precision with intervals; of several labels
            per image also threshold, precision and F1.
        failed: Images that could not be read, path to reason.
        n_known: Images left out because the model was fitted or chosen on them.
        thresholds: Threshold of each class where images may have several, its labels; else ().
    """

    name: str
    class_names: tuple[str, ...]
    images: pd.DataFrame
    probabilities: FloatArray
    decisions: AnyArray
    adjust: float
    temperature: float
    figures: Mapping[str, Interval]
    per_class: pd.DataFrame
    failed: Mapping[str, str]
    n_known: int
    thresholds: tuple[float, ...] = ()

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return bool(self.thresholds)

    @property
    def labels(self) -> AnyArray:
        """Labels of the images: int64 (n_images,), or bool (n_images, n_classes) of several."""
        if self.multi_label:
            return targets(self.images["label"], self.class_names, True)
        return self.images["class_index"].to_numpy(np.int64)

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per image: path, sha256, label, decision, `p(<class>)`."""
        names = self.class_names
        if self.multi_label:
            decided = [join_labels(compress(names, row)) for row in self.decisions]
        else:
            decided = [names[c] for c in self.decisions]
        table = self.images[["path", "sha256", "label"]].assign(decision=decided)
        columns = {f"p({name})": self.probabilities[:, c] for c, name in enumerate(names)}
        return pd.concat([table, pd.DataFrame(columns)], axis=1)

    @property
    def confusion(self) -> pd.DataFrame:
        """Number of images by `label` (rows) and decision (columns)."""
        counts = np.zeros((len(self.class_names), len(self.class_names)), np.int64)
        np.add.at(counts, (self.images["class_index"], self.decisions), 1)
        table = pd.DataFrame(counts, columns=list(self.class_names))
        table.insert(0, "label", self.class_names)
        return table

    @property
    def label_counts(self) -> pd.DataFrame:
        """Number of images by label that has it or not, and by decision for it or not."""
        given, decided = self.labels, self.decisions
        counts = {
            "true_positives": given & decided,
            "false_positives": ~given & decided,
            "false_negatives": given & ~decided,
            "true_negatives": ~given & ~decided,
        }
        table = pd.DataFrame({name: cells.sum(axis=0) for name, cells in counts.items()})
        table.insert(0, "label", self.class_names)
        return table

    def save(self, folder: Path) -> None:
        """Write `metrics.csv`, `per_class.csv`, `predictions.csv` and `confusion.csv`.

        Of several labels per image `label_counts.csv` takes the place of the last.

        Raises:
            WriteError: They cannot be written.
        """
        rows = [(name, *interval) for name, interval in self.figures.items()]
        metrics = pd.DataFrame(rows, columns=["metric", "estimate", "low", "high"])
        run_tables.METRICS.write(folder, metrics)
        run_tables.PER_CLASS.write(folder, self.per_class)
        run_tables.EVALUATED.write(folder, self.predictions)
        if self.multi_label:
            run_tables.LABEL_COUNTS.write(folder, self.label_counts)
        else:
            run_tables.CONFUSION.write(folder, self.confusion)


def evaluate_export(
    export: str | os.PathLike[str],
    dataset: ImageDataset,
    *,
    tta: int | None = None,
    format: str | None = None,
    cache: str | os.PathLike[str] = "cache",
    seed: int = 0,
) -> EvaluatedExport:
    """Evaluate an exported model on a data set, such as an external test set.

    Intervals are bootstrapped over clusters: images that share a group or are duplicates are drawn
    together. Images that the model's run was fitted or chosen on are left out, recognised by their
    content; of an export without its run they cannot be.

    Args:
        export: An export folder, or a run folder that holds one.
        dataset: Labelled images; each of their classes is one of the model's.
        tta: See `predict_images`.
        format: See `predict_images`.
        cache: Where digests and near duplicates of the data set are kept.
        seed: Random seed of the resamples.

    Raises:
        RunError: The folder holds no export, or a damaged one.
        DataError: The data set has a class that the model does not know, or several labels per
            image where the model has one, or the other way round; or no image is left.
        EngineError: The library that runs the format is not installed.

    Examples:
        >>> from hubretrain import evaluate_export, open_dataset
        >>> result = evaluate_export("runs/digits", open_dataset("data/digits"))
        >>> len(result.predictions) + result.n_known, sorted(result.figures)[:2]
        (120, ['accuracy', 'balanced_accuracy'])
    """
    opened = Export.open(export)
    names = opened.class_names
    if unknown := [name for name in dataset.class_names if name not in names]:
        raise DataError(
            f"{dataset.root} holds the class {unknown[0]!r}, which the model does not know; "
            f"expected classes among {', '.join(names)}."
        )
    _check_kind(opened, dataset)
    images = dataset.usable_images(cache)
    is_known = images["sha256"].isin(_known_contents(opened.folder))
    images = images[~is_known].reset_index(drop=True)
    if images.empty:
        raise DataError(
            f"The model was fitted or chosen on all {len(is_known):,} images of {dataset.root}; "
            "expected images that it has not seen, such as another data set."
        )
    probs, failed = _probabilities(opened, dataset.root, images["path"].tolist(), tta, format)
    # What `cache` could not decode is not among the usable images.
    quarantined = dict(Quarantine(dataset.cache_folder(cache)).listed())
    absent = dataset.images["path"][dataset.images["path"].isin(list(quarantined))]
    failed |= {path: quarantined[path] for path in absent if path not in failed}
    is_read = ~images["path"].isin(failed).to_numpy()
    if not is_read.any():
        path, reason = next(iter(failed.items()))
        raise DataError(f"No image of {dataset.root} can be read; {path}: {reason}.")
    images, probs = images[is_read].reset_index(drop=True), probs[is_read]
    labels = targets(images["label"], names, opened.multi_label)
    if not opened.multi_label:
        images["class_index"] = labels
    rule = opened.rule
    predictions = Predictions(probs, rule.adjust(probs))
    evaluator = Evaluator(labels, images["cluster"].to_numpy(), seed)
    strength = rule.strength if isinstance(rule, DecisionRule) else 0.0
    thresholds = tuple(map(float, opened.manifest.get("thresholds") or ()))
    per_class = evaluator.per_class(names, opened.name, predictions)
    if thresholds:
        per_class["threshold"] = thresholds
    return EvaluatedExport(
        name=opened.name,
        class_names=tuple(names),
        images=images,
        probabilities=probs,
        decisions=rule.decide(probs),
        adjust=strength,
        temperature=float(opened.manifest.get("temperature") or 1.0),
        figures=_figures(evaluator, predictions, is_adjusted=strength != 0),
        per_class=per_class,
        failed=failed,
        n_known=int(is_known.sum()),
        thresholds=thresholds,
    )


def _check_kind(export: Export, dataset: ImageDataset) -> None:
    """Raise unless model and data set both have several labels per image, or both one class.

    Raises:
        DataError: They do not.
    """
    if export.multi_label and not dataset.multi_label:
        raise DataError(
            f"{export.folder} gives an image any number of labels, but {dataset.root} has one "
            "class per image; expected a table of labels, which `multi_label=True` reads as such "
            "where each image has one."
        )
    if dataset.multi_label and not export.multi_label:
        raise DataError(
            f"{export.folder} chooses one class per image, but images of {dataset.root} may have "
            "several labels; expected one class per image."
        )


def _figures(
    evaluator: Evaluator, predictions: Predictions, is_adjusted: bool
) -> dict[str, Interval]:
    """Return the metrics; those of the top-1 class where that is not the decision, too."""
    figures = evaluator.metrics(predictions)
    return {name: of for name, of in figures.items() if is_adjusted or name not in TOP_1}


def _known_contents(export: Path) -> set[str]:
    """Return the sha256 of the images that an export's run was fitted or chosen on.

    Raises:
        RunError: The folds are missing, damaged or others than those of the fit.
    """
    run = Run(export.resolve().parent)
    if run.record_file.exists():  # in which every fit records the digest of its folds
        run.checked(run.folds_file)
    elif not run.folds_file.exists():
        return set()
    folds = read_folds(run.folds_file)
    return set(folds.loc[folds["fold"] != TEST, "sha256"]) - {""}


def _probabilities(
    export: Export, root: Path, paths: list[str], tta: int | None, format: str | None
) -> tuple[FloatArray, dict[str, str]]:
    """Return the probabilities of images, and which could not be read and why."""
    names = export.class_names
    index = {name: c for c, name in enumerate(names)}
    probs = np.zeros((len(paths), len(names)))
    failed: dict[str, str] = {}
    files = (root / path for path in paths)
    with Bar("predicting", len(paths), "images") as bar:
        results = predict_images(export.folder, files, len(names), tta=tta, format=format)
        for i, (path, prediction) in enumerate(zip(paths, results, strict=True)):
            if prediction.error:
                failed[path] = prediction.error
            for name, probability in prediction.classes:
                probs[i, index[name]] = probability
            bar.advance(1)
    return probs, failed
