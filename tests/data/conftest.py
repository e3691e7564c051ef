from __future__ import annotations

from pathlib import Path

import pytest

from hubretrain.data import SplitOptions
from hubretrain.data.check import DataCheck, check_dataset
from hubretrain.data.dataset import open_dataset
from tests.messy import write_messy

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
    "=1+1",
    "-x",
    "-1",
    "'=x",
    "''@x",
    "\u2028line",
    "\u202egpj",
    "\x1b[31mred",
)


@pytest.fixture(params=STRANGE_NAMES)
def strange_name(request: pytest.FixtureRequest) -> str:
    """A name that a reader of tables may take for something else."""
    return str(request.param)


@pytest.fixture(scope="session")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataCheck, Path]:
    """The check of the messy data set, and the folder of its data, labels and cache."""
    place = tmp_path_factory.mktemp("messy")
    root = write_messy(place / "data")
    dataset = open_dataset(root, labels=place / "labels.csv")
    checked = check_dataset(dataset, SplitOptions(n_folds=2), cache=place / "cache")
    return checked, place
