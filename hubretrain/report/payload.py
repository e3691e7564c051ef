"""What the page's script is given: every number that it draws, as plain JSON values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hubretrain.evaluation import METRICS, roc_auc_per_class
from hubretrain.report import curves
from hubretrain.report.run_data import EvaluatedModel, RunData
from hubretrain.report.thumbnails import Thumbnails

FIGURES = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "plain_accuracy": "accuracy of the likeliest class",
    "macro_f1": "macro F1",
    "top_3": "top 3",
    "mean_average_precision": "mean average precision",
    "roc_auc": "ROC AUC, macro",
    "log_loss": "log loss, nats",
    "calibration_error": "calibration error",
}
ADDED = ("recall_low", "recall_high", "average_precision", "average_precision_low",
         "average_precision_high")  # fmt: skip


def images_payload(
    gathered: RunData,
    thumbnails: Thumbnails,
    large: Thumbnails,
    rows: list[int],
    hints: dict[int, str],
) -> dict[str, Any]:
    """Paths, labels and thumbnails of all images.

    Args:
        gathered: The run.
        thumbnails: Of all images.
        large: Larger ones of some.
        rows: Which images those are.
        hints: What to say of an image, by row.
    """
    places = dict(zip(rows, large.index.tolist(), strict=True))
    return {
        "path": gathered.images["path"].tolist(),
        "label": gathered.images["class_index"].tolist(),
        "place": thumbnails.index.tolist(),
        "large": [places.get(row, -1) for row in range(len(gathered.images))],
        "hints": {str(row): text for row, text in hints.items()},
    }


def sheet_payload(thumbnails: Thumbnails) -> dict[str, int]:
    """How thumbnails lie in their sheets."""
    return {
        "width": thumbnails.width,
        "height": thumbnails.height,
        "columns": thumbnails.columns,
        "rows": thumbnails.rows,
    }


def model_payload(model: EvaluatedModel, gathered: RunData) -> dict[str, Any]:
    """What one model comes to."""
    labels = gathered.images["class_index"].to_numpy()[model.rows]
    right, wrong = curves.counts_at_thresholds(model.probabilities, labels)
    order, thousandths = curves.top_classes(model.probabilities)
    return {
        "title": model.title,
        "about": [about(model), about(replace(model, adjust=0.0))],
        "adjust": model.adjust,
        "rows": model.rows.tolist(),
        "decided": model.decided.tolist(),
        "top": order.tolist(),
        "p": thousandths.tolist(),
        "figures": [
            [
                name,
                curves.finite(model.figures[metric][0]),
                curves.finite(model.figures[metric][1]),
                curves.finite(model.figures[metric][2]),
                "%" if METRICS[metric.removeprefix("plain_")].is_share else "",
                metric,
            ]
            for metric, name in FIGURES.items()
            if metric in model.figures and (model.adjust or metric != "plain_accuracy")
        ],
        "classes": _classes(model, labels, gathered.class_names),
        "tp": right.tolist(),
        "fp": wrong.tolist(),
        "n_of": np.bincount(labels, minlength=len(gathered.class_names)).tolist(),
        "curves": curves.class_curves(model.probabilities, labels),
        "bins": curves.calibration(model.probabilities, labels),
        "topk": curves.top_k_accuracies(model.probabilities, labels),
    }


def about(model: EvaluatedModel) -> str:
    """What a reader must know of a model's images and decisions."""
    images = {
        "out of fold": "each judged by a head that saw neither it nor its group",
        "test split": "kept out of every choice",
        "validation fold": "which fine-tuning stopped by, so its figures are a little rosy",
    }[model.part]
    rule = (
        f"Decisions are by logit adjustment of strength {model.adjust:g}"
        if model.adjust
        else "Decisions are the likeliest class"
    )
    return (
        f"{len(model.rows):,} images, {images}. {rule}; probabilities are as the model gives them."
    )


def _classes(model: EvaluatedModel, labels: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Of each class what the page does not count itself."""
    areas = roc_auc_per_class(model.probabilities, labels)
    table = model.classes.set_index("class")
    found = []
    for c, name in enumerate(names):
        kept: Any = table.loc[name] if name in table.index else {}
        line: dict[str, Any] = {
            "class": name,
            "n_groups": int(kept["n_groups"]) if "n_groups" in kept else None,
            "roc_auc": curves.finite(areas[c]),
        }
        line |= {key: curves.finite(kept[key]) if key in kept else None for key in ADDED}
        found.append(line)
    return found
