"""SavedModels as people have them; the oracle is the saved function, called by hand."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data import open_dataset
from hubretrain.errors import ModuleError
from hubretrain.extraction import CacheOptions, cache_bottlenecks
from hubretrain.modules import Backbone, resolve
from hubretrain.tensorflow import tf
from tests.samples import write_digits
from tests.tolerances import assert_same_features

SIZE = 8
KERNEL = np.random.default_rng(0).normal(0, 0.3, (3, 3, 3, 6)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.float32)
IMAGES = tf.constant(PIXELS / 255)  # as decoded from 8 bits


def convolved(images, kernel=KERNEL):
    return tf.nn.relu(tf.nn.conv2d(images - 0.5, kernel, 2, "SAME"))


def pooled(images):
    return tf.reduce_mean(convolved(images), (1, 2))


def saved(folder, function, shape=(None, SIZE, SIZE, 3), dtype=tf.float32, signatures=None):
    """A SavedModel that can be called, or that has signatures alone."""
    spec = tf.TensorSpec(shape, dtype, "images")
    module = tf.Module()
    named = {name: tf.function(f, input_signature=[spec]) for name, f in (signatures or {}).items()}
    if function is not None:
        module.__call__ = tf.function(function, input_signature=[spec])
    tf.saved_model.save(module, str(folder), signatures=named)
    return str(folder)


def features_of(folder, **options):
    return Backbone(resolve(folder, **options))(IMAGES)


def as_channels_last(images):
    return tf.transpose(images, (0, 2, 3, 1))


ODD = {  # what is odd: function, shape and type of its input, and the images that it is to get
    "uint8": (
        lambda images: pooled(tf.cast(images, tf.float32) / 255),
        (None, SIZE, SIZE, 3),
        tf.uint8,
        lambda: tf.constant(PIXELS.astype(np.uint8)),
    ),
    "float16": (
        lambda images: pooled(tf.cast(images, tf.float32)),
        (None, SIZE, SIZE, 3),
        tf.float16,
        lambda: tf.cast(IMAGES, tf.float16),
    ),
    "NCHW": (
        lambda images: pooled(as_channels_last(images)),
        (None, 3, SIZE, SIZE),
        tf.float32,
        lambda: tf.transpose(IMAGES, (0, 3, 1, 2)),
    ),
    "a map of NCHW": (
        lambda images: tf.transpose(convolved(as_channels_last(images)), (0, 3, 1, 2)),
        (None, 3, SIZE, SIZE),
        tf.float32,
        lambda: tf.transpose(IMAGES, (0, 3, 1, 2)),
    ),
    "grey": (
        lambda images: pooled(tf.repeat(images, 3, axis=3)),
        (None, SIZE, SIZE, 1),
        tf.float32,
        lambda: tf.image.rgb_to_grayscale(IMAGES),
    ),
    "a map": (convolved, (None, SIZE, SIZE, 3), tf.float32, lambda: IMAGES),
    "(n, 1, 1, d)": (
        lambda images: pooled(images)[:, None, None],
        (None, SIZE, SIZE, 3),
        tf.float32,
        lambda: IMAGES,
    ),
    "(n, d, 1, 1) of NCHW": (
        lambda images: pooled(as_channels_last(images))[:, :, None, None],
        (None, 3, SIZE, SIZE),
        tf.float32,
        lambda: tf.transpose(IMAGES, (0, 3, 1, 2)),
    ),
    "(n, 1, 1, d) of NCHW": (
        lambda images: pooled(as_channels_last(images))[:, None, None],
        (None, 3, SIZE, SIZE),
        tf.float32,
        lambda: tf.transpose(IMAGES, (0, 3, 1, 2)),
    ),
    "a list of one": (
        lambda images: [pooled(images)],
        (None, SIZE, SIZE, 3),
        tf.float32,
        lambda: IMAGES,
    ),
    "one of several outputs": (
        lambda images: {"logits": pooled(images)[:, :2], "embedding": pooled(images)},
        (None, SIZE, SIZE, 3),
        tf.float32,
        lambda: IMAGES,
    ),
}


def by_hand(function, inputs):
    outputs = function(inputs)
    if isinstance(outputs, dict):
        outputs = outputs["embedding"]
    outputs = outputs[0] if isinstance(outputs, list) else outputs
    if outputs.shape.rank == 4:  # of a map, the axis of six features is the one that is kept
        outputs = tf.reduce_mean(outputs, (1, 2) if outputs.shape[3] == 6 else (2, 3))
    return outputs


@pytest.mark.parametrize(
    ("odd", "is_called"),
    # Outputs of signatures have names, so that none is a list.
    [*((odd, True) for odd in ODD), *((odd, False) for odd in ODD if odd != "a list of one")],
)
def test_an_odd_saved_model_gives_what_its_function_gives_by_hand(tmp_path, odd, is_called):
    function, shape, dtype, inputs = ODD[odd]
    if is_called:
        folder = saved(tmp_path / "net", function, shape, dtype)
    else:

        def named(images):
            outputs = function(images)
            return outputs if isinstance(outputs, dict) else {"output_0": outputs}

        folder = saved(tmp_path / "net", None, shape, dtype, {"serving_default": named})
    features = features_of(folder)
    assert features.dtype == tf.float32
    assert features.shape == (3, 6)
    assert_same_features(features, by_hand(function, inputs()), [KERNEL])


def test_a_network_of_one_image_at_a_time_is_run_image_by_image(tmp_path, caplog):
    folder = saved(tmp_path / "one", pooled, (1, SIZE, SIZE, 3))
    with caplog.at_level(logging.INFO, "hubretrain"):
        features = features_of(folder)
    assert "one: it is run image by image, which is slow." in caplog.text
    by_one = tf.concat([pooled(IMAGES[i : i + 1]) for i in range(len(IMAGES))], axis=0)
    assert_same_features(features, by_one, [KERNEL])


@pytest.mark.parametrize("engine", ["tensorflow", "auto"])
@pytest.mark.parametrize("odd", ["uint8", "one image", "a map of NCHW"])
def test_an_odd_saved_model_goes_through_the_cache(tmp_path, odd, engine):
    function, shape, dtype = (
        (pooled, (1, SIZE, SIZE, 3), tf.float32) if odd == "one image" else ODD[odd][:3]
    )
    folder = saved(tmp_path / "net", function, shape, dtype)
    digits = open_dataset(write_digits(tmp_path / "digits", 4))
    options = CacheOptions(n_views=1, engine=engine)
    (cached,) = cache_bottlenecks(digits, [resolve(folder)], options, cache=tmp_path / "cache")
    with Bottlenecks(cached.file) as file:
        assert file.n_features == 6
        assert not file.todo().any()


def test_whole_numbers_get_the_levels_of_8_bits_unless_a_range_is_given(tmp_path):
    folder = saved(
        tmp_path / "sums",
        lambda images: tf.cast(tf.reduce_max(images, (1, 2)), tf.float32),
        dtype=tf.int32,
    )
    np.testing.assert_array_equal(features_of(folder), PIXELS.max((1, 2)))
    signed = features_of(folder, value_range=(-128.0, 127.0))
    np.testing.assert_array_equal(signed, PIXELS.max((1, 2)) - 128)


def test_the_function_that_takes_any_number_of_images_is_preferred(tmp_path):
    module = tf.Module()
    module.__call__ = tf.function(pooled)
    for n in (1, None):
        module.__call__.get_concrete_function(tf.TensorSpec((n, SIZE, SIZE, 3), tf.float32))
    tf.saved_model.save(module, str(tmp_path / "both"))
    backbone = Backbone(resolve(str(tmp_path / "both")))
    assert not backbone._network.form.one_by_one
    assert_same_features(backbone(IMAGES), pooled(IMAGES), [KERNEL])


def test_features_of_a_module_that_can_classify_too_are_no_classes(tmp_path):
    classify = {"serving_default": lambda x: {"probabilities": tf.nn.softmax(pooled(x)[:, :3])}}
    folder = saved(tmp_path / "net", pooled, signatures=classify)
    assert_same_features(features_of(folder), pooled(IMAGES), [KERNEL])


def test_a_single_signature_is_the_network_whatever_it_is_called(tmp_path):
    folder = saved(tmp_path / "net", None, signatures={"embed": lambda x: {"out": pooled(x)}})
    assert_same_features(features_of(folder), pooled(IMAGES), [KERNEL])


@pytest.mark.parametrize(
    ("function", "shape", "dtype", "sentence"),
    [
        (pooled, (None, 6, 9, 3), tf.float32, "takes images of height 6 and width 9, pixels; exp"),
        (pooled, (None, 6, None, 3), tf.float32, "takes images of height 6 and width any, pixels"),
        (pooled, (5, SIZE, SIZE, 3), tf.float32, "takes exactly 5 images at a time; expected any"),
        (
            lambda x: tf.reduce_mean(x, (1, 2)),
            (None, SIZE, SIZE, 4),
            tf.float32,
            "takes images of 4 channels; expected 3, RGB, or 1, grey",
        ),
        (
            lambda x: tf.cast(pooled(x), tf.int32),
            (None, SIZE, SIZE, 3),
            tf.float32,
            "gives int32; expected features, floating numbers",
        ),
        (
            lambda x: [pooled(x), pooled(x)],
            (None, SIZE, SIZE, 3),
            tf.float32,
            "gives 2 outputs without names; expected one",
        ),
        (
            lambda x: {"b": pooled(x), "a": convolved(x)},
            (None, SIZE, SIZE, 3),
            tf.float32,
            r"gives several outputs: a \(2, 4, 4, 6\), b \(2, 6\); expected one, or one called def",
        ),
        (
            lambda x: tf.reshape(convolved(x), (-1, 16, 6)),
            (None, SIZE, SIZE, 3),
            tf.float32,
            r"gives shape \(2, 16, 6\) for 2 images; expected feature vectors, \(2, n_features\)",
        ),
    ],
    ids=["not square", "half free", "five", "channels", "int", "list", "dict", "tokens"],
)
def test_what_cannot_be_adapted_is_refused_by_what_it_is(
    tmp_path, function, shape, dtype, sentence
):
    folder = saved(tmp_path / "net", function, shape, dtype)
    with pytest.raises(ModuleError, match=rf"net {sentence}"):
        Backbone(resolve(folder))


def test_several_signatures_of_unknown_names_are_refused_with_their_names(tmp_path):
    both = {"embed": lambda x: {"out": pooled(x)}, "classify": lambda x: {"out": pooled(x)}}
    folder = saved(tmp_path / "net", None, signatures=both)
    with pytest.raises(ModuleError, match=r"\(its signatures: (embed, classify|classify, embed)\)"):
        Backbone(resolve(folder))
