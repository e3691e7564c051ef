"""Modules of every form, loaded: TensorFlow 1's, classifiers, text; and layers in order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.dataset import open_dataset
from hubretrain.errors import ModuleError
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.modules import resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.classifier import Classifier
from hubretrain.tensorflow import tf
from tests.samples import write_digits, write_module, write_pooled
from tests.tolerances import assert_same_features

SIZE = 8


def write_tf1_module(folder, signatures=("default",), tags=((), ("train",)), n_inputs=1):
    """A module as TensorFlow 1 wrote them: a graph a set of tags, signatures, no objects.

    With `tfhub_module.pb` beside it, as tensorflow_hub 0.1 to 0.13 exported: a protocol buffer
    whose only field says "SavedModel".
    """
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(folder))
    for i, tag_set in enumerate(tags):
        with v1.Graph().as_default(), v1.Session() as session:
            inputs = {
                f"images{j or ''}": v1.placeholder(tf.float32, (None, SIZE, SIZE, 3))
                for j in range(n_inputs)
            }
            random = np.random.default_rng(0)
            kernel = v1.get_variable(
                "conv/weights",
                initializer=random.normal(0, 0.3, (3, 3, 3, 6)).astype(np.float32),
                use_resource=True,
            )
            x = tf.nn.relu(tf.nn.conv2d(sum(inputs.values()), kernel, 2, "SAME"))
            outputs = {"default": tf.reduce_mean(x, (1, 2))}
            session.run(v1.global_variables_initializer())
            signature = v1.saved_model.predict_signature_def(inputs, outputs)
            arguments = {"signature_def_map": dict.fromkeys(signatures, signature)}
            if i == 0:
                builder.add_meta_graph_and_variables(session, list(tag_set), **arguments)
            else:
                builder.add_meta_graph(list(tag_set), **arguments)
    builder.save()
    if () in tags:
        (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"signatures": ("image_feature_vector",)},
        {"tags": (("serve",),), "signatures": ("serving_default",)},
        {"tags": (("serve",), ("serve", "train"))},
    ],
    ids=["hub", "image_feature_vector", "serve", "several graphs"],
)
def test_a_tf1_module_is_cached_and_refused_by_finetuning(tmp_path, options):
    folder = write_tf1_module(tmp_path / "tf1", **options)
    backbone = Backbone(resolve(str(folder)))
    assert (backbone.stored.image_size, backbone.stored.n_features) == (SIZE, 6)
    assert backbone.stored.n_parameters == 3 * 3 * 3 * 6
    images = np.random.default_rng(1).random((2, SIZE, SIZE, 3), dtype=np.float32)
    kernel = np.random.default_rng(0).normal(0, 0.3, (3, 3, 3, 6)).astype(np.float32)
    expected = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(images, kernel, 2, "SAME")), (1, 2))
    assert_same_features(backbone(tf.constant(images)), expected, [kernel])
    weight = np.zeros((6, 2), np.float32)
    classifier = Classifier(backbone, "softmax", weight, weight[0])
    assert len(classifier.trained_layers(0)) == 1  # the head
    with pytest.raises(ModuleError, match=r"tf1 is in TensorFlow 1's format, which TensorFlow 2"):
        classifier.trained_layers(None)


@pytest.mark.parametrize("engine", ["tensorflow", "auto"])
def test_a_tf1_module_goes_through_the_cache(tmp_path, engine):
    folder = write_tf1_module(tmp_path / "tf1")
    data = open_dataset(write_digits(tmp_path / "digits", 5))
    options = CacheOptions(n_views=1, engine=engine)
    (cached,) = cache_bottlenecks(data, [resolve(str(folder))], options, cache=tmp_path / "cache")
    with Bottlenecks(cached.file) as file:
        assert np.isfinite(file.view(0)[:]).all()


def write_function(folder, function, spec, **signatures):
    module = tf.Module()
    module.__call__ = tf.function(function, input_signature=[spec])
    named = {k: tf.function(f, input_signature=[spec]) for k, f in signatures.items()}
    tf.saved_model.save(module, str(folder), signatures=named)
    return str(folder)


def images_of(size=SIZE):
    return tf.TensorSpec((None, size, size, 3), tf.float32, "images")


def test_a_module_of_several_outputs_is_refused(tmp_path):
    detector = write_function(
        tmp_path / "detector",
        lambda images: {"scores": tf.reduce_mean(images, (1, 2)), "boxes": images[:, 0, :, 0]},
        images_of(),
    )
    with pytest.raises(ModuleError, match=r"several outputs: boxes \(2, 8\), scores \(2, 3\); exp"):
        Backbone(resolve(detector))


def test_a_text_module_is_refused(tmp_path):
    text = write_function(
        tmp_path / "nnlm",
        lambda lines: tf.zeros((tf.shape(lines)[0], 4)),
        tf.TensorSpec((None,), tf.string),
    )
    with pytest.raises(ModuleError, match=r"nnlm takes strings, so it is a text module or decod"):
        Backbone(resolve(text))


def test_a_module_of_numbers_is_refused(tmp_path):
    table = write_function(
        tmp_path / "table", lambda x: 2.0 * x, tf.TensorSpec((None, 4), tf.float32)
    )
    with pytest.raises(
        ModuleError, match=r"table takes float32 of shape \(None, 4\); expected a mod"
    ):
        Backbone(resolve(table))


def scores(images):
    return tf.repeat(tf.reduce_mean(images, (1, 2, 3))[:, None], 1001, axis=1)


@pytest.mark.parametrize("name", ["logits", "probabilities"])
def test_a_classifier_is_known_by_what_its_output_is_called(tmp_path, name):
    folder = write_function(
        tmp_path / "net", scores, images_of(), serving_default=lambda x: {name: scores(x)}
    )
    with pytest.raises(ModuleError, match=rf"net is a classifier \(1,001 {name}\); expected a fea"):
        Backbone(resolve(folder))


def test_a_classifier_is_known_by_its_own_name_and_1001_features_are_no_crime(tmp_path):
    folder = write_function(tmp_path / "net_classification", scores, images_of())
    with pytest.raises(ModuleError, match=r"is a classifier \(1,001 classes\)"):
        Backbone(resolve(folder))
    plain = write_function(tmp_path / "net", scores, images_of())
    assert Backbone(resolve(plain)).stored.n_features == 1001


def test_layers_come_in_the_order_of_the_network_whatever_the_order_in_the_file(tmp_path):
    kernels = {
        name: tf.Variable(tf.random.stateless_normal((3, 3), (i, 0)), name=f"{name}/kernel")
        for i, name in enumerate(["first", "second", "third", "fourth"])
    }
    biases = {name: tf.Variable(tf.zeros(3), name=f"{name}/bias") for name in kernels}

    def features(images):
        x = tf.reduce_mean(images, (1, 2))
        for name in kernels:
            x = tf.nn.tanh(x @ kernels[name] + biases[name])
        return x

    module = tf.__internal__.tracking.AutoTrackable()
    shuffled = ["third", "first", "fourth", "second"]  # as by alphabet or by chance
    module.variables = [biases[n] for n in shuffled] + [kernels[n] for n in shuffled]
    module.trainable_variables = module.variables
    module.regularization_losses = []
    module.__call__ = tf.function(features, input_signature=[images_of()])
    tf.saved_model.save(module, str(tmp_path / "net"))
    backbone = Backbone(resolve(str(tmp_path / "net")))
    assert [name for name, _ in backbone.layers()] == list(kernels)
    classifier = Classifier(backbone, "softmax", np.zeros((3, 2), np.float32), np.zeros(2))
    last = [v.name for layer in classifier.trained_layers(2) for v in layer]
    assert sorted(last[:4]) == [
        "fourth/bias:0",
        "fourth/kernel:0",
        "third/bias:0",
        "third/kernel:0",
    ]


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
    with pytest.raises(ModuleError, match=r"takes images of any size; set `image_size`"):
        Backbone(resolve(str(tmp_path / "any")))
    backbone = Backbone(resolve(str(tmp_path / "any"), image_size=16))
    assert backbone.stored.n_features == 3


def test_a_module_of_one_size_takes_others_where_its_graph_can(tmp_path):
    of_any = Backbone(
        replace(resolve(str(write_pooled(tmp_path / "any", size=None))), image_size=12)
    )
    of_one = Backbone(resolve(str(write_pooled(tmp_path / "one", size=8))))
    images = tf.constant(np.random.default_rng(0).random((3, 12, 12, 3), dtype=np.float32))
    of_one.check_size(12)
    with tf.GradientTape() as tape:
        features = of_one(images)
    kernels = list(of_one.saved_object.kernels)
    assert_same_features(features, of_any(images), kernels)
    assert all(gradient is not None for gradient in tape.gradient(features, kernels))


def test_a_module_that_takes_no_other_size_says_so(tmp_path):
    flat = tf.Module()
    flat.kernel = tf.Variable(tf.ones((SIZE * SIZE * 3, 4)))
    spec = tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32)
    flat.__call__ = tf.function(
        lambda images: tf.reshape(images, (-1, SIZE * SIZE * 3)) @ flat.kernel,
        input_signature=[spec],
    )
    tf.saved_model.save(flat, str(tmp_path / "flat"))
    backbone = Backbone(resolve(str(tmp_path / "flat")))
    with pytest.raises(ModuleError, match=r"flat takes images of 8 x 8 pixels, not of 6 x 6"):
        backbone.check_size(6)


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
