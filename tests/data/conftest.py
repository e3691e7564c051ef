from __future__ import annotations

import pytest

STRANGE_NAMES = (
    "NA",
    "None",
    "nan",
    "2024",
    "007",
    "1e5",
    "True",
    'a "b", c',
    "two\nlines",
    "a\rb",
)


@pytest.fixture(params=STRANGE_NAMES)
def strange_name(request: pytest.FixtureRequest) -> str:
    """A name that a reader of tables may take for something else."""
    return str(request.param)
