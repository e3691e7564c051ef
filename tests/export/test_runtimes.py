"""Every format gives what was trained."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from hubretrain.data.images.decoding import to_unit
from hubretrain.errors import RunError
from hubretrain.export.manifest import MODEL_OF, Export
from hubretrain.export.runtimes import FORMATS, open_runtime
from hubretrain.export.views import AveragedView
from hubretrain.heads.heads import probabilities as of_logits
from hubretrain.modules import resolve
from tests.samples import at_temperature, encoded, photo_crops, small_head


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


VIEWS = (
    AveragedView(),
    AveragedView(mirror=True),
    AveragedView(quarter_turns=1),
    AveragedView(quarter_turns=3, area=0.6),
    AveragedView(mirror=True, quarter_turns=2, area=0.8),
)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, pooled_module):
    """The small export, averaged over views of every kind."""
    pytest.importorskip("tf2onnx")
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier

    backbone = Backbone(resolve(str(pooled_module)))
    classifier = Classifier(backbone, "softmax", *small_head(backbone))
    folder = tmp_path_factory.mktemp("exports") / "averaged"
    formats = ("litert", "onnx")
    write_export(
        [Member(classifier)], list("abc"), folder, {}, temperature=1.6, formats=formats, views=VIEWS
    )
    return folder


def turned(pixels, view):
    """The view of uint8 or float pixels, by numpy alone; of a crop as `AveragedView` tells."""
    pixels = AveragedView(area=view.area).of(pixels)
    pixels = pixels[:, :, ::-1] if view.mirror else pixels
    for _ in range(view.quarter_turns):
        pixels = pixels.transpose(0, 2, 1, 3)[:, ::-1]
    return np.ascontiguousarray(pixels)


def expected_mean(pixels, pooled_module):
    """The mean over the views of module and head, then the temperature."""
    from hubretrain.modules.backbone import Backbone

    backbone = Backbone(resolve(str(pooled_module)))
    weight, bias = small_head(backbone)
    probs = [
        of_logits(backbone(turned(pixels, view)).numpy() @ weight + bias, "softmax")
        for view in VIEWS
    ]
    return at_temperature(np.mean(probs, axis=0), 1.6)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_averages_over_the_views_inside_the_model(averaged, pooled_module, form):
    exported = Export.open(averaged)
    assert exported.manifest["tta"] == [view.name for view in VIEWS]
    pixels = to_unit(photo_crops(12))
    runner = open_runtime(exported, form)
    truth = expected_mean(pixels, pooled_module)
    tolerance = 0.1 if form == "litert_int8" else 1e-4
    assert np.abs(runner({8: pixels}) - truth).max() < tolerance
    assert np.abs(runner({8: pixels[:1]}) - truth[:1]).max() < tolerance
    assert np.abs(truth - expected(pixels, pooled_module)).max() > 0.01


def test_bytes_are_averaged_over_the_views_too_and_bottlenecks_are_the_images_own(
    averaged, pooled_module
):
    from hubretrain.modules.backbone import Backbone
    from hubretrain.tensorflow import tf

    pixels = photo_crops(3)
    loaded = tf.saved_model.load(str(averaged))
    contents = tf.constant([encoded(image) for image in pixels])
    probs = loaded.signatures["serving_default"](image_bytes=contents)["probabilities"].numpy()
    assert np.abs(probs - expected_mean(to_unit(pixels), pooled_module)).max() < 1e-4
    outputs = loaded.signatures["pixels"](pixels=tf.constant(to_unit(pixels)))
    features = Backbone(resolve(str(pooled_module)))(to_unit(pixels)).numpy()
    assert np.allclose(outputs["bottlenecks"].numpy(), features, atol=1e-5)


def test_the_views_of_an_export_are_changed_without_the_module(averaged, pooled_module, tmp_path):
    from hubretrain.export.writer import rewrite_export

    pixels = to_unit(photo_crops(4))
    rewrite_export(averaged, tmp_path / "plain", (), (AveragedView(),))
    plain = open_runtime(Export.open(tmp_path / "plain"))
    assert np.abs(plain({8: pixels}) - expected(pixels, pooled_module)).max() < 1e-4
    rewrite_export(tmp_path / "plain", tmp_path / "plain", ("litert",), VIEWS)
    again = open_runtime(Export.open(tmp_path / "plain"), "litert")
    assert np.abs(again({8: pixels}) - expected_mean(pixels, pooled_module)).max() < 1e-4
    with pytest.raises(RunError, match="averages over its 5 views itself; leave it out, or run"):
        open_runtime(Export.open(averaged), tta=2)
