"""The evaluation of an exported model on labelled images of another data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain import run_tables
from hubretrain.arrays import AnyArray, Float32Array
from hubretrain.data import ImageDataset
from hubretrain.data.splitting import TEST, read_folds
from hubretrain.errors import DataError
from hubretrain.evaluation import TOP_1, Evaluator, Interval, Predictions
from hubretrain.export.manifest import Export
from hubretrain.export.predict import predict_images
from hubretrain.progress import Bar
from hubretrain.runs import Run


@dataclass(frozen=True, eq=False)
class EvaluatedExport:
    """What an export predicts of labelled images, and how well.

    Attributes:
        class_names: Classes of the model.
        figures: Name of a metric to its estimate and 95 % confidence interval, fractions (log loss
            in nats). Metrics that are undefined for these labels are absent.
        per_class: One row per class: recall and average precision with intervals.
        predictions: One row per image: path, label, decision, `p(<class>)`.
        confusion: Number of images by label (rows) and decision (columns).
        failed: Images that could not be read, path to reason.
        n_known: Images left out because the model was fitted or chosen on them.
    """

    class_names: tuple[str, ...]
    figures: Mapping[str, Interval]
    per_class: pd.DataFrame
    predictions: pd.DataFrame
    confusion: pd.DataFrame
    failed: Mapping[str, str]
    n_known: int

    def save(self, folder: Path) -> None:
        """Write `metrics.csv`, `per_class.csv`, `predictions.csv` and `confusion.csv`.

        Raises:
            WriteError: They cannot be written.
        """
        run_tables.METRICS.write(folder, metrics_table(self.figures))
        run_tables.PER_CLASS.write(folder, self.per_class)
        run_tables.EVALUATED.write(folder, self.predictions)
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
        DataError: The data set has a class that the model does not know, or no image is left.
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
    images = dataset.usable_images(cache)
    is_known = images["sha256"].isin(_known_contents(opened.folder))
    images = images[~is_known].reset_index(drop=True)
    if images.empty:
        raise DataError(
            f"The model was fitted or chosen on all {len(is_known):,} images of {dataset.root}; "
            "expected images that it has not seen, such as another data set."
        )
    probs, failed = _probabilities(opened, dataset.root, images["path"].tolist(), tta, format)
    is_read = ~images["path"].isin(failed).to_numpy()
    if not is_read.any():
        path, reason = next(iter(failed.items()))
        raise DataError(f"No image of {dataset.root} can be read; {path}: {reason}.")
    images, probs = images[is_read], probs[is_read]
    labels = images["label"].map({name: c for c, name in enumerate(names)}).to_numpy(np.int64)
    predictions = Predictions(probs.astype(np.float64), opened.rule.adjust(probs))
    evaluator = Evaluator(labels, images["cluster"].to_numpy(), seed)
    decisions = opened.decisions(probs)
    return EvaluatedExport(
        tuple(names),
        _figures(evaluator, predictions, is_adjusted=opened.rule.strength != 0),
        evaluator.per_class(names, opened.name, predictions),
        _prediction_table(images, probs, [names[c] for c in decisions], names),
        _confusion(labels, decisions, names),
        failed,
        int(is_known.sum()),
    )


def _figures(
    evaluator: Evaluator, predictions: Predictions, is_adjusted: bool
) -> dict[str, Interval]:
    """Return the metrics; those of the top-1 class where that is not the decision, too."""
    figures = evaluator.metrics(predictions)
    return {name: of for name, of in figures.items() if is_adjusted or name not in TOP_1}


def metrics_table(figures: Mapping[str, Interval]) -> pd.DataFrame:
    """Return one row per metric: its name, estimate, and the ends of its interval."""
    rows = [(name, *interval) for name, interval in figures.items()]
    return pd.DataFrame(rows, columns=["metric", "estimate", "low", "high"])


def _known_contents(export: Path) -> set[str]:
    """Return the sha256 of the images that an export's run was fitted or chosen on."""
    folds_file = Run(export.resolve().parent).folds_file
    if not folds_file.exists():
        return set()
    folds = read_folds(folds_file)
    return set(folds.loc[folds["fold"] != TEST, "sha256"]) - {""}


def _probabilities(
    export: Export, root: Path, paths: list[str], tta: int | None, format: str | None
) -> tuple[Float32Array, dict[str, str]]:
    """Return the probabilities of images, and which could not be read and why."""
    names = export.class_names
    index = {name: c for c, name in enumerate(names)}
    probs = np.zeros((len(paths), len(names)), np.float32)
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


def _prediction_table(
    images: pd.DataFrame, probs: Float32Array, decisions: list[str], names: list[str]
) -> pd.DataFrame:
    table = images[["path", "label"]].assign(decision=decisions).reset_index(drop=True)
    columns = {f"p({name})": probs[:, c] for c, name in enumerate(names)}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


def _confusion(labels: AnyArray, decisions: AnyArray, names: list[str]) -> pd.DataFrame:
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (labels, decisions), 1)
    table = pd.DataFrame(counts, columns=names)
    table.insert(0, "label", names)
    return table
