"""How far two float32 computations of one network may differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

EPSILON = float(np.finfo(np.float32).eps)
CERTAINTY = 4.0


def rounding(variables: Iterable[Any]) -> float:
    """Return how much two float32 computations may differ, relative to the largest feature.

    A sum of k products is off by at most c * sqrt(k) * u of the size of its terms, in whichever
    order a CPU's kernels add them, with probability 1 - 2 * exp(-c**2 / 2); u is half the machine
    epsilon, c = 4 makes that 0.9993 (Higham and Mary 2019, A New Approach to Probabilistic
    Rounding Error Analysis, https://doi.org/10.1137/18M1226312, theorem 2.4). Layers that are
    normalised hand an error on without enlarging it, so those of all layers add up; and two
    computations differ by at most twice that: c * epsilon * (the sum of sqrt(k) over layers).

    The bound is relative to the largest feature, for a feature near zero is the difference of
    large terms and as inexact as these.

    Args:
        variables: The network's variables; those of two and more dimensions are kernels, whose
            last dimension is that of the outputs.
    """
    n_terms = [
        math.prod(v.shape[:2] if "depthwise" in getattr(v, "name", "") else v.shape[:-1])
        for v in variables
        if len(v.shape) > 1
    ]
    assert n_terms, "a network without kernels"
    return CERTAINTY * EPSILON * sum(math.sqrt(n) for n in n_terms)


def assert_same_features(found: Any, expected: Any, variables: Iterable[Any]) -> None:
    """Fail unless two computations of a network differ by float32 rounding alone."""
    expected = np.asarray(expected)
    atol = rounding(variables) * float(np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=atol)
