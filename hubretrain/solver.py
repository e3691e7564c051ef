"""Many linear heads at once: the numerics.

A *problem* p is one head left to fit: its own row weights and its own l2, the features shared::

    F_p(W, b) = sum_i  omega_pi * loss(W x_i + b, y_i)  +  l2_p / 2 * ||W||^2
    x_i       = (features_i - mean) / scale             the bias b is not penalised
    omega_pi  = (weight of row i) * (weight of class y_i in p) * (0 where p leaves row i out)

``loss`` is the softmax cross entropy of all classes, or the logistic loss of one class against
the rest (then each class is a problem of its own). A fold is nothing but row weights of zero, so
all folds and class weights are served by one matrix product per block of rows.

With ``cov = mean_i x_i x_i' = Q diag(lambda) Q'`` we solve for ``V = W Q``, where the Hessian is
nearly diagonal: with the class curvature ``M = sum_i omega_i (diag(p_i) - p_i p_i') = U diag(mu)
U'`` taken apart from the rows (both in expectation and for independent p_i and x_i),

    H  ~  M (x) diag(lambda) + l2 I   =  (U (x) I) diag(mu_k lambda_j + l2) (U (x) I)'

Böhning (1992, Ann. Inst. Stat. Math. 44, 197-200, doi:10.1007/BF00048682) bounds M from above by
``sum_i omega_i / 2 (I - 11'/K)``; the M of the current probabilities needs less than half of the
bound's iterations on unbalanced classes, and U matters as much as mu. This is the starting
matrix of L-BFGS (Nocedal & Wright 2006, Numerical Optimization, algorithm 7.4), run for all
problems in step. Rather than search along a line, each problem takes the whole step where that
lowers its objective and halves it where not. Along a path of falling l2,

    start(l2)   from the last three solutions, extrapolated as a parabola in log l2
    pairs       (s, y) of the last l2 stay true of the loss:  y += (l2 - l2_before) s

Q is any orthonormal matrix as far as the solution is concerned, so it may come from a sample of
the rows. Rows are never rotated, the heads are: it costs d/n of a pass and needs no second copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hubretrain.rows import Rows

Array = npt.NDArray[Any]
Kind = Literal["softmax", "logistic"]

N_PAIRS = 20  # of L-BFGS; 10 need a third more iterations at weak l2
LOWEST_EXPONENT = -60  # exp(-60) is 1e-26; below -87 float32 turns denormal and slow
MOST_HALVINGS = 30


@dataclass(frozen=True)
class Problems:
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

    def take(self, which: Array) -> Problems:
        """Some of the problems, by index."""
        parts = self.class_weight[which], self.fold[which], self.positive[which]
        return Problems(self.kind, self.labels, self.row_weight, self.row_fold, *parts)

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
        """Loss and curvature on a block of rows; ``scores`` becomes their derivative.

        Args:
            rows: Which.
            scores: float (n_problems, n_outputs, m).
            curvature: Whether M (see the top of this file) is wanted.

        Returns:
            float64 (n_problems,), and float64 (n_problems, n_outputs, n_outputs) or None.
        """
        labels = self.labels[rows]
        weight = self.class_weight[:, labels] * self.row_weight[rows]
        weight *= self.row_fold[rows] != self.fold[:, None]
        if self.kind == "logistic":
            return self._logistic(scores, labels, weight, curvature)
        return self._softmax(scores, labels, weight, curvature)

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


@dataclass(frozen=True)
class Point:
    """The objective at one place: value float64 (P,), gradient (P, k, rank + 1), curvature."""

    value: Array
    gradient: Array
    curvature: Array | None


class Objective:
    """The objectives of some problems, in the eigenbasis.

    A place V is an array (n_problems, n_outputs, rank + 1): weights, and the bias in the last
    column.
    """

    def __init__(self, rows: Rows, problems: Problems) -> None:
        self.rows, self.problems = rows, problems
        self.basis, self.spectrum = rows.eigenbasis()
        self.rank = self.basis.shape[1]

    def at(self, place: Array, l2: float, which: Array, *, curvature: bool = False) -> Point:
        """Value and gradient of the problems ``which``, whose places these are: one pass."""
        problems = self.problems.take(which)
        shape = place.shape[:2]
        n_columns, n_outputs = shape[0] * shape[1], shape[1]
        value = np.zeros(len(which))
        slope = np.zeros((n_columns, self.rows.n_features))
        bias = np.zeros(shape)
        bend = np.zeros((*shape, n_outputs)) if curvature else None
        for rows, block, scores in self.scores(place):
            loss, block_bend = problems.block(rows, scores, curvature)
            value += loss
            if bend is not None:
                bend += block_bend
            slope += scores.reshape(n_columns, -1) @ block
            bias += scores.sum(axis=2, dtype=np.float64)
        gradient = np.empty_like(place)
        gradient[..., :-1] = (slope.astype(place.dtype) @ self.basis).reshape(*shape, self.rank)
        gradient[..., :-1] += l2 * place[..., :-1]
        gradient[..., -1] = bias
        penalty = np.einsum("pkj,pkj->p", place[..., :-1], place[..., :-1], dtype=np.float64)
        return Point(value + l2 / 2 * penalty, gradient, bend)

    def scores(self, place: Array) -> Iterator[tuple[slice, Array, Array]]:
        """For each block: its rows, features, and scores (n_problems, n_outputs, m)."""
        shape = place.shape[:2]
        weight = place[..., :-1].reshape(-1, self.rank) @ self.basis.T
        for rows, block in self.rows.blocks():
            scores = (weight @ block.T).reshape(*shape, -1)
            scores += place[..., -1:]
            yield rows, block, scores

    def raw(self, place: Array) -> tuple[Array, Array]:
        """Weight and bias on the features as they came: float64 (P, k, n_features), (P, k)."""
        weight = place[..., :-1].astype(np.float64) @ self.basis.T.astype(np.float64)
        weight /= self.rows.scale
        return weight, place[..., -1] - weight @ self.rows.mean


@dataclass(frozen=True)
class Solution:
    """Where the problems ended at one l2.

    Attributes:
        place: (n_problems, n_outputs, rank + 1); NaN for a problem that was left out.
        objective: float64 (n_problems,).
        iterations: int64 (n_problems,), passes over the rows.
        converged: bool (n_problems,).
    """

    place: Array
    objective: Array
    iterations: Array
    converged: Array


class Path:
    """Follows the solutions of all problems from one l2 to the next.

    Args:
        objective: What to minimise.
        tol: A problem is done when the decrease that the quadratic model promises has been
            below ``tol`` times its objective twice in a row. What is really left to gain is
            then within about 5 times that on features of real images.
        max_iter: Passes over the rows at one l2, at most.
        pace: Called after each pass with the number of problems that it served.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        tol: float,
        max_iter: int,
        pace: Callable[[int], None] | None = None,
    ) -> None:
        self._objective, self._max_iter, self._pace = objective, max_iter, pace
        self._tol = max(tol, 4 * float(np.finfo(objective.rows.dtype).eps))
        bias, self._null = objective.problems.priors()
        self._place = np.zeros((*bias.shape, objective.rank + 1), objective.rows.dtype)
        self._place[..., -1] = bias
        self._before: list[tuple[float, Array]] = []
        self._pairs = _Pairs(self._place)

    def advance(self, l2: float, alive: Array, start: Array | None = None) -> Solution:
        """Solves the problems ``alive`` (bool) at ``l2``; from ``start`` where that is given."""
        if start is not None:
            self._place = start.astype(self._place.dtype)
        elif self._before:
            self._place = _extrapolated(self._before, l2).astype(self._place.dtype)
        if self._before:
            self._pairs.change_l2(l2 - self._before[-1][0])
        solution = self._minimise(l2, alive)
        self._before = [*self._before[-2:], (l2, solution.place)]
        return solution

    def _minimise(self, l2: float, alive: Array) -> Solution:
        objective, pairs = self._objective, self._pairs
        place, active = self._place.copy(), np.flatnonzero(alive)
        n_problems, slack = len(alive), 1 + 2 * np.finfo(place.dtype).eps
        here = objective.at(place[active], l2, active, curvature=True)
        inverse = Preconditioner(here, objective.spectrum, l2, self._null[active])
        value, gradient = np.full(n_problems, np.inf), np.zeros_like(place)
        value[active], gradient[active] = here.value, here.gradient
        iterations, converged = np.where(alive, 1, 0), np.zeros(n_problems, dtype=bool)
        length, quiet = np.ones(n_problems), np.zeros(n_problems, dtype=np.int64)
        while len(active) and iterations.max() < self._max_iter:
            step, promised = pairs.direction(gradient[active], active, inverse)
            floor = self._tol * np.maximum(value[active], NEGLIGIBLE_LOSS * self._null[active])
            quiet[active] = np.where(promised <= floor, quiet[active] + 1, 0)
            done = quiet[active] >= 2
            done |= ...
