from __future__ import annotations

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are fastest on one thread, above all while others use the machine."""
    with threadpool_limits(1):
        yield
