from __future__ import annotations

import inspect
import shutil

import h5py
import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import keras_handles, resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.builders import keras_applications
from hubretrain.modules.keras_handles import APPLICATIONS, parse
from hubretrain.tensorflow import tf
from tests.tolerances import assert_same_features

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)

# The networks that the first projects of this kind compared, and each family's other members.
ORIGIN = (
    "MobileNet",
    "MobileNet?alpha=0.75",
    "VGG16",
    "VGG19",
    "ResNet50",
    "InceptionV3",
    "NASNetMobile",
    "DenseNet121",
    "DenseNet169",
    "ResNet152",
)


def preprocess_of_keras(application: str):
    module = inspect.getmodule(getattr(tf_keras.applications, application))
    return module.preprocess_input


def test_the_table_holds_every_network_of_keras_and_its_own_size():
    there = {n for n in dir(tf_keras.applications) if n[0].isupper()}
    assert set(APPLICATIONS) == there
    for name in ("NASNetLarge", "EfficientNetB3", "EfficientNetV2S", "Xception", "VGG19"):
        source = inspect.getsource(inspect.getmodule(getattr(tf_keras.applications, name)))
        assert str(APPLICATIONS[name].image_size) in source, name


@pytest.mark.parametrize("name", sorted(APPLICATIONS))
def test_images_are_prepared_as_keras_prepares_them(name):
    images = np.random.default_rng(0).random((2, 5, 5, 3), dtype=np.float32)
    expected = preprocess_of_keras(name)(255 * images.astype(np.float64))
    prepare = keras_applications.preprocessing(APPLICATIONS[name].range)
    np.testing.assert_allclose(prepare(tf.constant(images)), expected, rtol=1e-5, atol=1e-4)


def check_module(handle: str) -> None:
    """The stored module gives what Keras gives on the same pixels, and trains."""
    backbone = Backbone(resolve(f"keras:{handle}"))
    parsed = parse(f"keras:{handle}")
    size = parsed.image_size
    model = keras_applications.build(parsed)  # its weights are drawn anew, and equal
    random = np.random.default_rng(1)
    images = random.random((3, size, size, 3), dtype=np.float32)
    expected = model(preprocess_of_keras(parsed.application)(255 * images)).numpy()
    features = backbone(tf.constant(images)).numpy()
    assert features.shape == (3, model.output_shape[1]) == (3, backbone.stored.n_features)
    assert_same_features(features, expected, model.variables)
    assert np.abs(expected).max() > 0
    assert backbone.stored.n_parameters == model.count_params()
    names = [layer.name for layer in model.layers if layer.trainable_weights]
    assert sorted(name for name, _ in backbone.layers()) == sorted(names)
    head = tf.Variable(random.normal(0, 0.1, (features.shape[1], 2)), dtype=tf.float32)
    variables = [head, *backbone.trainable_variables]
    with tf.GradientTape() as tape:
        trained = backbone(tf.constant(images), training=True)
        logits = trained / tf.stop_gradient(tf.reduce_max(trained)) @ head  # random networks fade
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1, 0], logits))
    gradients = tape.gradient(loss, variables)
    assert all(g is not None and np.isfinite(g).all() for g in gradients)
    before = variables[1].numpy()
    tf_keras.optimizers.legacy.Adam(1e-3).apply_gradients(zip(gradients, variables, strict=True))
    assert not np.array_equal(variables[1].numpy(), before)


@pytest.mark.parametrize(
    "handle",
    [
        "MobileNet?alpha=0.25&image_size=64",
        *(
            pytest.param(f"{name}?image_size=32", marks=pytest.mark.slow)
            for name in ("VGG16", "ConvNeXtTiny", "EfficientNetV2B0", "RegNetY008", "ResNetRS50")
        ),
    ],
)
def test_a_small_network_gives_what_keras_gives_and_trains_a_step(handle):
    check_module(f"{handle}&weights=none")


@pytest.mark.slow
@pytest.mark.parametrize("handle", ORIGIN)
def test_each_large_network_gives_what_keras_gives_and_trains_a_step(handle):
    check_module(handle + ("&" if "?" in handle else "?") + "weights=none")


def test_random_weights_are_the_same_bytes_wherever_they_are_drawn_and_a_seed_changes_them():
    handle = "keras:MobileNet?alpha=0.25&image_size=64&weights=none"
    first = resolve(handle)
    assert first.name == "MobileNet_alpha0.25_64px_random"
    shutil.rmtree(first.folder)
    assert resolve(handle).sha256 == first.sha256
    other = keras_applications.build(parse(f"{handle}&seed=1")).get_weights()
    same = keras_applications.build(parse(handle)).get_weights()
    assert not np.array_equal(other[0], same[0])


@pytest.mark.slow
def test_weights_from_a_file_are_loaded_and_a_changed_file_is_another_module(real_models, tmp_path):
    weights = tmp_path / "mine & yours.weights.h5"
    shutil.copy(real_models / "keras" / "mobilenet_v1_025_224_notop.weights.h5", weights)
    handle = f"keras:MobileNet?alpha=0.25&weights={str(weights).replace('&', '%26')}"
    first = resolve(handle)
    assert first.name == "MobileNet_alpha0.25-mine_yours"
    model = tf_keras.applications.MobileNet(
        alpha=0.25, weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3)
    )
    model.load_weights(weights)
    images = np.random.default_rng(0).random((2, 224, 224, 3), dtype=np.float32)
    features = Backbone(first)(tf.constant(images)).numpy()
    assert_same_features(features, model(images * 2 - 1), model.variables)
    assert resolve(handle).probed
    model.layers[1].set_weights([2 * w for w in model.layers[1].get_weights()])
    model.save_weights(weights)
    assert resolve(handle).sha256 != first.sha256


def test_weights_of_another_architecture_are_refused(real_models):
    file = real_models / "keras" / "mobilenet_v1_075_224_notop.weights.h5"
    for network in ("MobileNet?alpha=0.5", "MobileNetV2?alpha=0.75"):
        with pytest.raises(ModuleError, match=r"does not hold weights of keras:Mobile.*parameters"):
            keras_applications.build(parse(f"keras:{network}&weights={file}"))
    with pytest.raises(ModuleError, match=r"nowhere.h5 does not exist; expected a file of weights"):
        keras_applications.build(parse("keras:VGG16?weights=/nowhere.h5"))


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        ("keras:VGG61", r"has no 'VGG61'\. Did you mean .*VGG16"),
        ("keras:VGG16?alpha=0.5", r"VGG16 has no alpha; only MobileNets do"),
        ("keras:MobileNet?alpha=wide", r"alpha is 'wide'; expected 0.01 to 4"),
        (
            "keras:MobileNet?width=2",
            r"the option 'width' does not exist; expected alpha, weights, image_size",
        ),
        ("keras:MobileNet?image_size=99.5", r"image_size is '99.5'; expected 32 to 2048"),
        ("keras:MobileNet?seed=3", r"a seed is for random weights; add weights=none"),
    ],
)
def test_a_handle_that_is_not_well_formed_is_one_sentence(handle, message):
    with pytest.raises(ModuleError, match=message):
        resolve(handle)


def test_a_handle_has_one_canonical_form_and_a_name_that_serves_as_a_file_name():
    for handle, canonical, name in (
        (
            "keras:mobilenet?weights=none&alpha=.50",
            "MobileNet?alpha=0.5&weights=none",
            "MobileNet_alpha0.5_random",
        ),
        ("keras:MobileNet?alpha=1.0", "MobileNet", "MobileNet"),
        ("keras:VGG16?image_size=96", "VGG16?image_size=96", "VGG16_96px"),
        ("keras:VGG16?weights=none&seed=7", "VGG16?weights=none&seed=7", "VGG16_seed7_random"),
        ("keras:VGG16?weights=/a b/x.weights.h5", "VGG16?weights=/a%20b/x.weights.h5", "VGG16-x"),
    ):
        parsed = parse(handle)
        assert str(parsed) == keras_handles.PREFIX + canonical
        assert parse(str(parsed)) == parsed
        assert parsed.name() == name


def test_a_file_of_weights_that_leads_to_another_file_is_refused(tmp_path):
    file = tmp_path / "mine.weights.h5"
    with h5py.File(file, "w") as opened:
        opened["layers"] = h5py.ExternalLink("/etc/other.h5", "/layers")
    with pytest.raises(ModuleError, match=r"does not hold weights of .*layers is a link, not data"):
        keras_applications.build(parse(f"keras:MobileNet?alpha=0.25&weights={file}"))
