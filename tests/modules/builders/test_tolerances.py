"""The tolerance of other tests lets rounding pass, and no error of a network."""

from __future__ import annotations

import numpy as np
import pytest

from tests.modules.builders.networks import images_for, mobilenet, settled
from tests.tolerances import assert_same_features

import tf_keras  # isort: skip
from tf_keras import layers  # isort: skip


@pytest.fixture(scope="module")
def network() -> tf_keras.Model:
    return settled(mobilenet())


def altered(model: tf_keras.Model, change) -> tf_keras.Model:
    """A copy whose layers are made of the settings that `change` returns for each layer."""

    def copy(layer: layers.Layer) -> layers.Layer:
        return type(layer).from_config({**layer.get_config(), **change(layer)})

    other = tf_keras.models.clone_model(model, clone_function=copy)
    other.set_weights(model.get_weights())
    return other


def test_float32_differs_from_float64_by_no_more_than_rounding(network):
    images = images_for(network, 3)
    exact = altered(network, lambda _: {"dtype": "float64"})(images)
    assert np.asarray(exact).dtype == np.float64
    assert_same_features(network(images), exact, network.variables)


@pytest.mark.parametrize("epsilon", [1.1e-3, 1e-5])
def test_another_epsilon_of_the_batch_normalisations_is_an_error(network, epsilon):
    def change(layer):
        return {"epsilon": epsilon} if isinstance(layer, layers.BatchNormalization) else {}

    images = images_for(network, 3)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_features(altered(network, change)(images), network(images), network.variables)


@pytest.mark.parametrize("name", ["conv1_relu", "conv_pw_13_relu"])
def test_a_missing_layer_is_an_error(network, name):
    def change(layer):
        return {"negative_slope": 1.0} if layer.name == name else {}  # what is left is linear

    images = images_for(network, 3)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_features(altered(network, change)(images), network(images), network.variables)
