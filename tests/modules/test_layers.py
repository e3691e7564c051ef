from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubretrain.errors import ModuleError
from hubretrain.modules import resolve
from hubretrain.modules.layers import MAX_FEATURES, LayerPoint, choose_layers
from tests.samples import write_residual
from tests.tolerances import EPSILON, assert_same_features


def point(edge=7, n_channels=10, name="relu"):
    return LayerPoint(name, edge, edge, n_channels)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    from hubretrain.modules.backbone import Backbone

    return Backbone(resolve(str(write_residual(tmp_path_factory.mktemp("layers") / "residual"))))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((4, 16, 16, 3), dtype=np.float32)


def test_large_maps_are_left_out_unless_there_are_no_others():
    points = [point(edge) for edge in (112, 56, 45, 44, 28, 7)]
    assert [p.height for p in choose_layers(points, "all", 10, 224)] == [44, 28, 7]
    assert [p.height for p in choose_layers(points, "all", 10, 96)] == [28, 7]
    assert [p.height for p in choose_layers(points[:2], "all", 10, 224)] == [112, 56]


def test_no_layers_are_chosen_for_the_last_alone_or_where_there_are_none():
    assert choose_layers([point()], "last", 10, 224) == ()
    assert choose_layers([], "all", 10, 224) == ()
    assert choose_layers([point(n_channels=8192)], "all", 1, 224) == ()


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=40),
    st.integers(1, 4096),
    st.one_of(st.just("all"), st.integers(1, 50)),
)
def test_layers_keep_the_budget_are_even_over_depth_and_end_with_the_last(widths, n_output, asked):
    points = [point(n_channels=n, name=str(i)) for i, n in enumerate(widths)]
    chosen = choose_layers(points, asked, n_output, 224)
    assert n_output + sum(p.n_features for p in chosen) <= MAX_FEATURES
    assert chosen[-1] == points[-1]  # 2 * 3000 + 4096 fit
    positions = [int(p.name) for p in chosen]
    steps = {b - a for a, b in itertools.pairwise([-1, *positions])}
    assert max(steps) - min(steps) <= 1
    if asked != "all":
        assert len(chosen) <= asked


def test_statistics_are_those_of_numpy_with_a_floor():
    from hubretrain.modules import spatial_statistics

    maps = np.random.default_rng(0).normal(3, 2, (5, 4, 6, 7)).astype(np.float32)
    means, deviations = np.split(spatial_statistics(maps).numpy(), 2, axis=1)
    exact = maps.astype(np.float64)
    assert np.allclose(means, exact.mean((1, 2)), rtol=0, atol=24 * EPSILON * np.abs(maps).max())
    expected = np.sqrt(exact.var((1, 2)) + 1e-4 * (exact**2).mean((1, 2)))
    assert np.allclose(deviations, expected, rtol=24 * EPSILON)


def test_a_constant_map_has_a_deviation_of_one_per_cent_and_a_finite_gradient():
    from hubretrain.modules import spatial_statistics
    from hubretrain.tensorflow import tf

    maps = tf.constant(np.broadcast_to(np.float32([0, 5]), (1, 3, 3, 2)))
    with tf.GradientTape() as tape:
        tape.watch(maps)
        statistics = spatial_statistics(maps)
    assert np.allclose(statistics, [[0, 5, 1e-6, 0.05]], rtol=1e-5)
    assert np.isfinite(tape.gradient(statistics, maps)).all()


def test_the_layers_of_a_residual_network_are_its_expansion_and_its_ends(residual):
    points = residual.stored.layer_points
    assert [p.name for p in points] == [
        "residual/stem_relu/Relu6",
        "residual/block_relu/Relu6",
        "residual/head_relu/Relu6",
    ]
    assert [(p.height, p.width, p.n_channels) for p in points] == [(8, 8, 6), (8, 8, 8), (8, 8, 10)]
    assert resolve(residual.stored.handle).layer_points == points  # kept with the probe


def test_features_are_the_output_and_then_the_statistics_of_each_layer(residual, images):
    import tf_keras

    from hubretrain.modules import Backbone, spatial_statistics

    names = [p.name for p in residual.stored.layer_points]
    backbone = Backbone(residual.stored, names)
    features = backbone(images).numpy()
    assert features.shape == (4, backbone.n_features) == (4, 10 + 2 * (6 + 8 + 10))
    assert np.array_equal(features[:, :10], residual(images))
    assert_same_features(features[:, -20:-10], residual(images), residual.variables)
    values = {v.name: v.numpy() for v in residual.variables}

    x = tf_keras.layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)
    x.build((None, 16, 16, 3))
    x.set_weights([values["stem_conv/kernel:0"]])
    stem = np.clip(x(images) / np.float32(np.sqrt(1 + 1e-3)), 0, 6)
    assert_same_features(features[:, 10:22], spatial_statistics(stem), residual.variables)


def test_gradients_reach_the_layers(residual, images):
    from hubretrain.modules import Backbone
    from hubretrain.tensorflow import tf

    names = [p.name for p in residual.stored.layer_points]
    backbone = Backbone(residual.stored, names[:1])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(backbone(images)[:, 10:])
    gradients = tape.gradient(loss, backbone.trainable_variables)
    reached = {
        v.name.split("/")[0]
        for v, g in zip(backbone.trainable_variables, gradients, strict=True)
        if g is not None and np.abs(g).max() > 0
    }
    assert reached == {"stem_conv", "stem_bn"}


def test_an_unknown_layer_is_an_error(residual):
    from hubretrain.modules import Backbone

    with pytest.raises(ModuleError, match=r"residual has no layer nowhere; expected one of"):
        Backbone(residual.stored, ["nowhere"])


def test_batchnorm_is_trained_with_layers_as_without(tmp_path, images):
    from hubretrain.modules import Backbone

    folder = str(write_residual(tmp_path / "residual"))
    plain, other = Backbone(resolve(folder)), Backbone(resolve(folder))
    names = [p.name for p in other.stored.layer_points]
    whole = Backbone(other.stored, names)
    features = whole(images, training=True)
    assert_same_features(features[:, :10], plain(images, training=True), plain.variables)
    for mine, other in zip(whole.variables, plain.variables, strict=True):
        assert np.allclose(mine, other, rtol=1e-5, atol=1e-6)
    assert any("moving" in v.name and np.abs(v).max() > 0 for v in whole.variables)


def test_a_replica_has_variables_of_its_own_and_the_same_features(residual, images):
    from hubretrain.modules import Backbone, Classifier
    from hubretrain.tensorflow import tf

    names = [p.name for p in residual.stored.layer_points]
    random = np.random.default_rng(2)
    shapes = ((7, 3), (3,), (58, 7), (7,))
    values = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    classifier = Classifier(Backbone(residual.stored, names), "mlp", *values)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        replica = classifier.replica()
    assert len(replica.head_variables) == 4
    expected = classifier.probabilities(images)
    assert np.allclose(replica.probabilities(images), expected, rtol=1e-5, atol=1e-6)
    weight, bias, hidden_weight, hidden_bias = values
    features = classifier.backbone(images).numpy().astype(np.float64)
    logits = np.maximum(features @ hidden_weight + hidden_bias, 0) @ weight + bias
    exact = np.exp(logits - logits.max(1, keepdims=True))
    assert np.allclose(expected, exact / exact.sum(1, keepdims=True), rtol=1e-3, atol=1e-5)


def test_a_module_in_tensorflow_1_format_has_layers_too(tmp_path):
    from hubretrain.modules import Backbone, spatial_statistics
    from hubretrain.tensorflow import tf
    from tests.modules.test_backbone import SIZE, write_tf1_module

    stored = Backbone(resolve(str(write_tf1_module(tmp_path / "tf1")))).stored
    (relu,) = stored.layer_points
    assert (relu.height, relu.n_channels) == (SIZE // 2, 6)
    backbone = Backbone(stored, [relu.name])
    images = np.random.default_rng(1).random((2, SIZE, SIZE, 3), dtype=np.float32)
    kernel = np.random.default_rng(0).normal(0, 0.3, (3, 3, 3, 6)).astype(np.float32)
    maps = tf.nn.relu(tf.nn.conv2d(images, kernel, 2, "SAME"))
    expected = tf.concat([tf.reduce_mean(maps, (1, 2)), spatial_statistics(maps)], 1)
    assert_same_features(backbone(images), expected, [kernel])
