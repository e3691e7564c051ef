"""Every format gives what was trained."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from hubretrain.data.images.decoding import to_unit
from hubretrain.export.manifest import MODEL_OF, Export
from hubretrain.export.runtimes import FORMATS, open_runtime
from hubretrain.heads.heads import probabilities as of_logits
from hubretrain.modules import resolve
from tests.samples import photo_crops, small_head


def expected(pixels, pooled_module):
    """Module, head and temperature, each by its own formula."""
    from hubretrain.modules.backbone import Backbone

    backbone = Backbone(resolve(str(pooled_module)))
    weight, bias = small_head(backbone)
    features = backbone(pixels).numpy()
    return of_logits((features @ weight + bias) / 1.6, "softmax")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_of_the_same_pixels_what_was_trained(small_export, pooled_module, form):
    exported = Export.open(small_export)
    runner = open_runtime(exported, form)
    pixels = to_unit(photo_crops(40))
    said, truth = runner({8: pixels}), expected(pixels, pooled_module)
    assert said.dtype == np.float32
    assert len(set(truth.argmax(axis=1))) > 1
    if form == "litert_int8":
        assert (said.argmax(axis=1) == truth.argmax(axis=1)).mean() > 0.9
        assert np.abs(said - truth).max() < 0.1
    else:
        assert np.abs(said - truth).max() < 1e-4
    alone = np.concatenate([runner({8: pixels[i : i + 1]}) for i in range(3)])
    assert np.allclose(alone, said[:3], atol=1e-5)  # another batch size, other kernels


@pytest.mark.parametrize("form", FORMATS)
def test_a_model_that_was_opened_stays_itself_when_another_takes_its_place(
    small_export, tmp_path, form
):
    copy = tmp_path / "copy"
    shutil.copytree(small_export, copy)
    pixels = to_unit(photo_crops(8))
    runner = open_runtime(Export.open(copy), form)
    alone = runner({8: pixels[:1]})
    shutil.rmtree(copy)
    copy.mkdir()
    (copy / MODEL_OF[form]).write_bytes(b"of another model")
    assert np.allclose(runner({8: pixels})[:1], alone, atol=1e-5)  # interpreters are made now
