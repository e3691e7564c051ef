"""The data of the page's script: every number that it draws, as plain JSON values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hubretrain.arrays import AnyArray
from hubretrain.evaluation import at_temperature, metric_named, roc_auc_per_class
from hubretrain.report import curves
from hubretrain.report.charts import Chart
from hubretrain.report.run_data import (
    OTHER_IMAGES,
    OUT_OF_FOLD,
    TEST_SPLIT,
    VALIDATION,
    EvaluatedModel,
    PredictedImages,
    indicators,
)
from hubretrain.report.thumbnails import Thumbnails

METRIC_TILES = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "unadjusted_accuracy": "unadjusted accuracy",
    "macro_f1": "macro F1",
    "top_3": "top-3 accuracy",
    "mean_average_precision": "mean average precision",
    "micro_average_precision": "average precision, micro",
    "micro_f1": "micro F1",
    "subset_accuracy": "subset accuracy",
    "hamming_loss": "Hamming loss",
    "roc_auc": "ROC AUC, macro",
    "log_loss": "log loss, nats",
    "calibration_error": "calibration error",
}
CLASS_COLUMNS = ("recall_low", "recall_high", "average_precision", "average_precision_low",
                 "average_precision_high")  # fmt: skip
LABEL_COLUMNS = ("precision_low", "precision_high", "f1_low", "f1_high")
MAX_LABELS = 30  # whose probabilities the page has of each image


def page_payload(
    predicted: PredictedImages,
    thumbnails: Thumbnails,
    large: Thumbnails,
    large_rows: list[int],
    hints: dict[int, str],
    feature_map: dict[str, Any] | None,
    charts: dict[str, Chart],
) -> dict[str, Any]:
    """Return everything that the page's script is given.

    Args:
        predicted: The images and the models.
        thumbnails: Thumbnails of all images.
        large: Larger thumbnails of some images.
        large_rows: Rows of the images with a larger thumbnail, in the order of `large`.
        hints: What is known of an image, by row.
        feature_map: Rows and positions of the points of the feature map, or None.
        charts: Charts that do not depend on the selected model, by id.
    """
    images = predicted.images
    index_of = dict(zip(large_rows, large.index.tolist(), strict=True))
    return {
        "classes": list(predicted.class_names),
        "n_steps": curves.N_STEPS,
        "images": {
            "path": images["path"].tolist(),
            "label": _numbers(predicted.labels),
            "thumbnail": thumbnails.index.tolist(),
            "large": [index_of.get(row, -1) for row in range(len(images))],
            "hints": {str(row): hint for row, hint in hints.items()},
        },
        "thumbnails": _layout(thumbnails),
        "large": _layout(large),
        "models": [model_payload(model, predicted) for model in predicted.models],
        "map": feature_map,
        "charts": charts,
        **({"multi_label": True} if predicted.multi_label else {}),
    }


def _layout(thumbnails: Thumbnails) -> dict[str, int]:
    """Return how thumbnails lie in their sheets."""
    return {
        "width": thumbnails.width,
        "height": thumbnails.height,
        "columns": thumbnails.columns,
        "rows": thumbnails.rows,
    }


def model_payload(model: EvaluatedModel, predicted: PredictedImages) -> dict[str, Any]:
    """Return the predictions, metrics and curves of one model."""
    labels = predicted.labels[model.rows]
    true_positives, false_positives = curves.counts_at_thresholds(model.probabilities, labels)
    multi_label = predicted.multi_label
    before = at_temperature(model.probabilities, 1 / model.temperature, multi_label)
    log_loss_before = float(metric_named("log_loss").function(before, labels, None))
    n_top = MAX_LABELS if multi_label else 3
    top_classes, top_thousandths = curves.top_classes(model.probabilities, n_top)
    of_labels: dict[str, Any] = {}
    if multi_label:
        of_labels = {
            "thresholds": [round(threshold, 6) for threshold in model.thresholds],
            "marks": curves.at_thresholds(model.probabilities, labels, model.thresholds),
        }
    return {
        "title": model.title,
        "about": [
            about(model, log_loss_before),
            about(replace(model, adjust=0.0), log_loss_before),
        ],
        "adjust": model.adjust,
        "rows": model.rows.tolist(),
        "decisions": _numbers(model.decisions),
        "top_classes": top_classes.tolist(),
        "top_thousandths": top_thousandths.tolist(),
        "metrics": _metrics(model),
        "classes": _classes(model, labels, predicted.class_names),
        "true_positives": true_positives.tolist(),
        "false_positives": false_positives.tolist(),
        "n_per_class": indicators(labels, len(predicted.class_names)).sum(axis=0).tolist(),
        "curves": curves.class_curves(model.probabilities, labels),
        "bins": curves.calibration(model.probabilities, labels),
        "top_k": curves.top_k_accuracies(model.probabilities, labels),
        **of_labels,
    }


def _numbers(labels: AnyArray) -> list[Any]:
    """Return the class of each image; of several labels per image a list of each."""
    if labels.ndim == 1:
        return list(labels.tolist())
    return [np.flatnonzero(row).tolist() for row in labels]


def about(model: EvaluatedModel, log_loss_before: float) -> str:
    """Say which images a model was evaluated on, at which temperature, and how it decides."""
    images = {
        OUT_OF_FOLD: "each predicted by a head that was fitted on neither it nor its group",
        TEST_SPLIT: "held out from every choice",
        OTHER_IMAGES: "of another data set, none of which the model was fitted or chosen on",
        VALIDATION: "used for early stopping, so its metrics are optimistic",
    }[model.part]
    rule = (
        f"Decisions use logit adjustment of strength {model.adjust:.3g}; probabilities are not "
        "adjusted."
        if model.adjust
        else "Decisions are the top-1 class, not adjusted."
    )
    if model.thresholds:
        rule = (
            "A label is decided on where its probability is above its threshold, which was chosen "
            "by F1, each label by itself, on images that the model was not trained on."
        )
    calibration = (
        f"Probabilities are those that predict gives, at temperature {model.temperature:.2f}; "
        f"without it the log loss is {log_loss_before:.3f}."
    )
    return f"{len(model.rows):,} images, {images}. {calibration} {rule}"


def _metrics(model: EvaluatedModel) -> list[list[Any]]:
    """Return name, estimate, interval, unit and key of each metric."""
    return [
        [
            name,
            *(curves.finite(number) for number in model.figures[metric]),
            "%" if metric_named(metric.removeprefix("unadjusted_")).is_share else "",
            metric,
        ]
        for metric, name in METRIC_TILES.items()
        if metric in model.figures and (model.adjust or metric != "unadjusted_accuracy")
    ]


def _classes(model: EvaluatedModel, labels: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what the page does not count itself, per class."""
    roc_auc = roc_auc_per_class(model.probabilities, labels)
    table = model.classes.set_index("class")
    rows = []
    for c, name in enumerate(names):
        of_class: Any = table.loc[name] if name in table.index else {}
        row: dict[str, Any] = {
            "class": name,
            "n_groups": int(of_class["n_groups"]) if "n_groups" in of_class else None,
            "roc_auc": curves.finite(roc_auc[c]),
        }
        row |= {
            key: curves.finite(of_class[key]) if key in of_class else None for key in CLASS_COLUMNS
        }
        if model.thresholds:
            row |= {key: curves.finite(of_class.get(key, np.nan)) for key in LABEL_COLUMNS}
        rows.append(row)
    return rows
