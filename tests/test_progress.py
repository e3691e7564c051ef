"""What is shown of long work, and what hides it."""

from __future__ import annotations

import pytest

from hubretrain.parallel import ahead
from hubretrain.progress import Bar, is_progress_shown, progress_shown


def test_the_end_of_a_work_is_a_line_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Bar("fitting", 3, "heads") as bar:
        bar.advance(3)
    captured = capsys.readouterr()
    assert captured.err.startswith("fitting: 3 of 3 heads, ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


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
