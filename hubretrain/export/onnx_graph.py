"""The exported graph of ONNX modules: pixels in, calibrated probabilities out, without TensorFlow.

What `graph` is for SavedModels: members, mean over views, temperature, with the same inputs and
outputs. Image files are decoded by who runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubretrain.evaluation import SMALLEST_COMPLEMENT, SMALLEST_PROBABILITY
from hubretrain.export.manifest import pixels_name
from hubretrain.export.views import AveragedView
from hubretrain.heads import Head
from hubretrain.modules import StoredModule
from hubretrain.modules.onnx import FEATURES, PIXELS, Builder, at_opset, features_model, opset_of


@dataclass(frozen=True)
class OnnxMember:
    """One head on an ONNX module.

    Attributes:
        module: The module.
        head: The head.
        weight: Weight of its probabilities in the mean; the weights of all members sum to 1.
    """

    module: StoredModule
    head: Head
    weight: float = 1.0


def serving_model(
    members: Sequence[OnnxMember],
    temperature: float,
    views: Sequence[AveragedView] = (AveragedView(),),
    *,
    multi_label: bool = False,
) -> Any:
    """Return the ONNX model of an export.

    Its inputs are `pixels`, or of several sizes `pixels_<size>` each, float32 (n_images, size,
    size, 3), RGB in [0, 1]. Its outputs are `probabilities` (n_images, n_classes), and
    `bottlenecks` (n_images, n_features), those of the image itself, of all members side by side.

    Args:
        members: The heads and their modules.
        temperature: Calibration temperature, see `hubretrain.evaluation.temperature`.
        views: Views whose probabilities are averaged, the image itself first.
        multi_label: Whether each probability is of its own, and rows do not sum to 1.

    Raises:
        ModuleError: A module is damaged, or of an older version of ONNX's operators than another
            and cannot be brought to that.
    """
    networks = [features_model(m.module, m.head.layers, unit=True) for m in members]
    sizes = sorted({member.module.image_size for member in members})
    names = {size: pixels_name(size, sizes) for size in sizes}
    opset = max(map(opset_of, networks))
    networks = [
        at_opset(network, opset, m.module.name)
        for m, network in zip(members, networks, strict=True)
    ]
    add = Builder(opset)
    viewed = {size: _viewed(add, names[size], size, views) for size in sizes}
    of_members, bottlenecks = [], []
    for i, (member, network) in enumerate(zip(members, networks, strict=True)):
        prefix = f"member_{i}/"
        add("Identity", viewed[member.module.image_size], output=prefix + PIXELS)
        add.embed(network, prefix)
        bottlenecks.append(prefix + FEATURES)
        probs = _probabilities(add, prefix + FEATURES, member.head, multi_label)
        of_members.append(_times(add, probs, member.weight))
    probs = of_members[0]
    for other in of_members[1:]:
        probs = add("Add", probs, other)
    features = add("Concat", *bottlenecks, axis=1)
    if len(views) > 1:
        probs = add.on_axes("ReduceMean", _by_view(add, probs, len(views)), [0], keepdims=0)
        of_views = _by_view(add, features, len(views))
        features = add("Gather", of_views, add.constant(np.int64(0)), axis=0)
    if temperature != 1:
        probs = _at_temperature(add, probs, temperature, multi_label)
    add("Identity", probs, output="probabilities")
    add("Identity", features, output="bottlenecks")
    inputs = {names[size]: ("n_images", size, size, 3) for size in sizes}
    return add.model(inputs, ["probabilities", "bottlenecks"])


def _viewed(add: Builder, pixels: str, size: int, views: Sequence[AveragedView]) -> str:
    """Add the views of pixels, one after the other along the first axis."""
    if len(views) == 1:
        return pixels
    return add("Concat", *(_of_view(add, pixels, size, view) for view in views), axis=0)


def _of_view(add: Builder, pixels: str, size: int, view: AveragedView) -> str:
    """Add one view of each image, as `AveragedView.of` does."""
    if view.area < 1:
        before, distance = view.positions(size)
        for axis in (1, 2):
            share = add.constant(distance.reshape((-1, 1, 1) if axis == 1 else (-1, 1)))
            first = add("Gather", pixels, add.constant(before), axis=axis)
            second = add("Gather", pixels, add.constant(before + 1), axis=axis)
            step = add("Mul", share, add("Sub", second, first))
            pixels = add("Add", first, step)
    backwards = add.constant(np.arange(size - 1, -1, -1, dtype=np.int64))
    if view.mirror:
        pixels = add("Gather", pixels, backwards, axis=2)
    if view.quarter_turns % 2:
        pixels = add("Transpose", pixels, perm=[0, 2, 1, 3])
    for axis in [[], [1], [1, 2], [2]][view.quarter_turns]:
        pixels = add("Gather", pixels, backwards, axis=axis)
    return pixels


def _probabilities(add: Builder, features: str, head: Head, multi_label: bool) -> str:
    """Add a head, as `hubretrain.modules.Classifier` computes it."""

    def dense(given: str, weight: Any, bias: Any) -> str:
        product = add("MatMul", given, add.constant(np.asarray(weight, np.float32)))
        return add("Add", product, add.constant(np.asarray(bias, np.float32)))

    if head.hidden_weight is not None:
        features = add("Relu", dense(features, head.hidden_weight, head.hidden_bias))
    logits = dense(features, head.weight, head.bias)
    if head.kind != "logistic" and not multi_label:
        return add("Softmax", logits, axis=1)
    scores = add("Sigmoid", logits)
    return scores if multi_label else add("Div", scores, add.on_axes("ReduceSum", scores, [1]))


def _times(add: Builder, given: str, weight: float) -> str:
    return given if weight == 1 else add("Mul", given, add.constant(np.float32(weight)))


def _by_view(add: Builder, given: str, n_views: int) -> str:
    """Add the rows of views along an axis of their own, the first; columns stay."""
    last = add("Shape", given)
    n_columns = add.on_axes("Unsqueeze", add("Gather", last, add.constant(np.int64(1))), [0])
    shape = add("Concat", add.constant(np.array([n_views, -1], np.int64)), n_columns, axis=0)
    return add("Reshape", given, shape)


def _at_temperature(add: Builder, probs: str, temperature: float, multi_label: bool) -> str:
    """Add the temperature, as `hubretrain.evaluation.at_temperature` applies it."""
    smallest = add.constant(np.float32(SMALLEST_PROBABILITY))
    logits = add("Log", add("Max", probs, smallest))
    if multi_label:
        complement = add("Sub", add.constant(np.float32(1)), probs)
        least = add.constant(np.float32(SMALLEST_COMPLEMENT))
        logits = add("Sub", logits, add("Log", add("Max", complement, least)))
    logits = add("Div", logits, add.constant(np.float32(temperature)))
    return add("Sigmoid", logits) if multi_label else add("Softmax", logits, axis=1)
