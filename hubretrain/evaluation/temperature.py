"""Temperature scaling: one number that calibrates the probabilities of all classes.

Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML,
https://arxiv.org/abs/1706.04599, section 4.2. It is applied to probabilities instead of logits, so
that it also serves logistic heads and ensembles; for a softmax the result is the same::

    q_k = p_k ** (1 / T) / sum_j p_j ** (1 / T)

T > 1 softens the probabilities, T < 1 sharpens them. The ranking of the classes stays, so top-1
stays; and the adjusted decision stays if the strength of the logit adjustment is divided by T.

T is fitted to images that the model was not fitted on: a model is overconfident on its training
images, so a temperature of those would sharpen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize_scalar

from hubretrain.arrays import AnyArray
from hubretrain.evaluation.checks import check_predictions

if TYPE_CHECKING:
    import pandas as pd

# Where every image of a few is classified correctly, the log loss falls all the way to T = 0.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.2, 5.0
# Smaller probabilities are raised to this: its logarithm exists in float32, and is finite.
SMALLEST_PROBABILITY = 1e-30


def fit_temperature(probabilities: AnyArray, labels: AnyArray) -> float:
    """Return the temperature with the lowest mean log loss.

    The log loss is convex in 1 / T, so it has one minimum.

    Args:
        probabilities: Floating array of shape (n_images, n_classes) in [0, 1], rows summing to
            1, of images that the model was not fitted on.
        labels: Integer array of shape (n_images,) in [0, n_classes).

    Returns:
        A number in [LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE].

    Raises:
        DataError: The arrays are no predictions; see `check_predictions`.
    """
    probabilities, labels, _ = check_predictions(probabilities, labels)
    logs = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST_PROBABILITY))
    image = np.arange(len(labels))

    def log_loss(log_temperature: float) -> float:
        scores = logs / np.exp(log_temperature)
        top = scores.max(axis=1, keepdims=True)
        totals = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
        return float((totals - scores[image, labels]).mean())

    bounds = (float(np.log(LOWEST_TEMPERATURE)), float(np.log(HIGHEST_TEMPERATURE)))
    return float(np.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x))


def temperature_of(table: pd.DataFrame, class_names: Sequence[str]) -> float:
    """Return the temperature that fits the predictions in a table, such as `validation.csv`.

    Args:
        table: One row per image, with the columns `label` and, for each class, `p(<class>)`.
        class_names: Names of the classes, in class order.

    Raises:
        KeyError: The table lacks a column.
        DataError: The table holds no image, or its columns are no probabilities.
    """
    probs = table[[f"p({name})" for name in class_names]].to_numpy(dtype=np.float64)
    index = {str(name): c for c, name in enumerate(class_names)}
    labels = table["label"].astype(str).map(index).to_numpy(dtype=np.int64)
    # The CSV keeps six decimals, so rows may miss 1 by some millionths.
    return fit_temperature(probs / probs.sum(axis=1, keepdims=True), labels)
