"""Heads on ONNX modules as one ONNX model, against NumPy; and the whole chain of one module."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.cli import main
from hubretrain.data.images import Augmentation
from hubretrain.errors import EngineError
from hubretrain.evaluation import DecisionRule, at_temperature
from hubretrain.export import Export, open_runtime, predict_images, why_not_joined
from hubretrain.export.onnx_graph import OnnxMember
from hubretrain.export.onnx_writer import write_onnx_export
from hubretrain.export.views import averaged_views
from hubretrain.heads import Ensemble, Head, ModuleHeads
from hubretrain.modules import resolve
from hubretrain.modules.onnx import probed
from hubretrain.runs import ModuleRecord, Run
from tests.extraction.engines.samples import run_python
from tests.modules.onnx.samples import expected_features, write_network
from tests.samples import fit_record, write_digits

NAMES = ("a", "b", "c")
VIEWS = averaged_views(Augmentation(rotate90=True, vertical_flip=True, crop=0.5), 8)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_head(kind, seed=0, **settings):
    random = np.random.default_rng(seed)
    hidden = {}
    if kind == "mlp":
        hidden = {"hidden_weight": random.normal(size=(5, 4)), "hidden_bias": random.normal(size=4)}
    weight = 3 * random.normal(size=(4 if hidden else 5, 3))
    rule = DecisionRule(0.0, (1 / 3,) * 3)
    return Head(kind, weight, random.normal(size=3), rule, np.ones(3), **hidden, **settings)


def features_of(pixels):
    """What the network gives for pixels in [0, 1], NHWC."""
    return expected_features(pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("kind", ["softmax", "logistic", "mlp", "several labels"])
@pytest.mark.parametrize("opset", [(9, 9), (17, 17), (11, 17)])
def test_the_model_gives_the_mean_over_members_and_views_at_the_temperature(place, kind, opset):
    multi_label = kind == "several labels"
    kind = "logistic" if multi_label else kind
    members, weights, sizes = [], (0.25, 0.75), (8, 12)
    for i, size in enumerate(sizes):
        write_network(place / f"net{size}.onnx", shape=("n", 3, size, size), opset=opset[i])
        module = probed(resolve(f"net{size}.onnx?value_range=0,1"))
        members.append(OnnxMember(module, a_head(kind, i, multi_label=multi_label), weights[i]))
    labels = {"multi_label": True, "thresholds": [0.5] * 3} if multi_label else {}
    write_onnx_export(members, NAMES, place / "export", labels, temperature=1.7, views=VIEWS)
    pixels = {
        size: np.random.default_rng(size).random((3, size, size, 3), dtype=np.float32)
        for size in sizes
    }
    expected = np.mean(
        [
            sum(
                m.weight * m.head.probabilities(features_of(view.of(pixels[m.module.image_size])))
                for m in members
            )
            for view in VIEWS
        ],
        axis=0,
    )
    export = Export.open(place / "export")
    runtime = open_runtime(export)
    assert runtime.name == "ONNX Runtime"
    assert np.abs(runtime(pixels) - at_temperature(expected, 1.7, multi_label)).max() < 1e-5
    assert export.n_views == 8
    assert "saved_model" not in "".join(export.manifest["files"])
    card = (place / "export" / "README.md").read_text()
    assert "- onnx\n" in card
    assert "SavedModel" not in card


def test_a_network_of_one_image_at_a_time_is_exported_for_any_number(place):
    write_network(place / "net.onnx", shape=(1, 3, 8, 8))
    module, head = probed(resolve("net.onnx?value_range=0,1")), a_head("softmax")
    write_onnx_export([OnnxMember(module, head)], NAMES, place / "export", {})
    pixels = np.random.default_rng(0).random((5, 8, 8, 3), dtype=np.float32)
    probs = open_runtime(Export.open(place / "export"))({8: pixels})
    assert np.abs(probs - head.probabilities(features_of(pixels))).max() < 1e-5
    with pytest.raises(EngineError, match="its export is ONNX alone; leave out `formats` litert"):
        write_onnx_export([OnnxMember(module, head)], NAMES, place / "e", {}, formats=["litert"])


def invoke(*arguments, code=0):
    ran = CliRunner().invoke(main, [str(a) for a in arguments])
    assert ran.exit_code == code, ran.output
    assert "Traceback" not in ran.output
    return ran


def test_an_onnx_module_goes_through_the_chain(place, small_module):
    write_digits(place / "data" / "digits", 90)
    write_network(place / "net.onnx")
    options = ("--value-range", 0, 1, "--mean", "0.5", "--std", "0.25")
    invoke("cache", "-m", "net.onnx", *options, "--views", 1, "--engine", "onnxruntime")
    again = invoke("cache", "-m", "net.onnx", "--views", 1)
    assert "13 features from 2 layers, 0 computed now" in again.output
    invoke("fit", "--heads", "softmax", "--no-learning-curve")
    run = Run("runs/digits")
    exported = invoke("export", "runs/digits")
    assert (
        "no SavedModel, no LiteRT: net is an ONNX module; ONNX Runtime runs it." in exported.output
    )
    rows = pd.read_csv(run.folds_file).head(12)
    head = ModuleHeads.load(run.checked_heads("net")).deployed
    with Bottlenecks("cache/digits/net.h5") as bottlenecks:
        features = bottlenecks.rows(list(rows["sha256"]), layers=head.layers)
    assert head.layers == ("/relu",)
    cached = head.probabilities(features)
    expected = at_temperature(cached, head.calibration.temperature)
    paths = [f"data/digits/{path}" for path in rows["path"]]
    given = [dict(of.classes) for of in predict_images("runs/digits/export", paths, 3)]
    probs = np.array([[of[name] for name in run.fit.class_names] for of in given])
    assert np.abs(probs - expected).max() < 1e-4
    with_views = invoke("export", "runs/digits", "--tta", 2)
    assert "averages over 2 views" in with_views.output
    assert "accuracy" in invoke("evaluate", "runs/digits", "data/digits").output
    refused = (
        "net is an ONNX module, which is run as it is: it can be cached, screened and exported"
    )
    assert refused in invoke("finetune", "runs/digits", "--epochs", 1, code=1).output
    assert refused in invoke("explain", "runs/digits", "--head", "net", paths[0], code=1).output
    shown = invoke("modules", "show", "net.onnx").output
    assert "put into NCHW" in shown
    assert "no: it is an ONNX module, which is run as it is" in shown
    invoke("cache", "-m", small_module, "--views", 1)
    fitted = invoke("fit", "--heads", "softmax", "--no-learning-curve").output
    assert set(Ensemble.load(run.checked_ensemble()).weights) == {"net", "small"}
    assert "Not to be exported: the ensemble joins ONNX modules (net) with others (small)" in fitted
    assert "export the head of one module by hubretrain export --head" in fitted


def test_an_ensemble_of_onnx_and_other_modules_is_known_to_have_no_export():
    attributes = {"module_sha256": "ab", "image_size": 8, "value_range": "[0, 1]", "n_views": 1}
    handles = {
        "net": "/a/net.onnx?mean=0.5",
        "url": "https://a/b.onnx",
        "timm": "timm:vit",
        "small": "modules/small",
    }
    modules = {
        name: ModuleRecord.of({**attributes, "module": name, "handle": handle})
        for name, handle in handles.items()
    }
    fit = fit_record(modules=modules, shortlist=("url", "net"))
    assert why_not_joined(fit, ["net", "url", "small"]) == (
        "the ensemble joins ONNX modules (net, url) with others (small), which no one model can "
        "hold; export the head of one module by `head`, of which url is the best, or fit an "
        "ensemble of modules of one kind."
    )
    assert not why_not_joined(fit, ["net", "url", "timm"])
    assert not why_not_joined(fit, ["small"])


def test_predicting_with_the_export_imports_neither_tensorflow_nor_onnx(place):
    write_network(place / "net.onnx")
    module = probed(resolve("net.onnx?value_range=0,1"))
    write_onnx_export([OnnxMember(module, a_head("softmax"))], NAMES, place / "export", {})
    (image,) = list(write_digits(place / "digits", 1, (0,)).rglob("*.png"))
    script = (
        "import sys\nfrom hubretrain import predict_images\n"
        f"(prediction,) = predict_images('export', [{str(image)!r}])\n"
        "print(len(prediction.classes), {'tensorflow', 'onnx'} & set(sys.modules))"
    )
    assert run_python(script) == "3 set()"
