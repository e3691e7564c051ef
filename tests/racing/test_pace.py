from __future__ import annotations

import pytest

from hubretrain.racing.pace import LEAST_GROWTH, Lap, Pace

PACE = Pace({"a": Lap(100, 0.02, 1.0, 2.0), "b": Lap(100, 0.1, 3.0, 4.0)})


def test_a_lap_takes_its_passes_its_loading_and_its_heads_again():
    assert PACE.seconds("a", 100, 300) == pytest.approx(1.0 + 200 * 0.02 + 3 * 2.0)
    assert PACE.seconds("unknown", 100, 300) == 0


def test_a_lap_that_computed_nothing_keeps_what_passes_took():
    later = PACE.with_lap("a", Lap(200, 0.0, 0.0, 5.0))
    assert later.laps["a"] == Lap(200, 0.02, 1.0, 5.0)
    assert PACE.with_lap("c", Lap(10, 0.0, 0.0, 1.0)).laps["c"].passes == 0


@pytest.mark.parametrize("granted", [10.0, 20.0, 25.5, 31.0, 49.9, 60.0, 1000.0])
def test_the_largest_slice_is_that_of_trying_all(granted):
    sizes = range(round(LEAST_GROWTH * 100), 401)
    enough = [n for n in sizes if sum(PACE.seconds(m, 100, n) for m in "ab") <= granted]
    assert PACE.largest("ab", 100, 400, granted) == max(enough, default=None)
