"""From probabilities to a decision: logit adjustment by the class priors.

One fitted head serves two aims. The top-1 class is right most often; dividing by the priors first
is right most often for the average class: with strength 1 and true probabilities it is the rule of
the best balanced accuracy. Menon, Jayasumana, Rawat, Jain, Veit and Kumar (2021),
Long-tail learning via logit adjustment, ICLR, https://arxiv.org/abs/2007.07314, equation 9::

    argmax_y  log p_y(x) - strength * log prior_y
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray, IntArray

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def class_priors(labels: AnyArray, n_classes: int) -> FloatArray:
    """Return the share of each class, float64 (n_classes,), never 0.

    A class without images counts as half an image: its prior must not make it win always. Where an
    image may have several labels (`labels` are indicators), each has a share of its own.
    """
    if labels.ndim == 2:
        return np.asarray(np.maximum(labels.sum(axis=0), 0.5) / max(len(labels), 1))
    counts = np.maximum(np.bincount(labels, minlength=n_classes), 0.5)
    return np.asarray(counts / counts.sum())


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities become decisions: the largest after logit adjustment by the priors.

    Attributes:
        strength: 0 changes nothing: top-1; 1 takes the priors out altogether.
        priors: Share of each class, above 0; may be empty at strength 0.
    """

    strength: float
    priors: tuple[float, ...]

    def at_temperature(self, temperature: float) -> DecisionRule:
        """Return the rule that decides the same of probabilities at a temperature."""
        return DecisionRule(self.strength / temperature, self.priors)

    def adjust(self, probs: AnyArray) -> AnyArray:
        """Return probabilities divided by `priors ** strength` and normalised again.

        They are no calibrated probabilities of these images, but of images whose classes are
        evened out that far.

        Args:
            probs: float (n_images, n_classes), rows summing to 1.
        """
        if self.strength == 0:
            return probs
        factors = (np.array(self.priors) ** -self.strength).astype(probs.dtype)
        scores = probs * factors
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))

    def decide(self, probs: AnyArray) -> IntArray:
        """Return the class decided on for each row of (n_images, n_classes): int64 (n_images,)."""
        return np.asarray(self.adjust(probs).argmax(axis=1), dtype=np.int64)
