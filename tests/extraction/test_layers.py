"""Features of inner layers: which are kept, and how a cache is given them."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.dataset import open_dataset
from hubretrain.data.images.decoding import decode, view
from hubretrain.errors import CacheError
from hubretrain.extraction import CacheOptions, cache_bottlenecks
from hubretrain.extraction.maintenance import cache_status
from hubretrain.modules import resolve
from tests.samples import encoded, write_digits


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits", 30)


def run(data, module, folder, **options):
    (result,) = cache_bottlenecks(
        open_dataset(data),
        [resolve(str(module))],
        CacheOptions(**{"engine": "tensorflow", "n_views": 2, **options}),
        cache=folder,
    )
    return result


def write_scaled(folder, scale):
    """A module whose inner layer is `scale` times as bright as the image, its output at most 1."""
    from hubretrain.tensorflow import tf

    def features(images):
        kernel = tf.constant(np.full((1, 1, 3, 2), scale / 3, np.float32))
        x = tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "SAME"))
        return tf.minimum(tf.reduce_mean(x, (1, 2)), 1.0)

    return write_function(folder, features)


def write_flat(folder):
    """A module without feature maps: sums of pixels."""
    from hubretrain.tensorflow import tf

    weight = np.random.default_rng(0).normal(size=(192, 4)).astype("f4")
    return write_function(folder, lambda images: tf.reshape(images, (-1, 192)) @ weight)


def write_function(folder, features):
    from hubretrain.tensorflow import tf

    module = tf.Module()
    spec = tf.TensorSpec((None, 8, 8, 3), tf.float32)
    module.__call__ = tf.function(features, input_signature=[spec])
    tf.saved_model.save(module, str(folder))
    return folder


def test_features_are_output_means_and_deviations_of_the_module_by_hand(
    digits, pooled_module, tmp_path
):
    from hubretrain.tensorflow import tf

    file = run(digits, pooled_module, tmp_path / "cache").file
    loaded = tf.saved_model.load(str(pooled_module))
    first, second, last = [variable.numpy() for variable in loaded.kernels]
    with Bottlenecks(file) as bottlenecks:
        assert [(s.height, s.width) for s in bottlenecks.segments] == [(1, 1)] + [(4, 4)] * 4
        widths = [s.stop - s.first for s in bottlenecks.segments]
        assert widths == [20, 16, 16, 32, 32]
        for row in (0, 17, 29):
            image = decode((digits / bottlenecks.paths[row]).read_bytes())
            pixels = view(image, 8)[None].astype(np.float32) / 255
            one = tf.nn.relu6(tf.nn.conv2d(pixels - 0.5, first, 2, "SAME")).numpy()
            two = tf.nn.relu6(tf.nn.conv2d(one, second, 1, "SAME")).numpy()
            expected = [two.mean((1, 2)) @ last]
            for maps in (one.astype(np.float64), two.astype(np.float64)):
                square = (maps**2).mean((1, 2))
                expected += [maps.mean((1, 2)), np.sqrt(maps.var((1, 2)) + 1e-4 * square + 1e-12)]
            features = bottlenecks.view(0, "all")[row]
            np.testing.assert_allclose(features, np.hstack(expected)[0], rtol=1e-4, atol=1e-5)


def test_the_plain_command_gives_a_file_of_the_last_layer_the_others(
    digits, pooled_module, tmp_path
):
    last = run(digits, pooled_module, tmp_path / "grown", layers="last")
    assert last.layers == ()
    with Bottlenecks(last.file) as bottlenecks:
        assert bottlenecks.lacks_layers
        before = bottlenecks.view(1)[:]
    (status,) = cache_status(open_dataset(digits), tmp_path / "grown").to_dict("records")
    assert (status["to_compute"], status["layers"], status["n_features"]) == (60, [], 20)
    assert status["why"] == ["features of inner layers are to be added"]
    as_it_is = cache_status(open_dataset(digits), tmp_path / "grown", layers="last")
    assert as_it_is["to_compute"].tolist() == [0]
    grown = run(digits, pooled_module, tmp_path / "grown")
    assert (grown.n_computed, len(grown.layers), grown.n_features) == (60, 2, 20 + 32 + 64)
    with Bottlenecks(grown.file) as bottlenecks:
        np.testing.assert_allclose(bottlenecks.view(1)[:], before, rtol=1e-5, atol=1e-5)
        assert bottlenecks.verify() == []
    at_once = run(digits, pooled_module, tmp_path / "at_once")
    assert grown.file.read_bytes() == at_once.file.read_bytes()
    (status,) = cache_status(open_dataset(digits), tmp_path / "grown").to_dict("records")
    assert (status["to_compute"], len(status["layers"]), status["n_features"]) == (0, 2, 116)


def test_a_file_with_layers_keeps_them_where_the_last_is_required(digits, pooled_module, tmp_path):
    file = run(digits, pooled_module, tmp_path / "cache").file
    before = file.read_bytes()
    again = run(digits, pooled_module, tmp_path / "cache", layers="last")
    assert (again.n_computed, len(again.layers)) == (0, 2)
    assert file.read_bytes() == before
    (digits / "1" / "new.png").write_bytes(encoded(np.ones((8, 8, 3), np.uint8)))
    assert run(digits, pooled_module, tmp_path / "cache", layers="last").n_computed == 2
    with Bottlenecks(file) as bottlenecks:
        assert bottlenecks.view(0, "all").shape == (31, 116)
        assert bottlenecks.verify() == []
    dropped = run(digits, pooled_module, tmp_path / "cache", layers="last", overwrite=True)
    assert (dropped.n_computed, dropped.layers) == (0, ())


def test_other_layers_than_those_of_the_file_are_refused(digits, pooled_module, tmp_path):
    file = run(digits, pooled_module, tmp_path / "cache", layers=1).file
    with Bottlenecks(file) as bottlenecks:
        assert bottlenecks.attributes["layers"] == 1
        (kept,) = bottlenecks.layers
        assert bottlenecks.segments[-1].stop == 20 + 64  # the deepest
    with pytest.raises(
        CacheError,
        match=r"pooled.h5 was made with layers = 1 \(1 inner layers\), and all \(2 inner layers, "
        r".+ among them\) is required now; use another `cache` folder, or `overwrite`",
    ):
        run(digits, pooled_module, tmp_path / "cache")
    wide = run(digits, pooled_module, tmp_path / "cache", overwrite=True)
    assert (wide.n_computed, wide.layers[-1]) == (60, kept)
    before = file.read_bytes()
    assert run(digits, pooled_module, tmp_path / "cache", layers=9).n_computed == 0
    assert file.read_bytes() == before  # other words for the same layers


def test_a_module_without_feature_maps_keeps_its_output(digits, tmp_path):
    module = write_flat(tmp_path / "flat")
    old = run(digits, module, tmp_path / "cache", layers="last")
    result = run(digits, module, tmp_path / "cache")
    assert (result.n_computed, result.layers, result.n_features) == (0, (), 4)
    with Bottlenecks(old.file) as bottlenecks:
        assert not bottlenecks.lacks_layers
        assert bottlenecks.view(0, "all").shape == (30, 4)
    (status,) = cache_status(open_dataset(digits), tmp_path / "cache").to_dict("records")
    assert (status["to_compute"], status["why"]) == (0, [])


def test_growing_is_known_to_be_done_without_tensorflow(digits, pooled_module, tmp_path):
    run(digits, pooled_module, tmp_path / "cache")
    script = (
        "import sys; from hubretrain.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print('tensorflow' in sys.modules)"
    )
    arguments = ["cache", digits, "--module", pooled_module, "--cache", tmp_path / "cache"]
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--views", "2"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "60 bottlenecks of 116 features from 3 layers, 0 computed now." in ran.stdout
    assert ran.stdout.split()[-1] == "False"


def test_a_layer_that_overflows_is_named_with_the_image(tmp_path):
    module = write_scaled(tmp_path / "bright", 1e19)  # squares add up beyond float32
    dark = Image.new("RGB", (8, 8), (9, 9, 9))
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            dark.putpixel((i, 0), (0, 0, i))
            dark.save(tmp_path / "images" / name / f"{i}.png")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "images" / "b" / "white.png")
    with pytest.raises(
        CacheError,
        match=r"bright gives NaN or infinite features in layer .+ for .*white.png; the module",
    ):
        run(tmp_path / "images", module, tmp_path / "cache", n_views=1)


def test_a_wide_activation_beyond_float16_is_named(digits, tmp_path):
    module = write_scaled(tmp_path / "wide", 1e6)
    with pytest.raises(CacheError) as error:
        run(digits, module, tmp_path / "cache", dtype="float16")
    assert re.search(
        r"a feature of layer .+ is beyond the range of float16; cache again with `dtype` float32",
        str(error.value),
    )


@pytest.mark.parametrize("layers", ["first", 0, -1])
def test_layers_that_are_none_are_refused(layers):
    with pytest.raises(CacheError, match=r"`layers` is .*; expected (at least 1|all, last, or a)"):
        CacheOptions(layers=layers)
