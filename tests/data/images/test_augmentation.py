from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubretrain.data.images.augmentation import Augmentation
from hubretrain.errors import DataError

SHA = "ab" * 32
EVERYTHING = Augmentation(
    vertical_flip=True,
    rotate90=True,
    crop=0.3,
    brightness=0.2,
    contrast=0.3,
    saturation=0.3,
    hue=0.1,
)


@given(view_number=st.integers(1, 50), seed=st.integers(-3, 2**40))
def test_a_draw_depends_on_content_view_and_seed_alone(view_number, seed):
    draw = EVERYTHING.draw(SHA, view_number, seed)
    for other in range(5):
        EVERYTHING.draw(SHA, other, seed + 1)
    assert EVERYTHING.draw(SHA, view_number, seed) == draw
    assert EVERYTHING.draw("cd" * 32, view_number, seed) != draw
    assert EVERYTHING.draw(SHA, view_number + 1, seed) != draw
    assert EVERYTHING.draw(SHA, view_number, seed + 1) != draw


@given(view_number=st.integers(1, 10_000))
def test_a_draw_stays_within_the_augmentation(view_number):
    draw = EVERYTHING.draw(SHA, view_number, 0)
    left, top, right, bottom = draw.box
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    assert 0.3 / (4 / 3) - 1e-9 <= (right - left) * (bottom - top) <= 1
    assert draw.quarter_turns in (0, 1, 2, 3)
    assert abs(draw.brightness) <= 0.2
    assert 0.7 <= draw.contrast <= 1.3
    assert abs(draw.hue) <= 0.1


def test_draws_are_uniform_over_their_range():
    draws = [EVERYTHING.draw(SHA, v, 0) for v in range(1, 4001)]
    assert abs(np.mean([d.mirror for d in draws]) - 0.5) < 0.04
    assert np.bincount([d.quarter_turns for d in draws], minlength=4).min() > 900
    deciles = np.quantile([d.brightness for d in draws], np.arange(1, 10) / 10)
    assert np.abs(deciles - (np.arange(1, 10) / 10 * 0.4 - 0.2)).max() < 0.02


def test_an_augmentation_out_of_bounds_is_refused():
    with pytest.raises(DataError, match=r"`crop` is 0; expected 0.001 to 1"):
        Augmentation(crop=0)
    with pytest.raises(DataError, match=r"`hue` is 0.7; expected 0 to 0.5"):
        Augmentation(hue=0.7)
