"""From scores to probabilities."""

from __future__ import annotations

import numpy as np

from hubretrain.arrays import AnyArray

# exp(-60) is 9e-27: nothing smaller changes a sum. Below exp(-87) float32 numbers are denormal,
# which makes arithmetic slow, and a logarithm of the result would be infinite below exp(-104).
LOWEST_EXPONENT = -60.0


def softmax(logits: AnyArray, axis: int = -1) -> AnyArray:
    """Return the softmax of scores, without overflow and without a probability of exactly 0.

    Args:
        logits: Floating scores; the classes lie along `axis`.
        axis: Axis of the classes.

    Returns:
        Probabilities of the same shape and dtype that sum to 1 along `axis`; each is at least
        exp(-60) times the largest.
    """
    shifted = logits - logits.max(axis=axis, keepdims=True)
    odds = np.exp(np.maximum(shifted, LOWEST_EXPONENT))
    return np.asarray(odds / odds.sum(axis=axis, keepdims=True))


def sigmoid(logits: AnyArray) -> AnyArray:
    """Return the logistic function of scores, without overflow.

    Args:
        logits: Floating scores.

    Returns:
        Probabilities of the same shape and dtype, at least exp(-60).
    """
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, LOWEST_EXPONENT, -LOWEST_EXPONENT))))
