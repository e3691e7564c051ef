"""A stored ONNX network as one graph, and what only running it tells: features, layers, costs."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hubretrain.errors import ModuleError
from hubretrain.modules.onnx.adapted import FEATURES, PIXELS, adapted
from hubretrain.modules.onnx.graphs import load, onnx
from hubretrain.modules.onnx.handles import MODEL
from hubretrain.modules.onnx.inner import inner_layers
from hubretrain.modules.onnx.network import (
    Description,
    read_description,
    run_on_noise,
)
from hubretrain.modules.onnx.outputs import n_parameters, needed_nodes
from hubretrain.modules.onnx.runtime import open_session
from hubretrain.modules.store import StoredModule, remember

_log = logging.getLogger(__name__)


def measured(stored: StoredModule) -> StoredModule:
    """Return an ONNX module with its number of features and its costs; it is run once on noise."""
    description = read_description(stored.folder)
    model = features_model(stored)
    features = run_on_noise(model, stored.image_size, stored.handle)
    if features.ndim != 2 or features.shape[0] != 2 or features.shape[1] < 1:
        raise ModuleError(
            f"{stored.handle} gives shape {features.shape} for 2 images; expected feature vectors, "
            "(2, n_features)."
        )
    if not np.isfinite(features).all():
        raise ModuleError(
            f"{stored.handle} gives NaN or infinite features for ordinary images; expected finite "
            "numbers. Its weights may be damaged, or its `value_range` another."
        )
    if description.notes:
        _log.info("%s: %s.", stored.name, ", ".join(description.notes))
    network = load(stored.folder / MODEL, stored.handle)
    image = replace(description.image, image_size=stored.image_size, value_range=stored.value_range)
    points, why_none = inner_layers(
        load(stored.folder / MODEL, stored.handle), image, description.output
    )
    if why_none:
        _log.info("%s offers its output only, no inner layers: %s", stored.name, why_none)
    found = replace(
        stored,
        n_features=int(features.shape[1]),
        n_parameters=n_parameters(network.graph, needed_nodes(network.graph, description.output)),
        gflops=gflops(network, stored.image_size, description),
        layer_points=points,
    )
    remember(found)
    return found


def features_model(
    module: StoredModule, layers: Sequence[str] = (), *, unit: bool = False, maps: bool = False
) -> Any:
    """Return a stored network as a model of `pixels` to `features`, see `adapted`.

    Args:
        module: The module.
        layers: Names of inner layers (`StoredModule.layer_points`) whose features are to follow.
        unit: Whether pixels are float32 in [0, 1], else uint8 levels.
        maps: Whether the layers' maps are to be outputs of their own instead.

    Raises:
        ModuleError: The files are damaged, or it has no such layer.
    """
    description, path = read_description(module.folder), module.folder / MODEL
    points = {point.name: point for point in module.layer_points or ()}
    if missing := [name for name in layers if name not in points]:
        raise ModuleError(
            f"{module.name} has no layer {missing[0]}; expected one of those that `hubretrain "
            f"modules show {module.name}` lists."
        )
    chosen = [points[name] for name in layers]
    image = replace(description.image, image_size=module.image_size, value_range=module.value_range)
    model, output = load(path, str(path)), description.output
    return adapted(model, image, output, description.pooling, chosen, unit=unit, maps=maps)


def notes_of(stored: StoredModule) -> list[str]:
    """Return what is done to an ONNX module's images and output, clauses."""
    return read_description(stored.folder).notes


def milliseconds_of(stored: StoredModule, seconds: float = 3.0) -> float:
    """Return the median time of an ONNX module for one image in ONNX Runtime on this machine.

    Args:
        stored: The module, probed.
        seconds: Time to measure for; at least three passes are made.
    """
    model = features_model(stored)
    session = open_session(model.SerializeToString())
    image = np.zeros((1, stored.image_size, stored.image_size, 3), np.uint8)
    session.run([FEATURES], {PIXELS: image})  # the first pass plans memory
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
        started = time.perf_counter()
        session.run([FEATURES], {PIXELS: image})
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def gflops(model: Any, image_size: int, description: Description) -> float | None:
    """Return 10^9 floating-point operations per image of convolutions and matrix products.

    A multiplication and an addition are two operations. None where shapes cannot be inferred.

    Args:
        model: The network.
        image_size: Height and width of its input, pixels.
        description: What is done around it.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    (given,) = (value for value in model.graph.input if value.name not in constants)
    _fix(given, image_size, description.image.layout)
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # it raises types of its own
        return None
    shape_of = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shape_of[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
    for node in inferred.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            shape_of[node.output[0]] = list(node.attribute[0].t.dims)
    n_operations = 0
    for node in needed_nodes(inferred, description.output):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        output, weight = shape_of.get(node.output[0]), shape_of.get(node.input[1])
        given_shape = shape_of.get(node.input[0])
        if not (output and weight and given_shape and all((*output, *weight, *given_shape))):
            return None
        if node.op_type == "Conv":
            n_products = math.prod(weight[1:])
        else:
            n_products = given_shape[0 if _is_transposed(node) else -1]
        n_operations += 2 * n_products * math.prod(output)
    return round(n_operations / 1e9, 6)


def _is_transposed(node: Any) -> bool:
    return any(attribute.name == "transA" and attribute.i for attribute in node.attribute)


def _fix(given: Any, size: int, layout: str) -> None:
    """Make the input's shape that of one image."""
    dims = given.type.tensor_type.shape.dim
    places = (0, 2, 3) if layout == "NCHW" else (0, 1, 2)
    for place, value in zip(places, (1, size, size), strict=True):
        if len(dims) == 4:
            dims[place].dim_value = value
