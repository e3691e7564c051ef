from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hubretrain.data.near_duplicates.alignment import IDENTITY, align, compose, correlation, windows


@pytest.fixture(scope="module")
def waves() -> Callable[[np.ndarray], np.ndarray]:
    """A smooth picture that can be sampled at any points of [-1, 1]²."""

    def sample(placements: np.ndarray, size: int = 48) -> np.ndarray:
        x = (np.arange(size) + 0.5) / size * 2 - 1
        scale_x, shift_x, scale_y, shift_y = placements.T[:, :, None]
        across, down = scale_x * x + shift_x, scale_y * x + shift_y
        across, down = across[:, None, :], down[:, :, None]
        return (np.sin(3 * across + 2 * down) + np.cos(4 * down - across * down)).astype(np.float32)

    return sample


def test_align_finds_where_a_picture_lies_on_another(
    waves: Callable[[np.ndarray], np.ndarray],
) -> None:
    truth = np.array([[0.9, 0.05, 0.95, -0.04], [1.1, -0.05, 1.0, 0.08], [1, 0, 1, 0]], np.float32)
    whole = waves(np.tile(IDENTITY, (3, 1)))
    placements = align(3 * waves(truth) + 7, whole, np.tile(IDENTITY, (3, 1)), steps=8)
    np.testing.assert_allclose(placements, truth, atol=0.01)
    assert (correlation(waves(truth), whole, placements) > 0.999).all()


def test_correlation_is_pearsons_where_nothing_is_cut_off() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 16, 16)).astype(np.float32)
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlation(a, b, np.tile(IDENTITY, (5, 1))), expected, atol=1e-5)
    flat = np.ones_like(a)
    np.testing.assert_array_equal(correlation(a, flat, np.tile(IDENTITY, (5, 1))), 0)


def test_windows_show_the_same_and_compose_places_within_them() -> None:
    placement = np.array([[0.9, 0.1, 1.0, 0.0], [1.0, 0.2, 1.0, 0.0]], np.float32)
    of_a, of_b = windows(placement)
    np.testing.assert_allclose(of_a, [[0, 0, 1, 1], [0, 0, 0.9, 1]], atol=1e-6)
    np.testing.assert_allclose(of_b, [[0.1, 0, 1, 1], [0.1, 0, 1, 1]], atol=1e-6)
    same = compose(placement, np.tile(IDENTITY, (2, 1)))
    np.testing.assert_allclose(same, placement, atol=1e-6)
