"""The objectives of many problems in their bases: value, gradient, Hessian; one pass each.

The unknowns V of a problem are an array of shape (n_outputs, rank + 1): the weights W Q in the
basis Q of the problem, and the bias in the last column. All problems share the rows, so the
scores of all of them on a block of rows are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray, IntArray
from hubretrain.heads.features import Basis, FeatureBlocks
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
        bases: Bases of the problems; none: all have the eigenbasis of the rows.
        basis_of: Basis of each problem, int64 array of shape (n_problems,).

    Attributes:
        rank: Number of columns of the widest basis. The others' last unknowns are 0, for nothing
            but the penalty depends on them.
        spectrum: Mean square of the features along each column, float64 array of shape
            (n_problems, rank); 0 for columns that a basis lacks.
    """

    def __init__(
        self,
        rows: FeatureBlocks,
        losses: HeadLosses,
        bases: Sequence[Basis] = (),
        basis_of: IntArray | None = None,
    ) -> None:
        self.rows, self.losses = rows, losses
        self._rows_are_rotated = not bases and rows.rotated_blocks() is not None
        bases = bases or [rows.eigenbasis()]
        self._bases = [basis.columns for basis in bases]
        self.rank = max(columns.shape[1] for columns in self._bases)
        self._basis_of = np.zeros(len(losses), np.int64) if basis_of is None else basis_of
        spectra = np.zeros((len(bases), self.rank))
        for spectrum, basis in zip(spectra, bases, strict=True):
            spectrum[: len(basis.spectrum)] = basis.spectrum
        self.spectrum: FloatArray = spectra[self._basis_of]

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
        for rows, block, scores in self.scores(unknowns, index):
            loss, block_curvature = losses.differentiate(rows, scores, curvature)
            value += loss
            if total_curvature is not None:
                total_curvature += block_curvature
            weight_gradient += scores.reshape(n_columns, -1) @ block
            bias_gradient += scores.sum(axis=2, dtype=np.float64)
        # Sums over blocks are float64; the rotation, a matrix product, is cheaper in float32.
        rotated = weight_gradient.astype(unknowns.dtype).reshape(*shape, width)
        gradient = np.empty_like(unknowns)
        gradient[..., :-1] = rotated if self._rows_are_rotated else self.into_bases(rotated, index)
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
        for rows, block, scores in self.scores(unknowns, index):
            extended = self._extended(block)
            second = losses.second_derivatives(rows, scores)
            for p, k, other in np.ndindex(n_problems, n_outputs, n_outputs):
                if k <= other:
                    x = extended[self._basis_of[index[p]]]
                    hessian[p, k, :, other] += (x.T * second[p, k, other]) @ x
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

    def _extended(self, block: AnyArray) -> list[AnyArray]:
        """Return the rows of a block in each basis, with a column of 1 for the bias."""
        extended = []
        for columns in self._bases:
            rotated = block if self._rows_are_rotated else block @ columns
            wide = np.zeros((len(block), self.rank + 1), block.dtype)
            wide[:, : rotated.shape[1]], wide[:, -1] = rotated, 1
            extended.append(wide)
        return extended

    def out_of_bases(self, weights: AnyArray, index: IntArray) -> AnyArray:
        """Return weights for the rows, (..., n_features), of unknowns' weights (..., rank).

        Args:
            weights: Of the problems `index`, of shape (len(index), n_outputs, rank).
            index: The problems, int64.
        """
        of_rows = np.empty((*weights.shape[:2], self.rows.n_features), weights.dtype)
        for b, columns in enumerate(self._bases):
            at = self._basis_of[index] == b
            columns = columns.astype(weights.dtype, copy=False)
            of_rows[at] = weights[at][..., : columns.shape[1]] @ columns.T
        return of_rows

    def into_bases(self, weights: AnyArray, index: IntArray) -> AnyArray:
        """Return weights for the rows, or a derivative by these, in the bases: the transpose."""
        in_basis = np.zeros((*weights.shape[:2], self.rank), weights.dtype)
        for b, columns in enumerate(self._bases):
            at = self._basis_of[index] == b
            columns = columns.astype(weights.dtype, copy=False)
            in_basis[at, :, : columns.shape[1]] = weights[at] @ columns
        return in_basis

    def scores(
        self, unknowns: AnyArray, index: IntArray | None = None
    ) -> Iterator[tuple[slice, AnyArray, AnyArray]]:
        """Yield, for each block, its rows, its features and the scores of some problems, or all.

        Features are rotated or the weights are rotated back, whichever is cheaper; scores have the
        shape (n_problems, n_outputs, m).
        """
        shape, weight = unknowns.shape[:2], unknowns[..., :-1]
        index = np.arange(len(unknowns)) if index is None else index
        blocks = self.rows.rotated_blocks() if self._rows_are_rotated else None
        if blocks is None:
            weight, blocks = self.out_of_bases(weight, index), self.rows.blocks()
        weight = weight.reshape(-1, weight.shape[-1])
        for rows, block in blocks:
            scores = (weight @ block.T).reshape(*shape, -1)
            scores += unknowns[..., -1:]
            yield rows, block, scores

    def raw_heads(self, unknowns: AnyArray) -> tuple[FloatArray, FloatArray]:
        """Return weights and biases for the features as they were given, not standardised.

        W x + b with x = (features - mean) / scale is (W / scale) features + b - (W / scale) mean.

        Args:
            unknowns: Unknowns of all problems.

        Returns:
            Weights of shape (n_problems, n_outputs, n_features) and biases of shape (n_problems,
            n_outputs).
        """
        every = np.arange(len(unknowns))
        weight = self.out_of_bases(unknowns[..., :-1].astype(np.float64), every)
        weight /= self.rows.scale
        return weight, unknowns[..., -1] - weight @ self.rows.mean
