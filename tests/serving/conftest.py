from __future__ import annotations

import numpy as np
import pytest

from hubretrain.data.images.decoding import decode, to_unit, view
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import open_runtime
from tests.serving.samples import LIMITS, serving


@pytest.fixture(scope="session")
def server(small_export):
    with serving(small_export, *LIMITS) as running:
        yield running


@pytest.fixture(scope="session")
def truth(small_export):
    exported = Export.open(small_export)
    runner = open_runtime(exported, "savedmodel")

    def of(data):
        return runner({8: to_unit(view(decode(data), 8)[np.newaxis])})[0]

    return of
