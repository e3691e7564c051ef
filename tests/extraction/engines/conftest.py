from __future__ import annotations

from pathlib import Path

import pytest

from tests.samples import write_module, write_residual


@pytest.fixture(scope="session")
def antialiased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module with an operation that OpenVINO does not know."""
    return write_module(tmp_path_factory.mktemp("modules") / "antialiased")


@pytest.fixture(scope="session")
def residual_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module of three inner layers, one of them behind a shortcut."""
    return write_residual(tmp_path_factory.mktemp("modules") / "residual")
