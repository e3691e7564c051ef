"""Temperature scaling: one number that calibrates the probabilities of all classes.

Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML,
https://arxiv.org/abs/1706.04599, section 4.2. It is applied to probabilities instead of logits, so
that it also serves logistic heads and ensembles; for a softmax the result is the same::

    q_k = p_k ** (1 / T) / sum_j p_j ** (1 / T)

Where an image may have several labels, each probability is of its own, and so is its odds::

    q_k / (1 - q_k) = (p_k / (1 - p_k)) ** (1 / T)

T > 1 softens the probabilities, T < 1 sharpens them. The ranking of the classes stays, so top-1
stays; and the adjusted decision stays if the strength of the logit adjustment is divided by T.

T is fitted to images that the model was not fitted on: a model is overconfident on its training
images, so a temperature of those would sharpen. It minimises::

    n_groups * mean log loss + u ** 2 / 2,  u = log T / PRIOR_DEVIATION

The second term is a prior on log T: without it, the log loss of a few images that are all
classified correctly falls all the way to T = 0, and one error among new images costs more than
all that was gained. Beyond `TAIL` it goes on as a straight line (Huber 1964, Robust estimation of a
location parameter, https://doi.org/10.1214/aoms/1177703732): a head of a very large penalty decides
well by probabilities that are all nearly equal, and only a T of a thousandth tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray
from hubretrain.evaluation.checks import check_predictions
from hubretrain.evaluation.logits import sigmoid, softmax
from hubretrain.files import Number

# In simulations of 60 images the best T was 0.2 to 0.8; 0.25 left a third of the gain, and with 1
# the worst of 20 heads lost 0.05 nats, with 0.5 it lost 0.016 and the mean gain was the same.
PRIOR_DEVIATION = 0.5
TAIL = 3.0  # deviations: from T of 0.22 to 4.5 the prior is Gaussian
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-5, 20.0  # for the search; the prior stays off them
N_STARTS = 60
# Smaller probabilities are raised to this: its logarithm exists in float32, and is finite.
SMALLEST_PROBABILITY = 1e-30
SMALLEST_COMPLEMENT = 2.0**-24  # of a float32 below 1: what is nearer counts as that far from 1


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it is worth on the images that it was fitted on.

    Attributes:
        temperature: T, above 0.
        log_loss_before: Mean log loss of the probabilities without the temperature, nats; NaN
            where nothing was fitted.
        log_loss_after: The same with it.
    """

    temperature: float = 1.0
    log_loss_before: Number = float("nan")
    log_loss_after: Number = float("nan")


UNCALIBRATED = Calibration()


def at_temperature(
    probabilities: AnyArray, temperature: float, multi_label: bool = False
) -> AnyArray:
    """Return probabilities at a temperature, rows summing to 1: what an exported model gives.

    Args:
        probabilities: Floating array of shape (n_images, n_classes), rows summing to 1.
        temperature: T, above 0; `1 / T` undoes it.
        multi_label: Whether an image may have several labels, so that no row sums to 1.
    """
    if temperature == 1:
        return probabilities
    if multi_label:
        return sigmoid(_log_odds(probabilities) / temperature)
    return softmax(np.log(np.maximum(probabilities, SMALLEST_PROBABILITY)) / temperature)


def calibrate(
    probabilities: AnyArray,
    labels: AnyArray,
    groups: AnyArray | None = None,
    *,
    may_sharpen: bool = True,
) -> Calibration:
    """Return the temperature of the least log loss under the prior.

    The log loss is convex in 1 / T, but the sum with the prior may have two minima, one near T = 1:
    the least of some temperatures is where the search begins.

    Args:
        probabilities: Floating array of shape (n_images, n_classes) in [0, 1], rows summing to
            1, of images that the model was not fitted on.
        labels: Integer array of shape (n_images,) in [0, n_classes); or, where an image may have
            several, bool (n_images, n_classes).
        groups: Group of each image, (n_images,): as images of one group are alike, so many count
            as there are groups. None where each is its own.
        may_sharpen: False for images that the model was chosen on, such as those that chose the
            epoch: they flatter it, so T is at least 1.

    Raises:
        DataError: The arrays are no predictions; see `check_predictions`.
    """
    probabilities, labels, _ = check_predictions(probabilities, labels)
    exact = probabilities.astype(np.float64)
    is_multi_label = labels.ndim == 2
    logs = _log_odds(exact) if is_multi_label else np.log(np.maximum(exact, SMALLEST_PROBABILITY))
    n_groups = len(labels) if groups is None else len(np.unique(groups))

    def penalised(log_temperature: float) -> float:
        deviations = abs(log_temperature) / PRIOR_DEVIATION
        prior = min(deviations, TAIL) * (deviations - min(deviations, TAIL) / 2)
        return _log_loss(logs / np.exp(log_temperature), labels) + prior / n_groups

    lowest = LOWEST_TEMPERATURE if may_sharpen else 1.0
    starts = np.linspace(np.log(lowest), np.log(HIGHEST_TEMPERATURE), N_STARTS).tolist()
    least = min(range(N_STARTS), key=lambda i: penalised(starts[i]))
    bounds = (starts[max(least - 1, 0)], starts[min(least + 1, N_STARTS - 1)])
    from scipy.optimize import minimize_scalar  # here: `predict` needs no SciPy

    best = float(minimize_scalar(penalised, bounds=bounds, method="bounded").x)
    best = best if penalised(best) < penalised(0.0) else 0.0  # the search does not reach its ends
    temperature = float(np.exp(best))
    return Calibration(temperature, _log_loss(logs, labels), _log_loss(logs / temperature, labels))


def _log_odds(probabilities: AnyArray) -> AnyArray:
    """Return log(p / (1 - p)), finite."""
    odds_against = np.maximum(1 - probabilities, SMALLEST_COMPLEMENT)
    return np.asarray(np.log(np.maximum(probabilities, SMALLEST_PROBABILITY) / odds_against))


def _log_loss(scores: FloatArray, labels: AnyArray) -> float:
    """Return the mean log loss of the softmax of scores (n_images, n_classes), nats.

    Where an image may have several labels, it is that of their sigmoids, mean over the labels, too.
    """
    if labels.ndim == 2:
        return float(np.logaddexp(0, np.where(labels, -scores, scores)).mean())
    top = scores.max(axis=1, keepdims=True)
    totals = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
    return float((totals - scores[np.arange(len(labels)), labels]).mean())
