"""What is shown of long work, and what hides it."""

from __future__ import annotations

import pytest
from rich.console import Console

from hubretrain.parallel import ahead
from hubretrain.progress import PERCENT, Bar, is_progress_shown, progress_shown, rate_words


def test_the_end_of_a_work_is_a_line_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Bar("fitting", 3, "heads") as bar:
        bar.advance(3)
    captured = capsys.readouterr()
    # No speed of less than a second: it is of the clock, or of what was there already.
    assert captured.err == "fitting: 3 of 3 heads\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("n", "seconds", "words"),
    [
        (0, 20, ""),
        (1000, 0.5, ""),
        (3000, 2, "1,500 steps/s"),
        (25, 2, "12 steps/s"),
        (15, 10, "1.5 steps/s"),
        (1, 30, "0.033 steps/s"),
    ],
)
def test_a_rate_has_two_digits_and_is_of_more_than_an_instant(
    n: int, seconds: float, words: str
) -> None:
    assert rate_words(n, seconds, "steps") == words


def test_what_was_completed_before_says_nothing_of_the_speed(monkeypatch, capsys) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Bar("epoch 2 of 5", 1000, already=900) as bar:
        now += 10
        bar.advance(20)
        assert bar.per_second == 2
    assert capsys.readouterr().err == "epoch 2 of 5: 920 of 1,000 images, 2 images/s, 40 s left\n"


def test_hidden_progress_stays_hidden_inside_and_in_threads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_shown(False):
        with progress_shown(True), Bar("fitting", 3) as bar:
            bar.advance(3)
        in_threads = [shown for _, shown in ahead(lambda _: is_progress_shown(), range(5))]
    assert in_threads == [False] * 5
    assert capsys.readouterr().err == ""
    assert is_progress_shown()


def test_bars_within_a_bar_fill_it_and_are_not_shown(monkeypatch, capsys) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Bar("fitting", 100, PERCENT) as bar:
        with bar.part(0.5):
            for share, n in ((0.2, 5), (0.8, 4)):
                with Bar("components", n, "steps", share=share) as inner:
                    for _ in range(n):
                        inner.advance()
        assert bar.done == pytest.approx(50)
        now += 20
        with bar.part(0.5):
            with Bar("heads", 8, "heads", already=4) as inner:
                inner.advance(2)
            assert bar.done == pytest.approx(75)
            assert bar.seconds_left == pytest.approx(20 * 25 / 75)
        assert bar.done == pytest.approx(100)
        assert bar.seconds_left is None
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fitting: 75 of 100 %, 7 s left"
    assert lines[-1] == "fitting: 100 of 100 %"
    with Bar("after", 1) as after:
        after.advance()
    assert capsys.readouterr().err == "after: 1 of 1 images\n"


def test_the_time_that_is_left_is_by_the_speed_since_the_start(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    bar = Bar("fitting", 100, "heads")
    assert bar.seconds_left is None
    now = 10.0
    bar.advance(10)
    now = 11.0
    bar.advance(10)  # a quick step does not promise an early end
    assert bar.seconds_left == pytest.approx(44)


def test_a_bar_of_a_long_name_stays_on_one_line_of_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with Bar("MobileNet_alpha0.25-mobilenet_v1_025_224_notop", 12_000) as bar:
        assert bar._live is not None
        task = bar._live.tasks[0]
        assert task.start_time is not None
        task.start_time -= 10
        bar.advance(6_000)
        console = Console(width=80, color_system=None)
        with console.capture() as drawn:
            console.print(bar._live.get_renderable())
    (line,) = drawn.get().splitlines()
    assert line.startswith("MobileNet_alpha0.25")
    assert " 6000/12000 " in line
    assert " images/s " in line
