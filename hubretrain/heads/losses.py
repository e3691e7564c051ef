"""The losses of many heads on a block of rows, with their derivatives by the scores.

A *problem* p is one head to fit. On row i with scores z it has the loss omega_pi * loss(z, y_i):

    softmax     loss = log(sum_k exp(z_k)) - z_y        one score per class
    logistic    loss = log(1 + exp(-+z))                one score: the class against the rest

and with the probabilities s = softmax(z), or s = 1 / (1 + exp(-z)), the derivatives

    softmax     d loss / dz = s - e_y                   d2 loss / dz2 = diag(s) - s s'
    logistic    d loss / dz = s - [y is the class]      d2 loss / dz2 = s (1 - s)

omega_pi = (weight of row i) * (weight of class y_i in p) * (0 where p leaves out the fold of i).

Where an image may have several labels, y_i is a set, a logistic problem tells the rows with its
label from those without, and it weighs a row by which of both it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray, IntArray
from hubretrain.evaluation import LOWEST_EXPONENT, softmax

Kind = Literal["softmax", "logistic", "mlp"]


@dataclass(frozen=True)
class HeadLosses:
    """Labels and weights of some problems of one kind.

    Attributes:
        kind: `softmax`: each problem has all classes; `logistic`: each has one class against the
            rest.
        labels: Class of each row, int64 array of shape (n_rows,); or, where an image may have
            several labels, bool (n_rows, n_labels).
        row_weight: Weight of each row, of the features' dtype and shape (n_rows,).
        row_fold: Fold of each row, int64 array of shape (n_rows,).
        class_weight: Weight of a row by its class, of the same dtype and shape (n_problems,
            n_classes); with several labels (n_problems, 2), of a row without the label and with it.
        fold: Fold that each problem leaves out, int64 array of shape (n_problems,); negative: none.
        positive: Class that a logistic problem tells from the rest, int64 array of shape
            (n_problems,); softmax ignores it.
    """

    kind: Kind
    labels: AnyArray
    row_weight: AnyArray
    row_fold: IntArray
    class_weight: AnyArray
    fold: IntArray
    positive: IntArray

    def take(self, index: IntArray) -> HeadLosses:
        """Return some of the problems."""
        subset = self.class_weight[index], self.fold[index], self.positive[index]
        return HeadLosses(self.kind, self.labels, self.row_weight, self.row_fold, *subset)

    def __len__(self) -> int:
        return len(self.fold)

    @property
    def n_outputs(self) -> int:
        """Number of scores per problem and row."""
        return 1 if self.kind == "logistic" else self.class_weight.shape[1]

    def priors(self) -> tuple[FloatArray, FloatArray]:
        """Return the best biases with weights of 0, and the loss that they leave.

        The best constant probabilities are the weighted shares of the classes; softmax biases are
        their logarithms, centred because a common shift changes nothing.

        Returns:
            Biases of shape (n_problems, n_outputs) and losses of shape (n_problems,), in nats.
        """
        if self.labels.ndim == 2:
            return self._priors_of_labels()
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
            positive = np.take_along_axis(mass, self.positive[:, None], axis=1)
            rest = mass.sum(axis=1, keepdims=True) - positive
            mass = np.concatenate([rest, positive], axis=1)
        share = mass / mass.sum(axis=1, keepdims=True)
        loss = -(mass * np.log(share)).sum(axis=1)
        if self.kind == "logistic":
            return np.log(share[:, 1:] / share[:, :1]), loss
        return np.log(share) - np.log(share).mean(axis=1, keepdims=True), loss

    def _priors_of_labels(self) -> tuple[FloatArray, FloatArray]:
        counts = np.zeros((len(self), 2))
        for fold in np.unique(self.fold).tolist():
            at = np.flatnonzero(self.fold == fold)
            weight = np.asarray(self.row_weight * (self.row_fold != fold), np.float64)
            counts[at, 1] = (self.labels.T @ weight)[self.positive[at]]
            counts[at, 0] = weight.sum() - counts[at, 1]
        # A label that all rows have, or none, has weights of 0, so its bias stays what it is here:
        # as if half an image were the exception.
        is_constant = np.asarray((self.class_weight == 0).all(axis=1))
        mass = np.where(is_constant[:, None], np.maximum(counts, 0.5), counts * self.class_weight)
        share = mass / mass.sum(axis=1, keepdims=True)
        loss = np.where(is_constant, 1.0, -(mass * np.log(share)).sum(axis=1))
        return np.log(share[:, 1:] / share[:, :1]), loss

    def differentiate(
        self, rows: slice, scores: AnyArray, curvature: bool
    ) -> tuple[FloatArray, FloatArray | None]:
        """Return the loss on a block of rows and turn `scores` into its derivative, in place.

        Args:
            rows: Rows of the block.
            scores: Scores of shape (n_problems, n_outputs, m); overwritten by the derivative of
                the loss by them.
            curvature: Whether to sum the second derivatives too: the matrix M at the top of
                `hubretrain.heads.solver`.

        Returns:
            Losses, float64 array of shape (n_problems,), in nats; and M, float64 array of shape
            (n_problems, n_outputs, n_outputs), or None.
        """
        weight = self._weight(rows)
        if self.kind == "logistic":
            return self._logistic(scores, self._is_positive(rows), weight, curvature)
        return self._softmax(scores, self.labels[rows], weight, curvature)

    def second_derivatives(self, rows: slice, scores: AnyArray) -> AnyArray:
        """Return the second derivative of the loss by the scores, for each row of a block.

        Returns:
            Array of shape (n_problems, n_outputs, n_outputs, m).
        """
        weight = self._weight(rows)[:, None, None]
        if self.kind == "logistic":
            # s (1 - s) = e / (1 + e)^2 with e = exp(-|z|), which does not overflow.
            small = np.exp(np.maximum(-np.abs(scores), LOWEST_EXPONENT))
            return weight * (small / (1 + small) ** 2)[:, :, None]
        probs = softmax(scores, axis=1)
        second = -probs[:, :, None] * probs[:, None]
        diagonal = np.arange(scores.shape[1])
        second[:, diagonal, diagonal] += probs
        return weight * second

    def _weight(self, rows: slice) -> AnyArray:
        """Return omega of a block of rows, of shape (n_problems, m)."""
        if self.labels.ndim == 2:
            without, positive = self.class_weight[:, :1], self.class_weight[:, 1:]
            weight = np.where(self._is_positive(rows), positive, without) * self.row_weight[rows]
        else:
            weight = self.class_weight[:, self.labels[rows]] * self.row_weight[rows]
        weight *= self.row_fold[rows] != self.fold[:, None]
        return np.asarray(weight)

    def _is_positive(self, rows: slice) -> AnyArray:
        """Return which rows of a block logistic problems tell from the rest, (n_problems, m)."""
        if self.labels.ndim == 2:
            return self.labels[rows].T[self.positive]
        return np.asarray(self.labels[rows] == self.positive[:, None])

    def _softmax(
        self, scores: AnyArray, labels: IntArray, weight: AnyArray, curvature: bool
    ) -> tuple[FloatArray, FloatArray | None]:
        # As `evaluation.softmax`, but in place: `scores` becomes, in turn, shifted scores, odds,
        # weighted probabilities and the derivative. This loop is where a fit spends its time.
        row = np.arange(len(labels))
        scores -= scores.max(axis=1, keepdims=True)
        label_scores = scores[:, labels, row]
        np.exp(np.maximum(scores, LOWEST_EXPONENT, out=scores), out=scores)
        total = scores.sum(axis=1)
        loss = np.einsum("pi,pi->p", weight, np.log(total) - label_scores, dtype=np.float64)
        scores *= (weight / total)[:, None]
        second = None
        if curvature:
            # sum_i omega_i (diag(s) - s s') from omega_i s, so s s' needs one division by omega_i.
            divisor = np.where(weight > 0, weight, 1)[:, None]
            second = -np.matmul(scores / divisor, scores.swapaxes(1, 2)).astype(np.float64)
            diagonal = np.arange(scores.shape[1])
            second[:, diagonal, diagonal] += scores.sum(axis=2, dtype=np.float64)
        scores[:, labels, row] -= weight
        return loss, second

    def _logistic(
        self, scores: AnyArray, is_positive: AnyArray, weight: AnyArray, curvature: bool
    ) -> tuple[FloatArray, FloatArray | None]:
        z = scores[:, 0]
        small = np.exp(-np.minimum(np.abs(z), -LOWEST_EXPONENT))
        # log(1 + exp(-+z)) = log(1 + exp(-|z|)) + max(-+z, 0), which does not overflow.
        excess = np.maximum(np.where(is_positive, -z, z), 0)
        loss = np.einsum("pi,pi->p", weight, np.log1p(small) + excess, dtype=np.float64)
        probs = np.where(z >= 0, 1, small) / (1 + small)
        second = None
        if curvature:
            second = np.einsum("pi,pi->p", weight, probs * (1 - probs), dtype=np.float64)
            second = second[:, None, None]
        scores[:, 0] = weight * (probs - is_positive)
        return loss, second
