"""One temperature for all classes, fitted on images that the model never saw: calibration.

Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML,
https://arxiv.org/abs/1706.04599, section 4.2. On probabilities instead of logits, so that it also
serves logistic heads and ensembles; for a softmax it is the same::

    q_k = p_k ** (1 / T) / sum_j p_j ** (1 / T)

It changes no order: neither the likeliest class, nor, with the strength of the logit adjustment
divided by T too, the decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize_scalar

from hubretrain.evaluation.checks import AnyArray, check_predictions

if TYPE_CHECKING:
    import pandas as pd

# A few images that are all classified rightly would ask for a temperature of 0.
LEAST, MOST = 0.2, 5.0
SMALLEST = 1e-30  # the smallest probability that counts: its logarithm must exist in float32


def fit_temperature(probabilities: AnyArray, labels: AnyArray) -> float:
    """Returns the temperature of the least mean log loss, in [LEAST, MOST].

    The log loss is convex in 1 / T, so there is one minimum.

    Args:
        probabilities: Floating (n_images, n_classes), in [0, 1], rows summing to 1; of images
            that the model was not fitted on.
        labels: Integer (n_images,), in [0, n_classes).

    Raises:
        DataError: See `hubretrain.evaluation.checks.check_predictions`.
    """
    probabilities, labels, _ = check_predictions(probabilities, labels)
    logs = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))
    image = np.arange(len(labels))

    def log_loss(log_temperature: float) -> float:
        scores = logs / np.exp(log_temperature)
        top = scores.max(axis=1, keepdims=True)
        totals = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
        return float((totals - scores[image, labels]).mean())

    bounds = (float(np.log(LEAST)), float(np.log(MOST)))
    return float(np.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x))


def temperature_of(table: pd.DataFrame, class_names: Sequence[str]) -> float:
    """Returns the temperature of the predictions in a table, such as `validation.csv`.

    Args:
        table: A row an image: `label`, and `p(<class>)` for each class.
        class_names: In class order.

    Raises:
        KeyError: The table lacks a column.
        DataError: It holds no image, or what are no probabilities.
    """
    said = table[[f"p({name})" for name in class_names]].to_numpy(dtype=np.float64)
    index = {str(name): c for c, name in enumerate(class_names)}
    labels = table["label"].astype(str).map(index).to_numpy(dtype=np.int64)
    # Six decimals were kept, so rows may miss 1 by some millionths.
    return fit_temperature(said / said.sum(axis=1, keepdims=True), labels)


def calibrated(probabilities: AnyArray, temperature: float) -> AnyArray:
    """Returns probabilities at a temperature, of the same shape (n_images, n_classes) and type.

    Args:
        probabilities: Floating, rows summing to 1.
        temperature: Above 0; 1 changes nothing, more makes them humbler.
    """
    if temperature == 1:
        return probabilities
    scores = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True), dtype=probabilities.dtype)
