"""The exported graph against Pillow and against the trained model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.images.decoding import decode, to_unit, view
from hubretrain.export.manifest import read_manifest
from hubretrain.modules import resolve
from tests.samples import PATIENCE, encoded, photo_crops

PHOTOS = load_sample_images().images


def pictures():
    """Encoded images of several formats and shapes, larger and smaller than the input."""
    photo, grey = PHOTOS[0], PHOTOS[1][:, :, 0]
    palette = io.BytesIO()
    Image.fromarray(photo[:50, :70]).convert("P").save(palette, "PNG")
    return [
        encoded(photo, "JPEG", quality=90),
        encoded(photo[:301, :173], "PNG"),
        encoded(photo[100:105, 100:109], "PNG"),
        encoded(grey, "JPEG"),
        encoded(photo[:64, :64], "BMP"),
        palette.getvalue(),
    ]


@pytest.mark.parametrize("size", [8, 224])
def test_the_graph_sees_what_training_saw_to_one_level_of_256(size):
    from hubretrain.export.graph import decoded, resized

    for data in pictures():
        ours = view(decode(data), size).astype(int)
        theirs = resized(decoded(data), size).numpy().astype(int)
        assert np.abs(ours - theirs).max() <= 1
        assert (ours != theirs).mean() < 0.15


@pytest.fixture(scope="module")
def exported(tmp_path_factory, request):
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier
    from tests.samples import write_module

    place = tmp_path_factory.mktemp("exported")
    backbone = Backbone(resolve(str(write_module(place / "small"))))
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(5, 3)), random.normal(size=3)
    found = {}
    for kind in ("softmax", "logistic"):
        classifier = Classifier(backbone, kind, weight.astype("f4"), bias.astype("f4"))
        write_export([Member(classifier)], ["a", "<b>", "ç é"], place / kind, {"fine_tuned": False})
        found[kind] = (classifier, place / kind)
    return found


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_bytes_go_in_and_the_trained_models_probabilities_come_out(exported, kind):
    from hubretrain.tensorflow import tf

    classifier, folder = exported[kind]
    pixels = np.stack([view(decode(data), 8) for data in pictures()]).astype(np.float32) / 255
    expected = classifier.probabilities(tf.constant(pixels)).numpy()
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    said = serve(image_bytes=tf.constant(pictures()))
    assert np.abs(said["probabilities"].numpy() - expected).max() < 0.005
    assert np.allclose(said["probabilities"].numpy().sum(1), 1, atol=1e-5)
    assert said["class_names"].numpy()[0].tolist() == [b"a", b"<b>", "ç é".encode()]


def test_the_labels_and_facts_stand_beside_the_model(exported):
    _, folder = exported["softmax"]
    assert (folder / "labels.txt").read_text(encoding="utf-8") == "a\n<b>\nç é\n"
    facts = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    assert (facts["image_size"], facts["head"], facts["module"]) == (8, "softmax", "small")


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


def test_an_ensemble_is_exported_as_one_model_of_bytes(tmp_path):
    from hubretrain.export.predict import predict_images
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier
    from hubretrain.tensorflow import tf
    from tests.samples import write_module

    random = np.random.default_rng(0)
    members, expected = [], 0
    for seed, (size, kind, share) in enumerate(((8, "softmax", 0.25), (12, "logistic", 0.75))):
        backbone = Backbone(resolve(str(write_module(tmp_path / kind, size=size, seed=seed))))
        weight, bias = random.normal(size=(5, 3)), random.normal(size=3)
        members.append(
            Member(Classifier(backbone, kind, weight.astype("f4"), bias.astype("f4")), share)
        )
        pixels = np.stack([view(decode(data), size) for data in pictures()]).astype("f4") / 255
        expected = expected + share * members[-1].classifier.probabilities(tf.constant(pixels))
    write_export(members, ["a", "b", "c"], tmp_path / "export", {"run": "x"})
    serve = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    said = serve(image_bytes=tf.constant(pictures()))["probabilities"].numpy()
    assert np.abs(said - expected.numpy()).max() < 0.005
    facts = read_manifest(tmp_path / "export")
    assert [one["weight"] for one in facts["members"]] == [0.25, 0.75]
    (tmp_path / "photo.jpg").write_bytes(pictures()[0])
    (found,) = predict_images(tmp_path / "export", [tmp_path / "photo.jpg"])
    assert sum(p for _, p in found.classes) == pytest.approx(1, abs=1e-5)
