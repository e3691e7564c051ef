"""Many linear heads at once: the numerics.

A *problem* p is one head left to fit: its own row weights and its own l2, the features shared::

    F_p(W, b) = sum_i  omega_pi * loss(W x_i + b, y_i)  +  l2_p / 2 * ||W||^2
    x_i       = (features_i - mean) / scale             the bias b is not penalised
    omega_pi  = (weight of row i) * (weight of class y_i in p) * (0 where p leaves row i out)

`loss` is the softmax cross entropy of all classes, or the logistic loss of one class against
the rest (then each class is a problem of its own). A fold is nothing but row weights of zero, so
all folds and class weights are served by one matrix product per block of rows.

With `cov = mean_i x_i x_i' = Q diag(lambda) Q'` we solve for `V = W Q`, where the Hessian is
nearly diagonal: with the class curvature `M = sum_i omega_i (diag(p_i) - p_i p_i') = U diag(mu)
U'` taken apart from the rows (both in expectation and for independent p_i and x_i),

    H  ~  M (x) diag(lambda) + l2 I   =  (U (x) I) diag(mu_k lambda_j + l2) (U (x) I)'

Böhning (1992, Ann. Inst. Stat. Math. 44, 197-200, doi:10.1007/BF00048682) bounds M from above by
`sum_i omega_i / 2 (I - 11'/K)`; the M of the current probabilities needs less than half of the
bound's iterations on unbalanced classes, and U matters as much as mu. This is the starting
matrix of L-BFGS (Nocedal & Wright 2006, Numerical Optimization, algorithm 7.4), run for all
problems in step. Rather than search along a line, each problem takes the whole step where that
lowers its objective and halves it where not. Along a path of falling l2,

    start(l2)   from the last three solutions, extrapolated as a parabola in log l2
    pairs       (s, y) of the last l2 stay true of the loss:  y += (l2 - l2_before) s

Q is any orthonormal matrix as far as the solution is concerned, so it may come from a sample of
the rows. Of many rows the heads are turned, which costs d/n of a pass and needs no second copy; of
few rows, a copy of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.losses import HeadLosses

Array = npt.NDArray[Any]

N_PAIRS = 20  # of L-BFGS; 10 need a third more iterations at weak l2
SMALL = 128  # unknowns of a problem; Newton's exact Hessian costs about so many passes / 4
SHORTEST = 0.5**30  # of a step
FEW_PRODUCTS = 1e7  # of numbers in a pass: threads of BLAS would cost more than they bring
NEGLIGIBLE = 1e-3  # an objective below this share of the best constant's counts as this share


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

    def __init__(
        self, rows: FeatureBlocks, problems: HeadLosses, basis: Array, spectrum: Array
    ) -> None:
        self.rows, self.problems = rows, problems
        self.basis, self.spectrum, self.rank = basis, spectrum, basis.shape[1]
        self._are_turned = rows.turned_blocks() is not None

    def at(self, place: Array, l2: float, which: Array, *, curvature: bool = False) -> Point:
        """Value and gradient of the problems `which`, whose places these are: one pass."""
        problems = self.problems.take(which)
        shape = place.shape[:2]
        n_columns, n_outputs = shape[0] * shape[1], shape[1]
        value = np.zeros(len(which))
        slope = np.zeros((n_columns, self.rank if self._are_turned else self.rows.n_features))
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
        slope = slope.astype(place.dtype)
        slope = slope if self._are_turned else slope @ self.basis
        gradient[..., :-1] = slope.reshape(*shape, self.rank)
        gradient[..., :-1] += l2 * place[..., :-1]
        gradient[..., -1] = bias
        penalty = np.einsum("pkj,pkj->p", place[..., :-1], place[..., :-1], dtype=np.float64)
        return Point(value + l2 / 2 * penalty, gradient, bend)

    def hessian(self, place: Array, l2: float, which: Array) -> Array:
        """The exact Hessian of small problems: (P, size, size), size = n_outputs * (rank + 1)."""
        problems = self.problems.take(which)
        n_problems, n_outputs, width = place.shape
        size = n_outputs * width
        found: Array = np.zeros((n_problems, n_outputs, width, n_outputs, width))
        for rows, block, scores in self.scores(place):
            turned = block if self._are_turned else block @ self.basis
            turned = np.append(turned, np.ones((len(block), 1), block.dtype), axis=1)
            bends = problems.bends(rows, scores)
            for p, k, other in np.ndindex(n_problems, n_outputs, n_outputs):
                if k <= other:
                    found[p, k, :, other] += (turned.T * bends[p, k, other]) @ turned
                    found[p, other, :, k] = found[p, k, :, other].T
        found = found.reshape(n_problems, size, size)
        found[:, np.arange(size), np.arange(size)] += np.tile(
            np.append(np.full(self.rank, l2), 0), n_outputs
        )
        if n_outputs > 1:  # the same bias for all classes changes nothing: a bend of 0
            bias = np.arange(n_outputs) * width + self.rank
            lift = np.trace(found, axis1=1, axis2=2) / size / n_outputs
            found[np.ix_(np.arange(n_problems), bias, bias)] += lift[:, None, None]
        return found

    def scores(self, place: Array) -> Iterator[tuple[slice, Array, Array]]:
        """For each block: its rows, features (perhaps turned), scores (P, n_outputs, m)."""
        shape = place.shape[:2]
        weight = place[..., :-1].reshape(-1, self.rank)
        blocks = self.rows.turned_blocks()
        if blocks is None:
            weight, blocks = weight @ self.basis.T, self.rows.blocks()
        for rows, block in blocks:
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
            below `tol` times its objective twice in a row. On features of images, what is
            really left to gain is then within 3 times that at strong l2, 10 times at weak.
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
        self._tol = max(tol, 0.01 * float(np.finfo(objective.rows.dtype).eps))
        bias, self._null = objective.problems.priors()
        self._place = np.zeros((*bias.shape, objective.rank + 1), objective.rows.dtype)
        self._place[..., -1] = bias
        self._before: list[tuple[float, Array]] = []
        self._pairs = _Pairs(self._place)
        self._is_small = objective.rows.n_rows * self._place.size < FEW_PRODUCTS

    def advance(self, l2: float, alive: Array, start: Array | None = None) -> Solution:
        """Solves the problems `alive` (bool) at `l2`; from `start` where that is given."""
        if start is not None:
            self._place = start.astype(self._place.dtype)
        elif self._before:
            self._place = _extrapolated(self._before, l2).astype(self._place.dtype)
        if self._before:
            self._pairs.change_l2(l2 - self._before[-1][0])
        with threadpool_limits(1 if self._is_small else None):
            solution = self._minimise(l2, alive)
        self._before = [*self._before[-2:], (l2, solution.place)]
        return solution

    def _minimise(self, l2: float, alive: Array) -> Solution:
        place, active = self._place.copy(), np.flatnonzero(alive)
        here = self._objective.at(place[active], l2, active, curvature=True)
        inverse = _Preconditioner(here, self._objective.spectrum, l2, alive, self._null)
        value, gradient = np.full(len(alive), np.nan), np.zeros_like(place)
        value[active], gradient[active] = here.value, here.gradient
        passes, converged = np.where(alive, 1, 0), np.zeros(len(alive), dtype=bool)
        length, quiet = np.ones(len(alive), place.dtype), np.zeros(len(alive), dtype=np.int64)
        noise = 1 + 2 * float(np.finfo(place.dtype).eps)
        for _ in range(1, self._max_iter):
            if place[0].size <= SMALL:
                step, promised = self._newton(place, gradient, l2, active)
            else:
                step, promised = self._pairs.direction(gradient[active], active, inverse)
            enough = self._tol * np.maximum(value[active], NEGLIGIBLE * self._null[active])
            quiet[active] = np.where(promised <= enough, quiet[active] + 1, 0)
            converged[active] = quiet[active] >= 2
            go_on = ~converged[active] & (length[active] >= SHORTEST)
            active, step = active[go_on], step[go_on]
            if not len(active):
                break
            trial = place[active] - length[active, None, None] * step
            there = self._objective.at(trial, l2, active)
            passes[active] += 1
            if self._pace:
                self._pace(len(active))
            lower = there.value <= value[active] * noise
            length[active] = np.where(lower, 1, length[active] / 2)
            good = active[lower]
            moved, turned = trial[lower] - place[good], there.gradient[lower] - gradient[good]
            self._pairs.add(good, moved, turned)
            place[good], gradient[good] = trial[lower], there.gradient[lower]
            value[good] = there.value[lower]
        place[~alive] = np.nan
        return Solution(place, value, passes, converged)

    def _newton(
        self, place: Array, gradient: Array, l2: float, active: Array
    ) -> tuple[Array, Array]:
        """Newton's step of small problems, to subtract, and the decrease that it promises."""
        hessian = self._objective.hessian(place[active], l2, active)
        size = hessian.shape[1]
        # Where the rows are separated and l2 is 0, the Hessian fades; this keeps steps finite.
        floor = 1e-10 * np.trace(hessian, axis1=1, axis2=2) / size + 1e-10 * self._null[active]
        hessian[:, np.arange(size), np.arange(size)] += floor[:, None]
        flat = gradient[active].reshape(len(active), size, 1).astype(np.float64)
        step = np.linalg.solve(hessian, flat)
        promised = np.einsum("pij,pij->p", step, flat) / 2
        return step.reshape(gradient[active].shape).astype(place.dtype), promised


class _Preconditioner:
    """The Hessian's estimate from the top of this file, inverted."""

    def __init__(self, point: Point, spectrum: Array, l2: float, alive: Array, null: Array) -> None:
        assert point.curvature is not None
        dtype, n_outputs = point.gradient.dtype, point.curvature.shape[1]
        bend, turn = np.linalg.eigh(point.curvature)
        if n_outputs > 1:  # the same score for all classes changes nothing: a bend of 0
            bend[:, 0] = bend[:, 1]
        bend = np.maximum(bend, 1e-6 * null[alive, None])
        spread = np.maximum(spectrum, 1e-7 * max(float(spectrum.max()), 1e-30))
        stiffness = bend[:, :, None] * np.append(spread, 1)
        stiffness[..., :-1] += l2
        self._turn = np.zeros((len(alive), n_outputs, n_outputs), dtype)
        self._softness = np.zeros((len(alive), n_outputs, len(spread) + 1), dtype)
        self._turn[alive], self._softness[alive] = turn, 1 / stiffness

    def __call__(self, gradient: Array, which: Array) -> Array:
        """The preconditioned gradient of the problems `which`."""
        turn = self._turn[which]
        turned = np.matmul(turn.swapaxes(1, 2), gradient) * self._softness[which]
        return np.matmul(turn, turned)


class _Pairs:
    """The last steps of each problem, and what each did to its gradient."""

    def __init__(self, place: Array) -> None:
        self._steps = np.zeros((N_PAIRS, *place.shape), place.dtype)
        self._bends = np.zeros_like(self._steps)
        self._count = np.zeros(len(place), dtype=np.int64)

    def add(self, which: Array, step: Array, bend: Array) -> None:
        """Keeps a pair of each of the problems `which`, forgetting its oldest."""
        upward = _dot(step, bend) > 0
        which = which[upward]
        slot = self._count[which] % N_PAIRS
        self._steps[slot, which], self._bends[slot, which] = step[upward], bend[upward]
        self._count[which] += 1

    def change_l2(self, change: float) -> None:
        """Makes the pairs those of an objective with another l2."""
        self._bends[..., :-1] += change * self._steps[..., :-1]

    def direction(
        self, gradient: Array, which: Array, inverse: Callable[[Array, Array], Array]
    ) -> tuple[Array, Array]:
        """What to subtract (Nocedal & Wright, algorithm 7.4), and the decrease it promises.

        A slot not yet filled holds zeros and so has no effect.
        """
        ask, used = gradient.copy(), min(N_PAIRS, int(self._count[which].max(initial=0)))
        shares = []
        for age in range(used):
            step, bend = self._pair(age, which)
            inner = _dot(step, bend)
            share = np.divide(_dot(step, ask), inner, out=np.zeros_like(inner), where=inner > 0)
            ask -= share[:, None, None] * bend
            shares.append((share, inner))
        answer = inverse(ask, which)
        if used:
            step, bend = self._pair(0, which)
            stretch, inner = _dot(bend, inverse(bend, which)), shares[0][1]
            gamma = np.divide(inner, stretch, out=np.ones_like(inner), where=stretch > 0)
            answer *= gamma[:, None, None]
        for age in reversed(range(used)):
            step, bend = self._pair(age, which)
            share, inner = shares[age]
            back = np.divide(_dot(bend, answer), inner, out=np.zeros_like(inner), where=inner > 0)
            answer += (share - back)[:, None, None] * step
        return answer, _dot(gradient, answer).astype(np.float64) / 2

    def _pair(self, age: int, which: Array) -> tuple[Array, Array]:
        slot = (self._count[which] - 1 - age) % N_PAIRS
        return self._steps[slot, which], self._bends[slot, which]


def _dot(left: Array, right: Array) -> Array:
    return np.einsum("pkj,pkj->p", left, right)


def _extrapolated(before: list[tuple[float, Array]], l2: float) -> Array:
    """The next place: Lagrange's polynomial through the last ones, in log l2.

    Where the next l2 is much further than the last ones were apart, just the last place.
    """
    known = [np.log(max(one, 1e-12)) for one, _ in before]
    here = np.log(max(l2, 1e-12))
    gaps = np.abs(np.diff([*known, here]))
    if gaps[-1] > 1.5 * gaps[:-1].min(initial=0):
        return before[-1][1]
    place = np.zeros_like(before[-1][1], dtype=np.float64)
    for i, (_, solution) in enumerate(before):
        others = [k for j, k in enumerate(known) if j != i]
        place += np.prod([(here - k) / (known[i] - k) for k in others]) * solution
    return place
