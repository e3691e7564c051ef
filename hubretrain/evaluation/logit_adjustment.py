"""From probabilities to a decision: logit adjustment by the class priors.

One fitted head serves two aims. The likeliest class is right most often; dividing by the priors
first is right most often for the average class: with strength 1 and true probabilities it is the
rule of the best balanced accuracy. Menon, Jayasumana, Rawat, Jain, Veit and Kumar (2021),
Long-tail learning via logit adjustment, ICLR, https://arxiv.org/abs/2007.07314, equation 9::

    argmax_y  log p_y(x) - strength * log prior_y
"""

from __future__ import annotations

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def class_priors(labels: AnyArray, n_classes: int) -> FloatArray:
    """Returns the share of each class, float64 (n_classes,), never 0.

    A class without images counts as half an image: its prior must not make it win always.
    """
    counts = np.maximum(np.bincount(labels, minlength=n_classes), 0.5)
    return np.asarray(counts / counts.sum())


def adjusted(probabilities: AnyArray, priors: AnyArray, strength: float) -> AnyArray:
    """Returns probabilities divided by `priors ** strength` and normalised again.

    Their largest is the decision. They are no calibrated probabilities of these images, but of
    images whose classes are evened out that far.

    Args:
        probabilities: float (n_images, n_classes), rows summing to 1.
        priors: float (n_classes,), above 0.
        strength: 0 changes nothing, 1 takes the priors out altogether.
    """
    if strength == 0:
        return probabilities
    scores = probabilities * (priors**-strength).astype(probabilities.dtype)
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))
