from __future__ import annotations

import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.dataset import open_dataset
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.modules import resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.complexity import complexity
from hubretrain.tensorflow import tf
from tests.samples import write_module

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)


def test_a_multiplication_and_an_addition_are_two_operations():
    kernel = tf.Variable(tf.zeros((3, 3, 3, 8)))
    dense = tf.Variable(tf.zeros((8, 20)))
    steps = tf.Variable(0)  # no parameter: it counts

    def features(images):
        x = tf.nn.conv2d(images, kernel, 2, "SAME")
        return tf.reshape(x, (-1, 8)) @ dense + tf.cast(steps, tf.float32)

    counted = complexity(features, 16)
    assert counted.n_parameters == 3 * 3 * 3 * 8 + 8 * 20
    convolution, product, sums = 2 * 8 * 8 * 27 * 8, 2 * 64 * 8 * 20, 64 * 20
    assert counted.gflops == pytest.approx((convolution + product + sums) / 1e9, abs=1e-6)


def test_a_dense_layer_of_a_map_and_grouped_convolutions_and_attention_are_counted():
    inputs = tf_keras.Input((None, None, 6))
    x = tf_keras.layers.Conv2D(12, 3, padding="same", groups=3)(inputs)  # which XLA is to compile
    x = tf_keras.layers.Dense(20)(x)
    model = tf_keras.Model(inputs, x)
    kernel = tf.zeros((20, 4, 5))

    def features(images):
        tokens = tf.reshape(model(tf.concat([images, images], 3)), (-1, 64, 20))
        heads = tf.einsum("ntc,chd->nhtd", tokens, kernel)
        return tf.reduce_sum(heads @ tf.transpose(heads, (0, 1, 3, 2)), (1, 2))

    convolution = 64 * 12 * (2 * 9 * 2 + 1)  # the bias is an addition
    dense = 64 * 20 * (2 * 12 + 1)
    products = 2 * 64 * 20 * 4 * 5 + 2 * 4 * 64 * 64 * 5
    sums = 4 * 64 * 64
    counted = complexity(features, 8)
    assert counted.gflops == pytest.approx(
        (convolution + dense + products + sums) / 1e9, abs=1.1e-6
    )


def test_parameters_are_those_that_keras_counts():
    model = tf_keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False, pooling="avg", input_shape=(96, 96, 3)
    )
    counted = complexity(model, 96)
    assert counted.n_parameters == model.count_params() == 410_208
    # 11 million multiply-adds: the table at https://github.com/tensorflow/models/tree/master/
    # research/slim/nets/mobilenet, "mobilenet_v2_0.35_96", of which 1.3 are its classifier's.
    assert counted.gflops / 2 == pytest.approx(0.011 - 0.0013, rel=0.15)


def test_a_graph_that_cannot_be_counted_has_parameters_all_the_same():
    kernel = tf.Variable(tf.zeros((3, 2)))

    def features(images):
        return tf.reduce_mean(images, (1, 2)) @ tf.py_function(lambda: kernel, [], tf.float32)

    assert complexity(features, 8).n_parameters in (0, 6)


def test_a_bottleneck_file_says_what_its_module_costs_and_an_older_one_is_told(tmp_path, digits):
    folder = write_module(tmp_path / "small")
    data, cache = open_dataset(digits), tmp_path / "cache"
    module = Backbone(resolve(str(folder))).stored
    assert (module.n_parameters, module.gflops) == (3 * 3 * 3 * 8 + 32 * 5, 7e-06)
    older = dict(module.__dict__, n_parameters=0, gflops=None)
    (cached,) = cache_bottlenecks(data, [type(module)(**older)], CacheOptions(1), cache=cache)
    with Bottlenecks(cached.file) as file:
        assert "gflops" not in file.attributes
    (cached,) = cache_bottlenecks(data, [resolve(str(folder))], CacheOptions(1), cache=cache)
    assert cached.n_computed == 0
    with Bottlenecks(cached.file) as file:
        assert (file.attributes["n_parameters"], file.attributes["gflops"]) == (376, 7e-06)


@pytest.fixture
def digits(tmp_path):
    from tests.samples import write_digits

    return write_digits(tmp_path / "digits", 12)
