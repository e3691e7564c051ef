from __future__ import annotations

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import resolve
from tests.samples import write_module


@pytest.fixture(scope="module")
def backbone(small_module):
    from hubretrain.modules.backbone import Backbone

    return Backbone(resolve(str(small_module)))


def of_kind(backbone, kind, *, multi_label=False):
    from hubretrain.modules.classifier import Classifier

    random = np.random.default_rng(0)
    weight = random.normal(size=(5, 3)).astype(np.float32)
    return Classifier(backbone, kind, weight, np.zeros(3, np.float32), multi_label=multi_label)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_one_of_keras(backbone, kind, smoothing):
    import tf_keras

    random = np.random.default_rng(1)
    logits = random.normal(size=(8, 3)).astype(np.float32)
    labels, weights = random.integers(0, 3, 8), random.random(8).astype(np.float32)
    loss = of_kind(backbone, kind).loss(logits, labels, weights, smoothing)
    keras = (
        tf_keras.losses.CategoricalCrossentropy
        if kind == "softmax"
        else tf_keras.losses.BinaryCrossentropy
    )
    each = keras(from_logits=True, label_smoothing=smoothing, reduction="none")(
        np.eye(3, dtype=np.float32)[labels], logits
    )
    n_terms = 1 if kind == "softmax" else 3  # Keras takes the mean over classes
    assert float(loss) == pytest.approx(n_terms * float(np.sum(weights * each)), rel=1e-5)


def test_decisions_of_a_logistic_head_may_weigh_differently(backbone):
    random = np.random.default_rng(1)
    logits = random.normal(size=(8, 3)).astype(np.float32)
    labels, weights = random.integers(0, 3, 8), random.random((8, 3)).astype(np.float32)
    classifier = of_kind(backbone, "logistic")
    signs = 2.0 * np.eye(3)[labels] - 1
    expected = np.sum(weights * np.logaddexp(0, -signs * logits))
    assert float(classifier.loss(logits, labels, weights)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_several_labels_is_the_sum_of_the_binary_ones_of_keras(backbone, smoothing):
    import tf_keras

    random = np.random.default_rng(1)
    logits = random.normal(size=(8, 3)).astype(np.float32)
    labels = random.random((8, 3)) < 0.4  # none of some images, several of others
    weights = random.random((8, 3)).astype(np.float32)
    loss = of_kind(backbone, "logistic", multi_label=True).loss(logits, labels, weights, smoothing)
    binary = tf_keras.losses.BinaryCrossentropy(
        from_logits=True, label_smoothing=smoothing, reduction="none"
    )
    each = binary(labels[..., None].astype(np.float32), logits[..., None]).numpy()
    assert float(loss) == pytest.approx(float(np.sum(weights * each)), rel=1e-5)


def test_probabilities_of_several_labels_are_plain_sigmoids_also_of_a_replica(backbone):
    random = np.random.default_rng(1)
    logits = random.normal(size=(8, 3)).astype(np.float32)
    classifier = of_kind(backbone, "logistic", multi_label=True)
    for model in (classifier, classifier.replica()):
        probs = model.to_probabilities(logits).numpy()
        assert np.allclose(probs, 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_trained_layers_are_the_last_ones_and_the_head(backbone):
    classifier = of_kind(backbone, "softmax")
    kernel, dense = backbone.trainable_variables
    head = classifier.head_variables
    for n, expected in ((0, [head]), (1, [[dense], head]), (None, [[kernel], [dense], head])):
        layers = classifier.trained_layers(n)
        ids = [[id(v) for v in layer] for layer in layers]
        assert ids == [[id(v) for v in layer] for layer in expected]


def test_a_tf1_module_is_refused_with_a_way_on(tmp_path):
    from hubretrain.modules.backbone import Backbone
    from hubretrain.tensorflow import tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, (None, 8, 8, 3))
        kernel = v1.get_variable("kernel", (192, 5))
        features = tf.reshape(images, (-1, 192)) @ kernel
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(
            session, str(tmp_path / "old"), {"images": images}, {"default": features}
        )
    old = Backbone(resolve(str(tmp_path / "old")))
    classifier = of_kind(old, "softmax")
    with pytest.raises(ModuleError, match=r"old is in TensorFlow 1.s format, which"):
        classifier.trained_layers(None)
    assert len(classifier.trained_layers(0)) == 1


def test_more_layers_than_there_are_is_an_error(backbone):
    with pytest.raises(ModuleError, match=r"`unfreeze_last` is 9; expected at most 2, as many as"):
        of_kind(backbone, "softmax").trained_layers(9)


def test_a_frozen_module_has_no_layers_to_train(tmp_path):
    from hubretrain.modules.backbone import Backbone

    frozen = Backbone(resolve(str(write_module(tmp_path / "frozen", trainable=False))))
    with pytest.raises(ModuleError, match=r"frozen has no trainable variables.*`unfreeze_last=0`"):
        of_kind(frozen, "softmax").trained_layers(1)
