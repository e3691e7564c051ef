"""The objectives of many problems in the eigenbasis: value, gradient, Hessian; one pass each.

The unknowns V of a problem are an array of shape (n_outputs, rank + 1): the weights W Q in the
eigenbasis Q of the features, and the bias in the last column. All problems share the rows, so the
scores of all of them on a block of rows are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray, IntArray
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.losses import HeadLosses


@dataclass(frozen=True)
class Evaluation:
    """The objective of some problems at some unknowns.

    Attributes:
        value: float64 array of shape (n_problems,).
        gradient: Derivative by the unknowns, of their dtype and shape.
        curvature: M at the top of `hubretrain.heads.solver`, float64 array of shape (n_problems,
            n_outputs, n_outputs), or None.
    """

    value: FloatArray
    gradient: AnyArray
    curvature: FloatArray | None


class Objective:
    """The objectives of some problems on some rows.

    Args:
        rows: Standardised features.
        losses: Labels and weights of the problems.

    Attributes:
        rank: Number of columns of the eigenbasis.
        spectrum: Mean square of the features along each column, float64 array of shape (rank,).
    """

    def __init__(self, rows: FeatureBlocks, losses: HeadLosses) -> None:
        self.rows, self.losses = rows, losses
        self._basis, self.spectrum = rows.eigenbasis()
        self.rank = self._basis.shape[1]
        self._rows_are_rotated = rows.rotated_blocks() is not None

    def evaluate(
        self, unknowns: AnyArray, l2: float, index: IntArray, *, curvature: bool = False
    ) -> Evaluation:
        """Return value and gradient of some problems: one pass over the rows.

        Args:
            unknowns: Unknowns of these problems, of shape (len(index), n_outputs, rank + 1).
            l2: Penalty of the weights.
            index: The problems, int64.
            curvature: Whether to compute M too.
        """
        losses = self.losses.take(index)
        shape = unknowns.shape[:2]
        n_columns, n_outputs = shape[0] * shape[1], shape[1]
        value = np.zeros(len(index))
        width = self.rank if self._rows_are_rotated else self.rows.n_features
        weight_gradient = np.zeros((n_columns, width))
        bias_gradient = np.zeros(shape)
        total_curvature = np.zeros((*shape, n_outputs)) if curvature else None
        for rows, block, scores in self.scores(unknowns):
            loss, block_curvature = losses.differentiate(rows, scores, curvature)
            value += loss
            if total_curvature is not None:
                total_curvature += block_curvature
            weight_gradient += scores.reshape(n_columns, -1) @ block
            bias_gradient += scores.sum(axis=2, dtype=np.float64)
        # Sums over blocks are float64; the rotation, a matrix product, is cheaper in float32.
        rotated = weight_gradient.astype(unknowns.dtype)
        rotated = rotated if self._rows_are_rotated else rotated @ self._basis
        gradient = np.empty_like(unknowns)
        gradient[..., :-1] = rotated.reshape(*shape, self.rank)
        gradient[..., :-1] += l2 * unknowns[..., :-1]
        gradient[..., -1] = bias_gradient
        weights = unknowns[..., :-1]
        penalty = np.einsum("pkj,pkj->p", weights, weights, dtype=np.float64)
        return Evaluation(value + l2 / 2 * penalty, gradient, total_curvature)

    def hessian(self, unknowns: AnyArray, l2: float, index: IntArray) -> FloatArray:
        """Return the exact Hessian of small problems: one pass over the rows.

        With x_i extended by 1 for the bias, the block of outputs k and l is
        sum_i x_i x_i' (d2 loss_i / dz_k dz_l).

        Returns:
            float64 array of shape (n_problems, size, size), size = n_outputs * (rank + 1).
        """
        losses = self.losses.take(index)
        n_problems, n_outputs, width = unknowns.shape
        size = n_outputs * width
        hessian: FloatArray = np.zeros((n_problems, n_outputs, width, n_outputs, width))
        for rows, block, scores in self.scores(unknowns):
            extended = block if self._rows_are_rotated else block @ self._basis
            extended = np.append(extended, np.ones((len(block), 1), block.dtype), axis=1)
            second = losses.second_derivatives(rows, scores)
            for p, k, other in np.ndindex(n_problems, n_outputs, n_outputs):
                if k <= other:
                    hessian[p, k, :, other] += (extended.T * second[p, k, other]) @ extended
                    hessian[p, other, :, k] = hessian[p, k, :, other].T
        hessian = hessian.reshape(n_problems, size, size)
        hessian[:, np.arange(size), np.arange(size)] += np.tile(
            np.append(np.full(self.rank, l2), 0), n_outputs
        )
        if n_outputs > 1:
            # The same shift of all biases changes nothing, so the Hessian is singular along it. A
            # multiple of 11' on the biases makes it regular; the step along it stays 0, because
            # the gradient has no part there.
            bias = np.arange(n_outputs) * width + self.rank
            lift = np.trace(hessian, axis1=1, axis2=2) / size / n_outputs
            hessian[np.ix_(np.arange(n_problems), bias, bias)] += lift[:, None, None]
        return hessian

    def scores(self, unknowns: AnyArray) -> Iterator[tuple[slice, AnyArray, AnyArray]]:
        """Yield, for each block, its rows, its features and the scores of all problems.

        Features are rotated or the weights are rotated back, whichever is cheaper; scores have the
        shape (n_problems, n_outputs, m).
        """
        shape = unknowns.shape[:2]
        weight = unknowns[..., :-1].reshape(-1, self.rank)
        blocks = self.rows.rotated_blocks()
        if blocks is None:
            weight, blocks = weight @ self._basis.T, self.rows.blocks()
        for rows, block in blocks:
            scores = (weight @ block.T).reshape(*shape, -1)
            scores += unknowns[..., -1:]
            yield rows, block, scores

    def raw_heads(self, unknowns: AnyArray) -> tuple[FloatArray, FloatArray]:
        """Return weights and biases for the features as they were given, not standardised.

        W x + b with x = (features - mean) / scale is (W / scale) features + b - (W / scale) mean.

        Returns:
            Weights of shape (n_problems, n_outputs, n_features) and biases of shape (n_problems,
            n_outputs).
        """
        weight = unknowns[..., :-1].astype(np.float64) @ self._basis.T.astype(np.float64)
        weight /= self.rows.scale
        return weight, unknowns[..., -1] - weight @ self.rows.mean
