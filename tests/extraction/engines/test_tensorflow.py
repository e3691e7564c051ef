from __future__ import annotations

import numpy as np
import pytest

from hubretrain.extraction.engines import open_engine
from tests.extraction.engines.samples import (
    noise,
    probed,
    run_python,
)
from tests.samples import write_pooled


def test_submitted_batches_give_what_calls_give(pooled_module):
    with open_engine(probed(pooled_module)) as engine:
        images = noise(100, 8)
        parts = [images[i : i + 7] for i in range(0, 100, 7)]
        futures = [engine.submit(part) for part in parts]
        together = np.concatenate([future.result() for future in futures])
        assert together.dtype == np.float32
        assert np.array_equal(together, np.concatenate([engine(part) for part in parts]))
        with pytest.raises(ValueError, match="49 images in a batch of at most 48"):
            engine.submit(images[:49])


@pytest.mark.slow  # TensorFlow waits ten seconds for memory to become free
def test_a_batch_that_does_not_fit_in_memory_is_a_sentence(pooled_module, tmp_path):
    script = """
import sys, numpy as np
from hubretrain.extraction.engines import open_engine
from hubretrain.extraction.engines.tensorflow import best_batch_size
from hubretrain.errors import EngineError
from hubretrain.modules import resolve
from hubretrain.modules.backbone import Backbone
module = Backbone(resolve(sys.argv[1], image_size=256)).stored
images = [np.zeros((256, 256, 3), np.uint8)] * 192
try:
    open_engine(module, batch_size=192)(images)
except EngineError as error:
    print(error)
build = lambda n: open_engine(module, batch_size=n)
print(best_batch_size(build, first=24, seconds=0.05) < 192)
"""
    any_size = write_pooled(tmp_path / "any", size=None)
    error, fits = run_python(script, any_size, TF_CPU_BFC_MEM_LIMIT_IN_MB="400").splitlines()
    assert "TensorFlow cannot run" in error
    assert "on 192 images at once (" in error
    assert "decrease `batch_size`" in error
    assert fits == "True"
