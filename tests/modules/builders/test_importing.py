"""Models of other libraries as modules.

The slow ones need a Python that has the library: HUBRETRAIN_KERAS_HUB or HUBRETRAIN_TIMM names it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import ImportOptions, import_module, resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.onnx import FEATURES, PIXELS, features_model, open_session, probed
from hubretrain.tensorflow import tf

PRESET = """
import os, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras, keras_hub, numpy as np
keras.utils.set_random_seed(1)
levels = np.load("levels.npy")
kind, size = sys.argv[1], levels.shape[1]
if kind == "dinov2":
    backbone = keras_hub.models.DINOV2Backbone(
        patch_size=14, num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64,
        image_shape=(size, size, 3),
    )
    converter = keras_hub.layers.DINOV2ImageConverter
else:
    backbone = keras_hub.models.ResNetBackbone(
        [64], [7], [64, 128], [1, 1], [1, 2], "basic_block", image_shape=(None, None, 3)
    )
    converter = keras_hub.layers.ResNetImageConverter
converter = converter(
    image_size=(size, size), scale=[0.017, 0.018, 0.019], offset=[-2.1, -2.0, -1.8]
)
backbone.save_to_preset("preset")
converter.save_to_preset("preset")
features = np.asarray(backbone(converter(levels)))
np.save("features.npy", features[:, 0] if kind == "dinov2" else features.mean((1, 2)))
"""
OF_TORCH = """
import sys, numpy as np, timm, torch
torch.manual_seed(0)
network = timm.create_model(sys.argv[1], pretrained=False, num_classes=0).eval()
config = timm.data.resolve_data_config({}, model=network)
pixels = (np.load("pixels.npy") - config["mean"]) / config["std"]
with torch.no_grad():
    features = network(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))
np.save("features.npy", features.numpy())
"""


def python_with(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no Python")
    return Path(os.environ[variable])


def run(python: Path, folder: Path, script: str, *arguments: str) -> None:
    subprocess.run([python, "-I", "-c", script, *arguments], cwd=folder, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
def test_a_preset_of_keras_hub_gives_its_pooled_features_and_trains(kind, tmp_path):
    python = python_with("HUBRETRAIN_KERAS_HUB")
    levels = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3)).astype(np.float32)
    np.save(tmp_path / "levels.npy", levels)
    run(python, tmp_path, PRESET, kind)
    source = f"keras-hub:{tmp_path / 'preset'}"
    backbone = Backbone(import_module(source, kind, ImportOptions(python)))
    assert backbone.stored.image_size == 56
    images = tf.constant(levels / 255)
    expected = np.load(tmp_path / "features.npy")
    np.testing.assert_allclose(backbone(images), expected, rtol=0, atol=1e-4 * expected.max())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(backbone(images, training=True) ** 2)
    gradients = tape.gradient(loss, backbone.trainable_variables)
    assert sum(g is not None for g in gradients) >= len(gradients) - 1  # DINOv2 has a mask token
    assert len(backbone.layers()) > 5
    assert resolve(kind).sha256 == backbone.stored.sha256
    control = import_module(source, kind, ImportOptions(python, random_weights=True))
    assert control.name == f"{kind}_random"
    assert control.sha256 != backbone.stored.sha256


@pytest.mark.slow
@pytest.mark.parametrize("model", ["convnext_atto", "tf_efficientnetv2_b0", "vit_tiny_patch16_224"])
def test_a_model_of_timm_gives_the_features_that_pytorch_computes(model, tmp_path):
    python = python_with("HUBRETRAIN_TIMM")
    module = probed(
        import_module(f"timm:{model}", model, ImportOptions(python, random_weights=True))
    )
    size = module.image_size
    pixels = np.random.default_rng(0).random((2, size, size, 3), dtype=np.float32)
    np.save(tmp_path / "pixels.npy", pixels)
    run(python, tmp_path, OF_TORCH, model)
    expected = np.load(tmp_path / "features.npy")
    network = features_model(module, unit=True)
    session = open_session(network.SerializeToString())
    (features,) = session.run([FEATURES], {PIXELS: pixels})
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_an_import_that_cannot_be_is_one_sentence(tmp_path, monkeypatch):
    here = ImportOptions(Path(sys.executable))
    with pytest.raises(
        ModuleError, match=r"'torch:resnet50' is no model that can be imported; exp"
    ):
        import_module("torch:resnet50", "mine", here)
    for name in ("vgg16", "../mine", ""):
        with pytest.raises(ModuleError, match=r"cannot be the name of an imported module"):
            import_module("timm:resnet50", name, here)
    with pytest.raises(
        ModuleError, match=r"keras-hub:x could not be made by .*No module named 'ker"
    ):
        import_module("keras-hub:x", "mine", here)
    with pytest.raises(
        ModuleError, match=r"no/where cannot be imported: /.*/no/where is no folder"
    ):
        import_module("keras-hub:no/where", "mine")  # before minutes of installation
    with pytest.raises(
        ModuleError, match=r"cannot be imported: .* holds no config\.json; expected"
    ):
        import_module(f"timm:{tmp_path}", "mine")
    with pytest.raises(
        ModuleError, match=r"nowhere cannot be run \(No such file or directory\)\.$"
    ):
        import_module("timm:x", "mine", ImportOptions(tmp_path / "nowhere"))
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "1")
    with pytest.raises(ModuleError, match=r"timm:x cannot be imported, because the network is not"):
        import_module("timm:x", "mine", here)
    with pytest.raises(
        ModuleError, match=r"holds no environment with timm, and the network is not"
    ):
        import_module("timm:x", "mine", ImportOptions(random_weights=True))
    with pytest.raises(ModuleError, match=r"run `hubretrain modules import timm:x NAME`, and name"):
        resolve("timm:x")
