from __future__ import annotations

from dataclasses import replace

import pytest

from hubretrain.racing import SHARES, Lap, Race, Rung, portion_of

LAPS = {"a": Lap(100, 0.01, 5.0, 2.0), "b": Lap(100, 0.02, 5.0, 2.0), "c": Lap(100, 0.1, 9.0, 2.0)}
ESTIMATES, ERRORS = dict.fromkeys("abc", (0.5, 0.4, 0.6)), dict.fromkeys("abc", 0.1)
RUNG = Rung(100, ESTIMATES, ERRORS, tuple("abc"), seconds=60.0, n_passes=300)
RACE = Race("", "accuracy", tuple("abc"), 800, rungs=(RUNG,), laps=LAPS)


def test_the_shares_are_those_of_one_whole():
    assert sum(SHARES.values()) == pytest.approx(1)


def test_with_much_time_three_modules_get_four_views():
    portion = portion_of(RACE, 1000, 1e6, 1e6)
    assert (portion.modules, portion.n_views, portion.is_quick) == (("a", "b", "c"), 4, False)
    passes = 4 * 1000 - 100
    assert portion.cache_seconds == pytest.approx(19.0 + passes * 0.13)


@pytest.mark.parametrize("to_cache", [1.0, 20.0, 60.0, 100.0, 200.0, 400.0])
def test_the_estimate_is_within_the_time_or_there_is_no_less(to_cache):
    portion = portion_of(RACE, 1000, to_cache, 1e6)
    is_least = (portion.modules, portion.n_views) == (("a",), 1)
    assert portion.cache_seconds <= to_cache or is_least
    assert portion.modules == tuple("abc")[: len(portion.modules)]


def test_with_little_time_to_fit_the_heads_are_quick_and_at_the_least_one_module_is_left():
    assert portion_of(RACE, 1000, 1e6, 350.0).is_quick is False  # one module, one view
    quick = portion_of(RACE, 1000, 1e6, 100.0)
    assert quick.is_quick
    assert quick.fit_seconds <= 100.0
    least = portion_of(RACE, 1000, 1.0, 1.0)
    assert (least.modules, least.n_views, least.is_quick) == (("a",), 1, True)


def test_where_there_is_time_modules_that_were_left_out_join_for_the_ensemble():
    estimates = {"a": (0.6, 0.5, 0.7), "b": (0.9, 0.8, 1.0), "c": (0.7, 0.6, 0.8)}
    first = replace(RUNG, estimates=estimates, alive=("b", "c"))
    last = replace(RUNG, n_images=200, estimates={"b": estimates["b"]}, alive=("b",))
    race = replace(RACE, rungs=(first, last), laps=LAPS | {"b": Lap(200, 0.02, 5.0, 2.0)})
    assert portion_of(race, 1000, 1e6, 1e6).modules == ("b", "c", "a")
    portion = portion_of(race, 1000, 25.0, 1e6)
    assert (portion.modules, portion.n_views) == (("b",), 1)
    assert portion.cache_seconds == pytest.approx(5.0 + 800 * 0.02)
