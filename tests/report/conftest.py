from __future__ import annotations

from pathlib import Path

import pytest

from hubretrain.report.report import write_report
from hubretrain.runs import Run
from tests.report.samples import copied, write_fine_tuned, write_run


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fitted run that is not fine-tuned."""
    return write_run(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="session")
def tuned(fitted: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run with a fine-tuned module, and its report without saliency maps."""
    run = copied(fitted, tmp_path_factory.mktemp("tuned") / "digits")
    write_fine_tuned(run)
    write_report(run, n_saliency=0)
    return run


@pytest.fixture
def page(tuned: Run) -> Path:
    return tuned.folder / "report.html"
