from __future__ import annotations

import math

import pytest

from hubretrain.errors import RunError
from hubretrain.finetuning.schedule import schedule_for


def test_more_images_train_in_fewer_epochs_of_more_steps():
    few, some, many = (schedule_for(n) for n in (100, 5_000, 100_000))
    assert few.epochs >= some.epochs >= many.epochs >= 3
    assert few.batch_size < some.batch_size
    assert 1_000 < some.epochs * math.ceil(5_000 / some.batch_size) < 2_000


def test_what_is_given_is_taken_as_it_is():
    given = schedule_for(500, epochs=7, batch_size=10, learning_rate=0.5)
    assert (given.epochs, given.batch_size, given.learning_rate) == (7, 10, 0.5)


def test_the_cosine_climbs_to_its_peak_and_falls_to_nothing():
    schedule = schedule_for(1_000, epochs=10, batch_size=10, learning_rate=1.0)
    rates = [schedule.learning_rate_at(step, 100) for step in range(1_001)]
    peak = schedule.warmup_steps
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak] == max(rates) == 1.0
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[(1_000 + peak) // 2] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_a_plateau_keeps_its_rate_until_it_is_reduced():
    schedule = schedule_for(1_000, epochs=10, batch_size=10, learning_rate=1.0, kind="plateau")
    assert schedule.learning_rate_at(999, 100) == 1.0
    assert schedule.learning_rate_at(999, 100, scale=0.25) == 0.25
    assert schedule.reduce_after < schedule.patience
    assert schedule_for(1_000, kind="cosine").patience is None


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(RunError, match=r"`schedule` is 'step'; expected cosine or plateau"):
        schedule_for(10, kind="step")
