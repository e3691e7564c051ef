from __future__ import annotations

import pytest

from tests.finetuning.runs import write_run
from tests.samples import write_digits, write_module


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    """A data set, its cache and a run of one module; no test writes there."""
    folder = tmp_path_factory.mktemp("fitted")
    write_digits(folder / "digits", 150)
    write_run(folder, write_module(folder / "small", n_features=12, seed=5))
    return folder
