"""The solver: many linear heads minimised in step, along a path of falling l2.

A *problem* p is one head to fit: its own row weights and its own l2, the features shared::

    F_p(W, b) = sum_i  omega_pi * loss(W x_i + b, y_i)  +  l2_p / 2 * ||W||^2               (1)
    x_i       = (features_i - mean) / scale             the bias b is not penalised

`hubretrain.heads.losses` defines loss and omega. A fold is nothing but row weights of 0, so all
folds and class weights are served by one matrix product per block of rows.

**Why the eigenbasis.** With `cov = mean_i x_i x_i' = Q diag(lambda) Q'` we solve for `V = W Q`,
where the Hessian is nearly diagonal. Exactly, it is `sum_i omega_i S_i (x) x_i x_i' + l2 I` with
`S_i = diag(s_i) - s_i s_i'` for the probabilities s_i. If S_i and x_i are independent, the
expectation of the product is the product of the expectations, and with the class curvature
`M = sum_i omega_i S_i = U diag(mu) U'`::

    H  ~  M (x) diag(lambda) + l2 I  =  (U (x) I) diag(mu_k lambda_j + l2) (U (x) I)'       (2)

Böhning (1992, Ann. Inst. Stat. Math. 44, 197-200, doi:10.1007/BF00048682) bounds M from above by
`sum_i omega_i / 2 (I - 11'/K)`; M at the current probabilities needs less than half of the bound's
iterations on unbalanced classes, and U matters as much as mu. The inverse of (2) is the starting
matrix of L-BFGS (`hubretrain.heads.lbfgs`). Small problems take Newton's step instead.

Q is any orthonormal matrix as far as the solution is concerned, so it may come from a sample of
the rows. With many rows the heads are rotated, which costs d/n of a pass and needs no second copy;
with few rows, a copy of the rows.

**Why no line search.** All problems share one pass over the rows, so a trial step takes a pass for
all of them. Each problem takes the whole step where that does not raise its objective, and tries
half of it on the next pass where it does. Newton-like steps near the minimum are nearly always
taken whole, so a Wolfe search would cost passes and gain nothing.

**Along the path** of falling l2, a solution is started from the last three, extrapolated as a
parabola in log l2, and the pairs (s, y) of the last l2 remain valid after
`y += (l2 - l2_before) s`, because only the penalty's gradient has changed.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.heads.lbfgs import Preconditioner, StepHistory
from hubretrain.heads.objective import Objective
from hubretrain.parallel import one_blas_thread

# Unknowns of a problem up to which Newton's step is used. Its Hessian costs about a quarter as many
# passes as there are unknowns.
MOST_NEWTON_UNKNOWNS = 128
SHORTEST_STEP = 0.5**30  # share of the whole step; a problem that needs a shorter one is given up
# Numbers in a pass (rows x unknowns) below which BLAS's threads cost more than they gain.
FEW_PRODUCTS = 1e7
# An objective below this share of the best constant's loss counts as this share, so that separable
# classes with l2 = 0, whose objective falls towards 0 for ever, converge.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class SolverOptions:
    """When the solver stops.

    Attributes:
        tol: A problem has converged once the decrease that the quadratic model promises has been
            below `tol` times its objective on two iterations in a row. On features of images, the
            objective is then within 3 times that of its minimum at strong l2, 10 times at weak.
        max_iter: Maximum number of passes over the rows at each l2.
    """

    tol: float = 3e-7
    max_iter: int = 500


@dataclass(frozen=True)
class Solution:
    """The end points of all problems at one l2.

    Attributes:
        unknowns: Array of shape (n_problems, n_outputs, rank + 1); NaN for a problem that was left
            out.
        objective: float64 array of shape (n_problems,), in nats.
        iterations: Passes over the rows, int64 array of shape (n_problems,).
        converged: bool array of shape (n_problems,).
    """

    unknowns: AnyArray
    objective: FloatArray
    iterations: IntArray
    converged: BoolArray


class PathSolver:
    """Follows the solutions of all problems from one l2 to the next.

    Args:
        objective: Objectives to minimise.
        options: When to stop.
    """

    def __init__(self, objective: Objective, options: SolverOptions) -> None:
        self._objective, self._max_iter = objective, options.max_iter
        # Below a hundredth of the precision of its numbers no decrease can be told from rounding.
        self._tol = max(options.tol, 0.01 * float(np.finfo(objective.rows.dtype).eps))
        bias, self._null_loss = objective.losses.priors()
        self._start = np.zeros((*bias.shape, objective.rank + 1), objective.rows.dtype)
        self._start[..., -1] = bias
        self._solved: list[tuple[float, AnyArray]] = []  # the last l2, each with its unknowns
        self._history = StepHistory(self._start)
        self._is_small = objective.rows.n_rows * self._start.size < FEW_PRODUCTS

    def advance(self, l2: float, active: BoolArray, start: AnyArray | None = None) -> Solution:
        """Solve some problems at the next l2.

        Args:
            l2: Penalty of the weights.
            active: bool array of shape (n_problems,), the problems to solve.
            start: Unknowns to start from; None: extrapolate the last solutions.
        """
        if start is not None:
            self._start = start.astype(self._start.dtype)
        elif self._solved:
            self._start = _extrapolated(self._solved, l2).astype(self._start.dtype)
        if self._solved:
            self._history.change_l2(l2 - self._solved[-1][0])
        with one_blas_thread if self._is_small else contextlib.nullcontext():
            solution = self._minimise(l2, active)
        self._solved = [*self._solved[-2:], (l2, solution.unknowns)]
        return solution

    def _minimise(self, l2: float, active: BoolArray) -> Solution:
        """Iterate until every problem has converged, failed or used up its passes.

        `index` are the problems still iterating; arrays over them are rows of the arrays over all.
        """
        unknowns, index = self._start.copy(), np.flatnonzero(active)
        first = self._objective.evaluate(unknowns[index], l2, index, curvature=True)
        spectrum = self._objective.spectrum[index]
        precondition = Preconditioner(first, spectrum, l2, active, self._null_loss)
        value, gradient = np.full(len(active), np.nan), np.zeros_like(unknowns)
        value[index], gradient[index] = first.value, first.gradient
        passes, converged = np.where(active, 1, 0), np.zeros(len(active), dtype=bool)
        length = np.ones(len(active), unknowns.dtype)
        n_quiet = np.zeros(len(active), dtype=np.int64)  # iterations in a row that promised nothing
        # A sum over the rows is exact to rounding only, so an increase of that size is no increase.
        rounding = 1 + 2 * float(np.finfo(unknowns.dtype).eps)
        for _ in range(1, self._max_iter):
            if unknowns[0].size <= MOST_NEWTON_UNKNOWNS:
                step, promised = self._newton_step(unknowns, gradient, l2, index)
            else:
                step, promised = self._history.direction(gradient[index], index, precondition)
            enough = self._tol * np.maximum(value[index], NEGLIGIBLE * self._null_loss[index])
            n_quiet[index] = np.where(promised <= enough, n_quiet[index] + 1, 0)
            converged[index] = n_quiet[index] >= 2
            goes_on = ~converged[index] & (length[index] >= SHORTEST_STEP)
            index, step = index[goes_on], step[goes_on]
            if not len(index):
                break
            trial = unknowns[index] - length[index, None, None] * step
            trial_evaluation = self._objective.evaluate(trial, l2, index)
            passes[index] += 1
            is_lower = trial_evaluation.value <= value[index] * rounding
            length[index] = np.where(is_lower, 1, length[index] / 2)
            moved, trial = index[is_lower], trial[is_lower]
            trial_gradient = trial_evaluation.gradient[is_lower]
            self._history.add(moved, trial - unknowns[moved], trial_gradient - gradient[moved])
            unknowns[moved], gradient[moved] = trial, trial_gradient
            value[moved] = trial_evaluation.value[is_lower]
        unknowns[~active] = np.nan
        return Solution(unknowns, value, passes, converged)

    def _newton_step(
        self, unknowns: AnyArray, gradient: AnyArray, l2: float, index: IntArray
    ) -> tuple[AnyArray, FloatArray]:
        """Return Newton's step of small problems, to subtract, and the decrease that it promises.

        With H d = g the quadratic model promises g'd / 2.
        """
        hessian = self._objective.hessian(unknowns[index], l2, index)
        size = hessian.shape[1]
        # Where the classes are separated and l2 is 0, the Hessian fades to 0; this keeps steps
        # finite.
        floor = 1e-10 * np.trace(hessian, axis1=1, axis2=2) / size + 1e-10 * self._null_loss[index]
        hessian[:, np.arange(size), np.arange(size)] += floor[:, None]
        flat = gradient[index].reshape(len(index), size, 1).astype(np.float64)
        step = np.linalg.solve(hessian, flat)
        promised = np.einsum("pij,pij->p", step, flat) / 2
        return step.reshape(gradient[index].shape).astype(unknowns.dtype), promised


def _extrapolated(solved: list[tuple[float, AnyArray]], l2: float) -> AnyArray:
    """Return the start at the next l2: Lagrange's polynomial in log l2 through the last solutions.

    If the next l2 is much further away than the last ones are apart, a polynomial would overshoot,
    and the start is the last solution.
    """
    logs = [np.log(max(solved_l2, 1e-12)) for solved_l2, _ in solved]
    log_l2 = np.log(max(l2, 1e-12))
    gaps = np.abs(np.diff([*logs, log_l2]))
    if gaps[-1] > 1.5 * gaps[:-1].min(initial=0):
        return solved[-1][1]
    start = np.zeros_like(solved[-1][1], dtype=np.float64)
    for i, (_, unknowns) in enumerate(solved):
        others = [log for j, log in enumerate(logs) if j != i]
        start += np.prod([(log_l2 - log) / (logs[i] - log) for log in others]) * unknowns
    return start
