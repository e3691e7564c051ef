"""What is told of another library's errors."""

from __future__ import annotations

import pytest

from hubretrain.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\nno such file.\nTraceback ..."), "no such file"),
        (EOFError(), "EOFError"),
        (ValueError("x" * 1000), "x" * 300),
    ],
)
def test_the_first_line_of_an_error_stands_in_parentheses(error: Exception, line: str) -> None:
    assert first_line(error) == line
