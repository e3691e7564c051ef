from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.images.decoding import decode, to_unit
from hubretrain.errors import EngineError, RunError
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.export.manifest import MODEL_OF, Export
from hubretrain.export.runtimes import FORMATS, open_runtime
from hubretrain.heads.heads import probabilities as of_logits
from tests.samples import PATIENCE, encoded, photo_crops, small_head

PHOTOS = load_sample_images().images


def expected(pixels, pooled_module):
    """Module, head and temperature, each by its own formula."""
    from hubretrain.modules import resolve
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


def test_the_signature_gives_bottlenecks_too_and_can_be_called_by_name(small_export, pooled_module):
    from hubretrain.modules import resolve
    from hubretrain.modules.backbone import Backbone
    from hubretrain.tensorflow import tf

    pixels = tf.constant(to_unit(photo_crops(3)))
    loaded = tf.saved_model.load(str(small_export))
    features = Backbone(resolve(str(pooled_module)))(pixels).numpy()
    for said in (loaded.pixels(pixels), loaded.signatures["pixels"](pixels=pixels)):
        assert set(said) == {"probabilities", "bottlenecks"}
        assert np.allclose(said["bottlenecks"].numpy(), features, atol=1e-5)


def test_decisions_are_those_of_the_rule_without_the_temperature(small_export, pooled_module):
    exported = Export.open(small_export)
    pixels = to_unit(photo_crops(40))
    calibrated = open_runtime(exported, "litert")({8: pixels})
    plain = calibrated.astype(float) ** 1.6
    plain /= plain.sum(axis=1, keepdims=True)
    decided = DecisionRule(1.0, (0.6, 0.3, 0.1)).decide(plain)
    assert (exported.decisions(calibrated) == decided).all()
    assert (decided != calibrated.argmax(axis=1)).any()
    assert exported.manifest["adjust"] == pytest.approx(1 / 1.6)


def test_saved_model_cli_shows_what_tensorflow_serving_expects(small_export):
    tool = Path(sys.executable).parent / "saved_model_cli"
    if not tool.exists():
        pytest.skip("no saved_model_cli")
    asked = ["show", "--dir", small_export, "--tag_set", "serve", "--signature_def"]
    shown = subprocess.run(
        [tool, *asked, "serving_default"], capture_output=True, text=True, timeout=PATIENCE
    ).stdout
    assert "inputs['image_bytes'] tensor_info:\n      dtype: DT_STRING\n      shape: (-1)" in shown
    assert "outputs['probabilities'] tensor_info:\n      dtype: DT_FLOAT" in shown
    assert "shape: (-1, 3)" in shown
    assert "outputs['class_names'] tensor_info" in shown
    assert "Method name is: tensorflow/serving/predict" in shown


@pytest.fixture(scope="module")
def serve(small_export):
    from hubretrain.tensorflow import tf

    function = tf.saved_model.load(str(small_export)).signatures["serving_default"]
    return lambda *data: function(image_bytes=tf.constant(list(data)))["probabilities"].numpy()


@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("byte_order", ["big", "little"])
def test_the_graph_turns_photographs_upright_as_pillow_does(order, byte_order):
    from hubretrain.export.graph import decoded

    exif = Image.Exif()
    if byte_order == "big":
        exif._info = None
        exif.endian = ">"
    exif[0x010F], exif[0x0112] = "a maker", order
    buffer = io.BytesIO()
    Image.fromarray(PHOTOS[0][:40, :64]).save(buffer, "JPEG", exif=exif, comment=b"Exif")
    ours, theirs = np.asarray(decode(buffer.getvalue())), decoded(buffer.getvalue()).numpy()
    assert ours.shape == theirs.shape == ((40, 64, 3) if order < 5 else (64, 40, 3))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_damaged_exif_is_no_orientation():
    from hubretrain.export.graph import exif_orientation

    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PHOTOS[0][:20, :20], "JPEG", exif=exif)
    assert exif_orientation(data).numpy() == 6
    at = data.index(b"Exif\0\0") + 6
    for damaged in (
        data[: at + 9],
        data[:at] + b"\xff" * 30 + data[at + 30 :],
        data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :],
        data[:3],
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 100,
    ):
        assert exif_orientation(damaged).numpy() == 1


def odd_files():
    """Files of many kinds, all of one picture."""
    image = Image.fromarray(PHOTOS[0][:60, :90])
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))

    def saved(one, form, **options):
        buffer = io.BytesIO()
        one.save(buffer, form, **options)
        return buffer.getvalue()

    return {
        "CMYK": saved(image.convert("CMYK"), "JPEG"),
        "progressive": saved(image, "JPEG", progressive=True),
        "alpha": saved(clear, "PNG"),
        "grey with alpha": saved(clear.convert("LA"), "PNG"),
        "16 bits": encoded(PHOTOS[0][:60, :90, 0].astype(np.uint16) * 257, "PNG"),
        "palette": saved(image.quantize(), "PNG", transparency=3),
        "animation": saved(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
        "BMP of 32 bits": saved(clear, "BMP"),
        "WebP": saved(image, "WEBP"),
    }


@pytest.mark.parametrize("kind", odd_files())
def test_the_graph_decodes_odd_files_to_the_very_pixels(kind):
    from hubretrain.export.graph import decoded

    data = odd_files()[kind]
    assert np.array_equal(decoded(data).numpy(), np.asarray(decode(data)))


def test_what_the_graph_cannot_decode_is_an_error_and_no_answer(serve):
    from hubretrain.tensorflow import tf

    image = Image.fromarray(PHOTOS[0][:60, :90])
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    odd = {"palette BMP": image.quantize(), "1-bit BMP": image.convert("1")}
    for kind, one in {**odd, "TIFF": image, "WEBP": clear}.items():
        buffer = io.BytesIO()
        one.save(buffer, kind.split()[-1])
        with pytest.raises(tf.errors.InvalidArgumentError):
            serve(buffer.getvalue())
    for data in (b"", b"BM", b"nothing"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            serve(data)


def test_half_a_copy_and_another_models_labels_are_refused(small_export, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(small_export, copy)
    (copy / "labels.txt").write_text("x\ny\nz\n")
    with pytest.raises(RunError, match=r"labels\.txt names other classes than export\.json; copy"):
        Export.open(copy)
    shutil.copy(small_export / "labels.txt", copy)
    exported = Export.open(copy)
    model = copy / "model.tflite"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"model\.tflite is not the file that export\.json was writ"):
        open_runtime(exported)
    model.unlink()
    with pytest.raises(RunError, match=r"model\.tflite cannot be read \(No such file"):
        open_runtime(exported)
    shutil.rmtree(copy / "variables")
    with pytest.raises(RunError, match=r"variables/.* cannot be read \(No such file"):
        open_runtime(exported, "savedmodel")
    facts = json.loads((copy / "export.json").read_text())
    del facts["files"]["model.onnx"]
    (copy / "export.json").write_text(json.dumps(facts))
    with pytest.raises(RunError, match=r"holds no model\.onnx; run the `hubretrain export` that"):
        open_runtime(Export.open(copy), "onnx")


def test_formats_are_added_to_an_export_without_training(small_export, tmp_path):
    from hubretrain.export.writer import add_formats

    copy = tmp_path / "copy"
    shutil.copytree(small_export, copy)
    facts = json.loads((copy / "export.json").read_text())
    for name in ("model.onnx", "model.tflite", "model_int8.tflite"):
        del facts["files"][name]
        (copy / name).unlink()
    facts["not_converted"] = "it could not then"
    (copy / "export.json").write_text(json.dumps(facts))
    pixels = to_unit(photo_crops(4))
    added = add_formats(copy, ["onnx"])
    assert added.manifest["not_converted"] == "it could not then"
    assert add_formats(copy, ["litert"]).manifest["not_converted"] == ""
    said = open_runtime(added, "onnx")({8: pixels})
    assert np.allclose(said, open_runtime(Export.open(small_export), "onnx")({8: pixels}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


def test_what_cannot_be_converted_is_served_by_tensorflow(small_module, tmp_path):
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules import resolve
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier

    zeros = np.zeros((5, 2), np.float32), np.zeros(2, np.float32)
    classifier = Classifier(Backbone(resolve(str(small_module))), "softmax", *zeros)
    write_export([Member(classifier)], ["a", "b"], tmp_path / "export", {})
    exported = Export.open(tmp_path / "export")
    assert "cannot be converted to LiteRT" in exported.manifest["not_converted"]
    runner = open_runtime(exported)
    assert runner.name == "TensorFlow"
    assert np.allclose(runner({8: to_unit(photo_crops(2))}), 0.5)
    with pytest.raises(EngineError, match="cannot be converted to LiteRT"):
        write_export([Member(classifier)], ["a", "b"], tmp_path / "e", {}, formats=["litert"])
    assert not (tmp_path / "e").exists()
