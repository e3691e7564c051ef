"""Inner layers of ONNX modules: which are found, and their statistics against NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.extraction.engines import open_engine
from hubretrain.files import write_record
from hubretrain.modules import find_stored, resolve
from hubretrain.modules.onnx import features_model, probed
from tests.modules.onnx.samples import expected_features, expected_maps, write_network

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
X = PIXELS.transpose(0, 3, 1, 2) / 255
N_TOKENS, WIDTH = 17, 6


def statistics(maps, axes=(2, 3)):
    """Mean and deviation over positions, as `spatial_statistics` documents them."""
    mean, variance = maps.mean(axes), maps.var(axes)
    floor = 1e-4 * (variance + mean**2) + 1e-12
    return np.concatenate([mean, np.sqrt(variance + floor)], axis=1)


def run(module, engine, layers):
    with open_engine(module, engine, layers=layers) as opened:
        return opened(list(PIXELS))


def close(given, expected, tolerance=1e-5):
    assert given.shape == expected.shape
    return np.abs(given - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("shape", "dtype", "opset", "tolerance"),
    [
        (("n", 3, 8, 8), "FLOAT", 9, 1e-5),
        (("n", 3, 8, 8), "FLOAT", 18, 1e-5),
        (("n", 3, "h", "w"), "FLOAT", 17, 1e-5),
        (("n", 8, 8, 3), "FLOAT", 17, 1e-5),
        ((1, 3, 8, 8), "FLOAT", 17, 1e-5),
        (("n", 3, 8, 8), "FLOAT16", 17, 5e-3),
    ],
    ids=["opset 9", "opset 18", "any size", "nhwc", "one by one", "float16"],
)
def test_a_layer_is_averaged_as_in_a_savedmodel(place, engine, shape, dtype, opset, tolerance):
    pytest.importorskip(engine)
    write_network(place / "net.onnx", shape=shape, dtype=dtype, opset=opset)
    size = "&image_size=8" if "h" in shape else ""
    module = probed(resolve(f"net.onnx?value_range=0,1{size}"))
    (point,) = module.layer_points
    assert (point.name, point.height, point.width, point.n_channels) == ("/relu", 8, 8, 4)
    expected = np.concatenate([expected_features(X), statistics(expected_maps(X))], axis=1)
    assert close(run(module, engine, ["/relu"]), expected, tolerance)


def write_transformer(path, *, n_blocks=2):
    """A transformer of one head, as PyTorch exports DINOv2: class token, blocks, normalisation."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(3)
    weights, nodes = {}, []

    def weight(name, *shape):
        weights[name] = random.normal(0, 0.4, shape).astype(np.float32)
        return name

    def node(op, *inputs, name, **attributes):
        nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def dense(x, name, n_in, n_out):
        product = node("MatMul", x, weight(f"{name}.w", n_in, n_out), name=f"{name}/matmul")
        return node("Add", weight(f"{name}.b", n_out), product, name=f"{name}/add")

    def norm(x, name):
        scale, bias = weight(f"{name}.scale", WIDTH), weight(f"{name}.bias", WIDTH)
        return node("LayerNormalization", x, scale, bias, name=name)

    maps = node(
        "Conv", "images", weight("patch.w", WIDTH, 3, 2, 2), name="/patches", strides=[2, 2]
    )
    batch = node("Gather", node("Shape", maps, name="/shape"), "zero", name="/n", axis=0)
    batch = node("Unsqueeze", batch, "zeros", name="/n1")
    rows = node("Concat", batch, "width", "rest", name="/rows_shape", axis=0)
    rows = node("Reshape", maps, rows, name="/rows")
    patches = node("Transpose", rows, name="/tokens", perm=[0, 2, 1])
    shape = node("Concat", batch, "ones", "width", name="/cls_shape", axis=0)
    token = node("Expand", weight("cls", 1, 1, WIDTH), shape, name="/cls")
    x = node("Concat", token, patches, name="/all", axis=1)
    x = node("Add", x, weight("positions", 1, N_TOKENS, WIDTH), name="/embedded")
    for i in range(n_blocks):
        n = norm(x, f"/{i}/norm1")
        q, k, v = (dense(n, f"/{i}/{part}", WIDTH, WIDTH) for part in "qkv")
        k = node("Transpose", k, name=f"/{i}/kt", perm=[0, 2, 1])
        scores = node("Softmax", node("MatMul", q, k, name=f"/{i}/qk"), name=f"/{i}/p", axis=-1)
        mixed = node("MatMul", scores, v, name=f"/{i}/mixed")
        x = node("Add", x, dense(mixed, f"/{i}/proj", WIDTH, WIDTH), name=f"/{i}/attended")
        hidden = dense(norm(x, f"/{i}/norm2"), f"/{i}/fc1", WIDTH, 4 * WIDTH)
        erf = node("Erf", node("Div", hidden, "root", name=f"/{i}/d"), name=f"/{i}/erf")
        gelu = node("Mul", hidden, node("Add", erf, "one", name=f"/{i}/1"), name=f"/{i}/gelu")
        x = node("Add", x, dense(gelu, f"/{i}/fc2", 4 * WIDTH, WIDTH), name=f"/{i}/block")
    norm(x, "last_hidden_state")
    constants = {
        **weights,
        "zero": np.array(0),
        "zeros": np.array([0]),
        "ones": np.array([1]),
        "width": np.array([WIDTH]),
        "rest": np.array([-1]),
        "root": np.float32(2**0.5),
        "one": np.float32(1),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "torch_jit",
        [value("images", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [value("last_hidden_state", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    save(model, str(path))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_layers_of_a_transformer_are_its_blocks(place, engine):
    pytest.importorskip(engine)
    write_transformer(place / "net.onnx")
    module = probed(resolve("net.onnx?value_range=0,1"))
    points = [(p.name, p.height, p.width, p.n_channels) for p in module.layer_points]
    assert points == [("/0/block", 17, 1, 6), ("/1/block", 17, 1, 6)]
    given = run(module, engine, ["/0/block", "/1/block"])
    import onnxruntime

    from hubretrain.modules.onnx.graphs import load

    model = load(place / "net.onnx", "net.onnx")
    for name in ("/0/block", "/1/block"):
        model.graph.output.add().name = name
    session = onnxruntime.InferenceSession(model.SerializeToString())
    output, *tokens = session.run(None, {"images": X.astype(np.float32)})
    expected = [output[:, 0], *(statistics(t, (1,)) for t in tokens)]
    assert close(given, np.concatenate(expected, axis=1), 1e-4)


def test_a_network_without_maps_offers_its_output_alone_and_says_why(place, caplog):
    def no_activation(model):
        model.graph.node[2].op_type = "Identity"

    write_network(place / "net.onnx", more=no_activation)
    with caplog.at_level("INFO"):
        assert probed(resolve("net.onnx?value_range=0,1")).layer_points == ()
    (line,) = [message for message in caplog.messages if "inner layers" in message]
    assert line.endswith("offers its output only, no inner layers: its graph holds no feature maps")


def test_layers_are_sought_in_a_module_that_was_stored_before_they_were(place):
    write_network(place / "net.onnx")
    stored = probed(resolve("net.onnx?value_range=0,1"))
    path = stored.folder / "module.json"
    values = json.loads(path.read_text())
    del values["layers_sought"], values["record_sha256"]
    write_record(path, {**values, "layer_points": []}, "record_sha256")
    assert find_stored("net").layer_points is None
    assert probed(resolve("net.onnx")) == stored


def test_a_layer_that_is_not_there_is_refused(place):
    write_network(place / "net.onnx")
    module = probed(resolve("net.onnx?value_range=0,1"))
    with pytest.raises(ModuleError, match=r"net has no layer /conv7; expected one of those"):
        features_model(module, ["/conv7"])
