from __future__ import annotations

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.extraction.engines import open_engine
from hubretrain.modules import choose_layers
from tests.extraction.engines.samples import (
    needs_openvino,
    noise,
    probed,
    relative_errors,
    run_python,
    segments,
)
from tests.samples import write_pooled


@pytest.fixture(
    scope="module", params=["small", "residual", pytest.param("real", marks=pytest.mark.slow)]
)
def module(request, pooled_module):
    if request.param == "small":
        return probed(pooled_module)
    if request.param == "residual":
        return probed(request.getfixturevalue("residual_module"))
    return probed(request.getfixturevalue("real_models") / "mobilenet_v2_035_224")


def chosen(module):
    points = choose_layers(module.layer_points, "all", module.n_features, module.image_size)
    return [point.name for point in points]


@needs_openvino
def test_both_engines_give_the_same_layers_after_the_same_output(module):
    layers, images = chosen(module), noise(8, module.image_size)
    columns = segments(module, layers)
    with (
        open_engine(module, layers=layers) as tensorflow,
        open_engine(module, "openvino", layers=layers) as openvino,
        open_engine(module, "openvino") as last,
    ):
        expected, features = tensorflow(images), openvino(images)
        assert features.dtype == expected.dtype == np.float32
        assert features.shape == expected.shape == (8, columns[-1].stop)
        assert relative_errors(features, expected, columns).max() < 1e-4
        assert np.array_equal(features[:, columns[0]], last(images))


@needs_openvino
def test_bf16_rounds_layers_as_it_rounds_the_output(module):
    from hubretrain.extraction.engines.openvino_library import can_bf16

    if not can_bf16():
        pytest.skip("no bfloat16")
    layers, images = chosen(module), noise(8, module.image_size)
    columns = segments(module, layers)
    with (
        open_engine(module, "openvino", layers=layers) as exact,
        open_engine(module, "openvino", "bf16", layers=layers) as rounded,
        open_engine(module, "openvino", "bf16") as last,
    ):
        features = rounded(images)
        # Which operations are fused may differ, so a bit of 8 may.
        assert relative_errors(features, last(images), columns[:1]).max() < 2**-8
        # Of 8 bits, 2**-9 is lost at each of the roundings of some 50 layers in a row.
        assert relative_errors(features, exact(images), columns).max() < 0.2


@needs_openvino
@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
def test_layers_depend_on_no_neighbour_and_no_position(real_models, engine):
    module = probed(real_models / "mobilenet_v2_035_224")
    images, random = noise(24, module.image_size), np.random.default_rng(0)
    with open_engine(module, engine, layers=chosen(module)) as opened:
        size = min(24, opened.batch_size)
        batches = [images[i : i + size] for i in range(0, 24, size)]
        expected = np.concatenate([opened(batch) for batch in batches])
        for _ in range(4):
            order = random.permutation(24)
            parts = [order[i : i + size - 1] for i in range(0, 24, size - 1)]
            futures = [opened.submit([images[i] for i in part]) for part in parts]
            for part, future in zip(parts, futures, strict=True):
                assert np.array_equal(future.result(), expected[part])


@needs_openvino
@pytest.mark.parametrize("size", [8, 64])  # 64 x 64 positions are pooled in two passes
def test_a_deviation_is_the_closed_form_also_where_a_channel_is_constant(tmp_path, size):
    from hubretrain.tensorflow import tf

    def features(pixels):
        spread = tf.nn.relu(
            tf.nn.conv2d(pixels, np.eye(3, 4, dtype=np.float32)[None, None], 1, "SAME")
        )
        return tf.reduce_max(spread, (1, 2))

    whole = tf.Module()
    spec = tf.TensorSpec((None, size, size, 3), tf.float32)
    whole.__call__ = tf.function(features, input_signature=[spec])
    tf.saved_model.save(whole, str(tmp_path / "copies"))
    module, images = probed(tmp_path / "copies"), noise(3, size)
    images[1][:] = 255  # every channel constant, the fourth always zero
    maps = np.concatenate([np.array(images) / 255, np.zeros((3, size, size, 1))], axis=-1)
    mean, mean_square = maps.mean((1, 2)), (maps**2).mean((1, 2))
    deviation = np.sqrt(maps.var((1, 2)) + 1e-4 * mean_square + 1e-12)
    layers = [point.name for point in module.layer_points]
    for engine in ("tensorflow", "openvino"):
        with open_engine(module, engine, layers=layers) as opened:
            statistics = opened(images)[:, 4:]
        # 64 terms: the mean square is exact to 64 * 6e-8 of itself, and 1e-4 of it are below
        # the root.
        np.testing.assert_allclose(statistics[:, :4], mean, rtol=1e-5)
        np.testing.assert_allclose(statistics[:, 4:], deviation, rtol=64 * 6e-8 / 1e-4)


@needs_openvino
def test_each_choice_of_layers_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    module, images = probed(write_pooled(tmp_path / "chosen", seed=7)), noise(3, 8)
    layers = chosen(module)
    assert len(layers) == 2
    expected = {}
    for names in ([], layers[1:], layers):
        with open_engine(module, "openvino", layers=names) as engine:
            expected[len(names)] = engine(images)
    assert len(list((tmp_path / "store" / "openvino").iterdir())) == 3
    script = """
import sys, numpy as np
from hubretrain.extraction.engines import choose_engine, open_engine
from hubretrain.modules import resolve
module, names = resolve(sys.argv[1]), sys.argv[3:]
choose_engine("auto", module=module, layers=names)
engine = open_engine(module, "openvino", layers=names)
np.save(sys.argv[2], engine(list(np.load(sys.argv[2]))))
print('tensorflow' in sys.modules)
"""
    for n in range(3):
        file = tmp_path / f"{n}.npy"
        np.save(file, images)
        assert run_python(script, tmp_path / "chosen", file, *layers[2 - n :]) == "False"
        assert np.array_equal(np.load(file), expected[n])


@pytest.mark.parametrize("engine", ["tensorflow", pytest.param("openvino", marks=needs_openvino)])
def test_a_layer_that_the_module_lacks_is_refused(pooled_module, engine):
    with pytest.raises(ModuleError, match="has no layer nothing; expected one of those that"):
        open_engine(probed(pooled_module), engine, layers=["nothing"])
