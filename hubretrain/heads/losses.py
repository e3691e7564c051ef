"""What each of many heads is asked to fit, and its loss on a block of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Kind = Literal["softmax", "logistic"]

LOWEST_EXPONENT = -60  # exp(-60) is 1e-26; below -87 float32 turns denormal and slow


@dataclass(frozen=True)
class HeadLosses:
    """What each problem is asked; softmax problems have n_outputs = n_classes, logistic ones 1.

    Attributes:
        kind: Of all of them.
        labels: int64 (n_rows,), the class of each row.
        row_weight: float (n_rows,), of the rows' dtype.
        row_fold: int64 (n_rows,).
        class_weight: float (n_problems, n_classes), the weight of a row by its class; same dtype.
        fold: int64 (n_problems,), the fold that is left out; below 0: none.
        positive: int64 (n_problems,), the class against the rest; softmax does not look at it.
    """

    kind: Kind
    labels: Array
    row_weight: Array
    row_fold: Array
    class_weight: Array
    fold: Array
    positive: Array

    def take(self, which: Array) -> HeadLosses:
        """Some of the problems, by index."""
        parts = self.class_weight[which], self.fold[which], self.positive[which]
        return HeadLosses(self.kind, self.labels, self.row_weight, self.row_fold, *parts)

    def __len__(self) -> int:
        return len(self.fold)

    @property
    def n_outputs(self) -> int:
        """Scores of one problem."""
        return 1 if self.kind == "logistic" else self.class_weight.shape[1]

    def priors(self) -> tuple[Array, Array]:
        """The best biases with no weights, and the loss they leave.

        Returns:
            float64 (n_problems, n_outputs) and float64 (n_problems,).
        """
        n_classes = self.class_weight.shape[1]
        counts = np.stack(
            [
                np.bincount(
                    self.labels, self.row_weight * (self.row_fold != fold), minlength=n_classes
                )
                for fold in self.fold
            ]
        )
        mass = counts * self.class_weight
        if self.kind == "logistic":
            yes = np.take_along_axis(mass, self.positive[:, None], axis=1)
            mass = np.concatenate([mass.sum(axis=1, keepdims=True) - yes, yes], axis=1)
        share = mass / mass.sum(axis=1, keepdims=True)
        loss = -(mass * np.log(share)).sum(axis=1)
        if self.kind == "logistic":
            return np.log(share[:, 1:] / share[:, :1]), loss
        return np.log(share) - np.log(share).mean(axis=1, keepdims=True), loss

    def block(self, rows: slice, scores: Array, curvature: bool) -> tuple[Array, Array | None]:
        """Loss and curvature on a block of rows; `scores` becomes their derivative.

        Args:
            rows: Which.
            scores: float (n_problems, n_outputs, m).
            curvature: Whether M (see the top of this file) is wanted.

        Returns:
            float64 (n_problems,), and float64 (n_problems, n_outputs, n_outputs) or None.
        """
        labels, weight = self.labels[rows], self._weight(rows)
        if self.kind == "logistic":
            return self._logistic(scores, labels, weight, curvature)
        return self._softmax(scores, labels, weight, curvature)

    def bends(self, rows: slice, scores: Array) -> Array:
        """The loss's second derivative by the scores of each row of a block.

        Returns:
            float (n_problems, n_outputs, n_outputs, m).
        """
        weight = self._weight(rows)[:, None, None]
        if self.kind == "logistic":
            small = np.exp(np.maximum(-np.abs(scores), LOWEST_EXPONENT))
            return weight * (small / (1 + small) ** 2)[:, :, None]
        share = np.exp(np.maximum(scores - scores.max(axis=1, keepdims=True), LOWEST_EXPONENT))
        share /= share.sum(axis=1, keepdims=True)
        bend = -share[:, :, None] * share[:, None]
        diagonal = np.arange(scores.shape[1])
        bend[:, diagonal, diagonal] += share
        return weight * bend

    def _weight(self, rows: slice) -> Array:
        weight = self.class_weight[:, self.labels[rows]] * self.row_weight[rows]
        weight *= self.row_fold[rows] != self.fold[:, None]
        return np.asarray(weight)

    def _softmax(
        self, scores: Array, labels: Array, weight: Array, curvature: bool
    ) -> tuple[Array, Array | None]:
        row = np.arange(len(labels))
        scores -= scores.max(axis=1, keepdims=True)
        own = scores[:, labels, row]
        np.exp(np.maximum(scores, LOWEST_EXPONENT, out=scores), out=scores)
        total = scores.sum(axis=1)
        loss = np.einsum("pi,pi->p", weight, np.log(total) - own, dtype=np.float64)
        scores *= (weight / total)[:, None]
        bend = None
        if curvature:
            safe = np.where(weight > 0, weight, 1)[:, None]
            bend = -np.matmul(scores / safe, scores.swapaxes(1, 2)).astype(np.float64)
            diagonal = np.arange(scores.shape[1])
            bend[:, diagonal, diagonal] += scores.sum(axis=2, dtype=np.float64)
        scores[:, labels, row] -= weight
        return loss, bend

    def _logistic(
        self, scores: Array, labels: Array, weight: Array, curvature: bool
    ) -> tuple[Array, Array | None]:
        z = scores[:, 0]
        yes = labels == self.positive[:, None]
        small = np.exp(-np.minimum(np.abs(z), -LOWEST_EXPONENT))
        wrong = np.maximum(np.where(yes, -z, z), 0)  # log(1 + exp(+-z)) without overflow
        loss = np.einsum("pi,pi->p", weight, np.log1p(small) + wrong, dtype=np.float64)
        p = np.where(z >= 0, 1, small) / (1 + small)
        bend = None
        if curvature:
            bend = np.einsum("pi,pi->p", weight, p * (1 - p), dtype=np.float64)[:, None, None]
        scores[:, 0] = weight * (p - yes)
        return loss, bend
