"""L-BFGS for many problems in step: its starting matrix and its history of steps.

Nocedal and Wright (2006), Numerical Optimization, 2nd edition, section 7.2.
"""

from __future__ import annotations

import numpy as np

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.heads.objective import Evaluation

N_PAIRS = 20  # steps remembered per problem; 10 need a third more iterations at weak l2


class Preconditioner:
    """The inverse of the Hessian's estimate at the top of `hubretrain.heads.solver`.

    The estimate is M (x) diag(lambda) + l2 I with M = U diag(mu) U'. It is diagonal once U is
    applied: 1 / (mu_k lambda_j + l2) for the weights, 1 / mu_k for the bias, whose feature is the
    constant 1 and which is not penalised.

    Args:
        evaluation: The problems `active`, with their M.
        spectrum: lambda of these problems, float64 array of shape (n_active, rank).
        l2: Penalty of the weights.
        active: bool array of shape (n_problems,), the problems to be solved.
        null_loss: Loss of the best constant of each problem, float64 array of shape (n_problems,).
    """

    def __init__(
        self,
        evaluation: Evaluation,
        spectrum: FloatArray,
        l2: float,
        active: BoolArray,
        null_loss: FloatArray,
    ) -> None:
        assert evaluation.curvature is not None
        dtype, n_outputs = evaluation.gradient.dtype, evaluation.curvature.shape[1]
        mu, rotation = np.linalg.eigh(evaluation.curvature)
        if n_outputs > 1:
            # The same score for all classes changes nothing: the smallest mu is 0. The gradient
            # has no part along it, so any other number will do.
            mu[:, 0] = mu[:, 1]
        # Floors, for problems that are solved perfectly (mu) and redundant features (lambda).
        mu = np.maximum(mu, 1e-6 * null_loss[active, None])
        largest = np.maximum(spectrum.max(axis=1, keepdims=True), 1e-30)
        spread = np.maximum(spectrum, 1e-7 * largest)[:, None]
        diagonal = np.concatenate([mu[:, :, None] * spread + l2, mu[:, :, None]], axis=2)
        self._rotation = np.zeros((len(active), n_outputs, n_outputs), dtype)
        self._inverse = np.zeros((len(active), *diagonal.shape[1:]), dtype)
        self._rotation[active], self._inverse[active] = rotation, 1 / diagonal

    def __call__(self, gradient: AnyArray, index: IntArray) -> AnyArray:
        """Return the preconditioned gradient of some problems."""
        rotation = self._rotation[index]
        scaled = np.matmul(rotation.swapaxes(1, 2), gradient) * self._inverse[index]
        return np.matmul(rotation, scaled)


class StepHistory:
    """The pairs (s, y) of each problem: its last steps, and the change of its gradient by each.

    Args:
        unknowns: Any unknowns of all problems, for shape and dtype.
    """

    def __init__(self, unknowns: AnyArray) -> None:
        self._steps = np.zeros((N_PAIRS, *unknowns.shape), unknowns.dtype)
        self._changes = np.zeros_like(self._steps)
        self._count = np.zeros(len(unknowns), dtype=np.int64)

    def add(self, index: IntArray, step: AnyArray, change: AnyArray) -> None:
        """Keep a pair for each of some problems in the place of its oldest one.

        Pairs with s'y <= 0, which rounding may cause near the minimum, would make the matrix
        indefinite and are dropped.
        """
        is_convex = dot(step, change) > 0
        index = index[is_convex]
        slot = self._count[index] % N_PAIRS
        self._steps[slot, index], self._changes[slot, index] = step[is_convex], change[is_convex]
        self._count[index] += 1

    def change_l2(self, increase: float) -> None:
        """Turn the pairs into those of an objective with another l2.

        The penalty's gradient is l2 times the weights, so y grows by `increase` times s.
        """
        self._changes[..., :-1] += increase * self._steps[..., :-1]

    def direction(
        self, gradient: AnyArray, index: IntArray, precondition: Preconditioner
    ) -> tuple[AnyArray, FloatArray]:
        """Return the step to subtract and the decrease that the quadratic model promises.

        This is the two-loop recursion, algorithm 7.4 of Nocedal and Wright, with their q, r, alpha
        and beta. A slot that is not filled yet holds zeros and so has no effect. The starting
        matrix is scaled by gamma = s'y / y'H0 y of the latest pair, equation 7.20 for a
        preconditioner H0, so that it fits the Hessian along the latest step.
        """
        q, n_pairs = gradient.copy(), min(N_PAIRS, int(self._count[index].max(initial=0)))
        alphas = []
        for age in range(n_pairs):
            s, y = self._pair(age, index)
            s_dot_y = dot(s, y)
            alpha = _quotient(dot(s, q), s_dot_y, np.zeros_like(s_dot_y))
            q -= alpha[:, None, None] * y
            alphas.append((alpha, s_dot_y))
        r = precondition(q, index)
        if n_pairs:
            s, y = self._pair(0, index)
            s_dot_y = alphas[0][1]
            gamma = _quotient(s_dot_y, dot(y, precondition(y, index)), np.ones_like(s_dot_y))
            r *= gamma[:, None, None]
        for age in reversed(range(n_pairs)):
            s, y = self._pair(age, index)
            alpha, s_dot_y = alphas[age]
            beta = _quotient(dot(y, r), s_dot_y, np.zeros_like(s_dot_y))
            r += (alpha - beta)[:, None, None] * s
        # The model g'd - d'Bd / 2 at its minimum d = B^-1 g promises g'd / 2.
        return r, dot(gradient, r).astype(np.float64) / 2

    def _pair(self, age: int, index: IntArray) -> tuple[AnyArray, AnyArray]:
        slot = (self._count[index] - 1 - age) % N_PAIRS
        return self._steps[slot, index], self._changes[slot, index]


def _quotient(numerator: AnyArray, denominator: AnyArray, otherwise: AnyArray) -> AnyArray:
    """Return the quotient where the denominator is above 0; `otherwise`, overwritten, elsewhere."""
    return np.divide(numerator, denominator, out=otherwise, where=denominator > 0)


def dot(left: AnyArray, right: AnyArray) -> AnyArray:
    """Return the inner product of each problem's arrays, of shape (n_problems,)."""
    return np.einsum("pkj,pkj->p", left, right)
