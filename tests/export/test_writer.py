from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.images.decoding import decode, view
from hubretrain.errors import RunError
from hubretrain.export.manifest import read_manifest
from hubretrain.modules import resolve
from tests.samples import encoded

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


def test_half_an_export_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is no export .*run `hubretrain export` first"):
        read_manifest(tmp_path)
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(RunError, match=r"names no classes; run `hubretrain export` again"):
        read_manifest(tmp_path)


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
