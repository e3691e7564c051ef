"""Keras networks with random weights, whose features are of ordinary size."""

from __future__ import annotations

from hubretrain.tensorflow import tf

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)
from tf_keras import layers  # isort: skip


def mobilenet() -> tf_keras.Model:
    return tf_keras.applications.MobileNet(
        alpha=0.25, weights=None, include_top=False, pooling="avg", input_shape=(64, 64, 3)
    )


def dense_net() -> tf_keras.Model:
    """Any image size, slashes in names and branches as in DenseNet; swish, dropout, penalties."""
    images = layers.Input((None, None, 3), name="images")
    penalty = tf_keras.regularizers.L2(0.01)
    x = layers.Conv2D(8, 3, strides=2, kernel_regularizer=penalty, name="stem/conv")(images)
    # Swish has a gradient of its own, which a SavedModel has to bring along.
    x = layers.Activation("swish", name="stem/swish")(x)
    new = layers.BatchNormalization(name="block1/bn")(x)
    new = layers.Conv2D(8, 1, kernel_regularizer=penalty, name="block1/conv")(new)
    x = layers.Concatenate(name="block1/concat")([x, new])
    x = layers.Dropout(0.5, name="dropout")(x)
    return tf_keras.Model(images, layers.GlobalAveragePooling2D(name="pool")(x), name="dense_net")


def settled(model: tf_keras.Model) -> tf_keras.Model:
    """Sets the moving averages to a batch's, since random layers otherwise fade to 1e-15."""
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images_for(model, 8), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def images_for(model: tf_keras.Model, n: int, seed: int = 0) -> tf.Tensor:
    height, width = (length or 48 for length in model.input_shape[1:3])
    return tf.random.stateless_uniform((n, height, width, 3), (seed, 1))
