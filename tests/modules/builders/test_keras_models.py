from __future__ import annotations

import zipfile

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.builders.keras_export import export_file
from hubretrain.modules.catalogue import described
from hubretrain.tensorflow import tf
from tests.tolerances import assert_same_features

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)

IMAGES = np.random.default_rng(0).random((3, 12, 12, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def keras3():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "tensorflow")
        keras = pytest.importorskip("keras", minversion="3")
        yield keras


def classifier(keras, *first):
    """A small classifier of three classes, with BatchNorm and dropout."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, name="convolve"),
        keras.layers.BatchNormalization(name="normalise"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3, activation="softmax", name="classify"),
    ]
    return keras.Sequential([keras.Input((12, 12, 3)), *first, *layers])


def features_of(keras, model, images):
    below = keras.Model(model.inputs[0], model.get_layer("classify").input)
    return np.asarray(below(images))


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_file_of_keras_is_a_module_of_what_its_classifier_classifies(library, keras3, tmp_path):
    keras = tf_keras if library == "tf_keras" else keras3
    model = classifier(keras)
    model.save(tmp_path / "net.keras")
    export_file(tmp_path / "net.keras", tmp_path / "net")
    backbone = Backbone(resolve(tmp_path / "net"))
    assert (backbone.stored.image_size, backbone.stored.n_features) == (12, 4)
    assert_same_features(backbone(IMAGES), features_of(keras, model, IMAGES), model.variables)
    names = [name.rpartition("/")[2] for name, _ in backbone.layers()]
    assert names == ["convolve", "normalise"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(backbone(tf.constant(IMAGES), training=True) ** 2)
    gradients = tape.gradient(loss, backbone.trainable_variables)
    assert all(g is not None and np.isfinite(g).all() for g in gradients)


def test_a_folder_that_keras_3_exports_is_a_module(keras3, tmp_path):
    model = classifier(keras3)
    model.pop()
    model.export(tmp_path / "exported", verbose=False)
    features = Backbone(resolve(tmp_path / "exported"))(tf.constant(IMAGES))
    assert_same_features(features, model(IMAGES), model.variables)


def test_a_network_that_scales_levels_itself_takes_levels(keras3, tmp_path):
    for name, first, value_range in (
        ("levels", [keras3.layers.Rescaling(1 / 127.5, offset=-1)], (0.0, 255.0)),
        ("means", [keras3.layers.Normalization(mean=[120] * 3, variance=[9] * 3)], (0.0, 255.0)),
        ("unit", [keras3.layers.Rescaling(2.0, offset=-1)], None),
        ("plain", [], None),
    ):
        file = tmp_path / f"{name}.keras"
        classifier(keras3, *first).save(file)
        assert described(str(file)).value_range == value_range, name


@pytest.mark.slow
def test_the_file_is_named_as_a_module_and_a_changed_one_is_another(keras3, tmp_path):
    model = classifier(keras3, keras3.layers.Rescaling(1 / 255))
    file = tmp_path / "my net.keras"
    model.save(file)
    module = resolve(file)
    assert (module.name, module.handle, module.value_range) == ("my_net", str(file), (0.0, 255.0))
    expected = features_of(keras3, model, 255 * IMAGES)
    assert_same_features(Backbone(module)(tf.constant(IMAGES)), expected, model.variables)
    assert resolve(file).sha256 == module.sha256
    model.layers[1].set_weights([2 * w for w in model.layers[1].get_weights()])
    model.save(file)
    assert resolve(file).sha256 != module.sha256


def test_a_file_that_gives_no_features_is_one_sentence(keras3, tmp_path):
    file = tmp_path / "net.keras"
    with pytest.raises(ModuleError, match=r"net\.keras does not exist\.$"):
        resolve(file)
    file.write_bytes(b"no archive")
    with pytest.raises(
        ModuleError, match=r"net.keras is no file that Keras' .* writes, or is truncated"
    ):
        resolve(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", "[]")
    with pytest.raises(
        ModuleError, match=r"net.keras is no file that Keras' .* writes, or is truncated"
    ):
        resolve(file)
    with pytest.raises(ModuleError, match=r"net.keras is a Keras file; download it, and name"):
        resolve("https://example.org/net.keras")
    images = keras3.Input((12, 12, 3))
    keras3.Model(images, keras3.layers.Lambda(lambda x: x + 1)(images)).save(file)
    with pytest.raises(ModuleError, match=r"cannot be loaded \(.*model\.export\(FOLDER\)"):
        export_file(file, tmp_path / "written")
    tokens = keras3.layers.Reshape((144, 3))(images)
    keras3.Model(images, tokens).save(file)
    with pytest.raises(ModuleError, match=r"gives \(None, 144, 3\); expected vectors"):
        export_file(file, tmp_path / "written")
    keras3.Model([images, keras3.Input((2,))], tokens).save(file)
    with pytest.raises(ModuleError, match=r"has several inputs or outputs"):
        export_file(file, tmp_path / "written")
