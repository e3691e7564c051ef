"""The softmax against scipy's, and at its edges."""

import numpy as np
import pytest
from scipy import special

from hubretrain.evaluation.logits import LOWEST_EXPONENT, softmax


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_softmax_is_scipys_along_any_axis(dtype, axis):
    logits = np.random.default_rng(0).normal(0, 5, (4, 5, 6)).astype(dtype)
    probs = softmax(logits, axis)
    assert probs.dtype == dtype
    np.testing.assert_allclose(probs, special.softmax(logits, axis=axis), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_probability_overflows_or_has_an_infinite_logarithm(dtype):
    probs = softmax(np.array([[1e4, 0.0, -1e4]], dtype))
    np.testing.assert_allclose(np.log(probs), [[0, LOWEST_EXPONENT, LOWEST_EXPONENT]], rtol=1e-6)
