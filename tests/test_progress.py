"""What is shown of long work, and what hides it."""

from __future__ import annotations

import pytest

from hubretrain.parallel import ahead
from hubretrain.progress import Bar, is_progress_shown, progress_shown, rate_words


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
