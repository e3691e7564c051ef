"""Small ONNX files as other tools write them, and what they compute, by NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
N_MAPS, N_FEATURES = 4, 5


def weights(n_channels: int = 3) -> dict[str, np.ndarray]:
    """The weights of the network that `write_network` writes, named as PyTorch names them."""
    random = np.random.default_rng(5)
    shapes = {
        "conv1.weight": (N_MAPS, n_channels, 3, 3),
        "conv1.bias": (N_MAPS,),
        "fc.weight": (N_FEATURES, N_MAPS),
        "fc.bias": (N_FEATURES,),
    }
    return {name: random.normal(0, 0.3, shape) for name, shape in shapes.items()}


def expected_maps(x: np.ndarray) -> np.ndarray:
    """The network's maps (n, N_MAPS, height, width) of its input in NCHW."""
    kernel = weights(x.shape[1])
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
    )
    maps = np.einsum("nchwij,ocij->nohw", windows, kernel["conv1.weight"])
    return np.maximum(maps + kernel["conv1.bias"][:, None, None], 0)


def expected_features(x: np.ndarray) -> np.ndarray:
    """The network's features (n, N_FEATURES) of its input in NCHW."""
    kernel = weights(x.shape[1])
    return expected_maps(x).mean((2, 3)) @ kernel["fc.weight"].T + kernel["fc.bias"]


def standardised(pixels: np.ndarray) -> np.ndarray:
    """Levels (n, height, width, 3) as PyTorch's networks take them, in NCHW."""
    x = (pixels / 255 - IMAGENET["mean"]) / IMAGENET["std"]
    return x.transpose(0, 3, 1, 2)


def write_network(
    path: Path,
    *,
    shape: tuple[Any, ...] = ("n", 3, 8, 8),
    dtype: str = "FLOAT",
    opset: int = 17,
    ends: tuple[tuple[str, str], ...] = (("features", "vector"),),
    metadata: dict[str, str] | None = None,
    more: Any = None,
    data_file: str = "",
) -> Path:
    """A convolution and a dense layer, as PyTorch exports them.

    `ends`: name and kind (`vector`, `map`, `tokens`, `softmax`) of each output. `more` changes the
    model before it is saved. With `data_file` its weights are there.
    """
    import onnx
    from onnx import helper

    kind = getattr(onnx.TensorProto, dtype)
    inner = kind if dtype in ("FLOAT16", "DOUBLE") else onnx.TensorProto.FLOAT
    number = helper.tensor_dtype_to_np_dtype(inner)
    n_channels = shape[1] if isinstance(shape[1], int) and shape[1] in (1, 3) else 3
    is_last = len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)
    tensors = [
        onnx.numpy_helper.from_array(value.astype(number), name)
        for name, value in weights(n_channels).items()
    ]
    nodes = [helper.make_node("Cast", ["images"], ["/cast"], to=inner)]
    before = "/cast"
    if is_last:
        nodes.append(helper.make_node("Transpose", [before], ["/nchw"], perm=[0, 3, 1, 2]))
        before = "/nchw"
    nodes += [
        helper.make_node(
            "Conv", [before, "conv1.weight", "conv1.bias"], ["/conv1"], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["/conv1"], ["/relu"]),
        helper.make_node("GlobalAveragePool", ["/relu"], ["/pool"]),
        helper.make_node("Flatten", ["/pool"], ["/flat"]),
        helper.make_node("Gemm", ["/flat", "fc.weight", "fc.bias"], ["/fc"], transB=1),
    ]
    if any(kind == "tokens" for _, kind in ends):
        tensors.append(onnx.numpy_helper.from_array(np.array([0, N_MAPS, -1], np.int64), "shape"))
        nodes.append(helper.make_node("Reshape", ["/relu", "shape"], ["/rows"]))
        nodes.append(helper.make_node("Transpose", ["/rows"], ["/tokens"], perm=[0, 2, 1]))
    made = {"vector": "/fc", "map": "/relu", "tokens": "/tokens"}
    for name, end in ends:
        op = "Softmax" if end == "softmax" else "Identity"
        nodes.append(helper.make_node(op, [made.get(end, "/fc")], [name]))
    n_axes = {"map": 4, "tokens": 3}
    graph = helper.make_graph(
        nodes,
        "torch_jit",
        [helper.make_tensor_value_info("images", kind, shape)],
        [
            helper.make_tensor_value_info(name, inner, [None] * n_axes.get(end, 2))
            for name, end in ends
        ],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    helper.set_model_props(model, metadata or {})
    if more is not None:
        more(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model,
        str(path),
        save_as_external_data=bool(data_file),
        location=data_file or None,
        size_threshold=0,
    )
    return path
