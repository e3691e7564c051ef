from __future__ import annotations

from pathlib import Path

import pytest

from hubretrain.runs import Run
from tests.report.saliency.samples import SIZE, fitted_head
from tests.samples import write_pooled


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fitted_head(write_pooled(tmp_path / "pooled", SIZE), tmp_path)
