"""Cached views as rows to fit on."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.bottlenecks.reader import CachedView, cached_views
from hubretrain.errors import CacheError
from hubretrain.screening import screen as screening
from tests.screening.test_fit import fit, place, write_cache  # noqa: F401 (place is a fixture)


@pytest.fixture
def bottlenecks(place):  # noqa: F811
    rare = {f"2/{image.name}": 3 for image in (place / "digits" / "2").iterdir()}
    path = write_cache(place / "digits", place / "cache", of=rare)
    with Bottlenecks(path) as opened:
        yield opened


def test_slices_are_those_of_the_file_in_the_order_that_was_asked(bottlenecks):
    asked = np.random.default_rng(0).permutation(bottlenecks.sha256s)[:50].tolist()
    rows = CachedView(bottlenecks, asked, 0)
    index = [bottlenecks.sha256s.index(sha256) for sha256 in asked]
    expected = bottlenecks.view(0)[:][index]
    assert rows.shape == (len(rows), bottlenecks.n_features) == expected.shape
    np.testing.assert_array_equal(np.concatenate([rows[:20], rows[20:50]]), expected)


def test_an_image_has_a_row_for_each_of_its_own_views(bottlenecks):
    parts, image = cached_views(bottlenecks, bottlenecks.sha256s, all_views=True)
    assert len(parts) == 3
    assert sum(map(len, parts)) == len(image)
    np.testing.assert_array_equal(np.bincount(image), bottlenecks.n_views_of)
    np.testing.assert_array_equal(parts[2][:], bottlenecks.view(2)[:][bottlenecks.n_views_of > 2])
    alone, image = cached_views(bottlenecks, bottlenecks.sha256s, all_views=False)
    assert len(alone) == 1
    np.testing.assert_array_equal(image, np.arange(bottlenecks.n_images))


def test_an_image_that_is_not_cached_is_an_error_that_says_what_to_do(bottlenecks):
    parts, _ = cached_views(bottlenecks, ["f" * 64], all_views=True)
    with pytest.raises(CacheError, match="no row for an image with sha256 ffffffffffff"):
        parts[0][:]


def test_a_cache_that_does_not_fit_into_memory_is_streamed_to_the_same_leaderboard(
    bottlenecks,
    place,  # noqa: F811
    monkeypatch,
):
    in_memory = fit(place, "memory").leaderboard
    monkeypatch.setattr(screening, "MEMORY", 0)
    streamed = fit(place, "streamed").leaderboard
    for column in ("module", "trained_on", "head", "l2", "adjust"):
        assert in_memory[column].equals(streamed[column])
    for column in ("balanced_accuracy", "log_loss", "averaged_accuracy"):
        np.testing.assert_allclose(in_memory[column], streamed[column], atol=2e-3)
