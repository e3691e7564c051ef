from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hubretrain.errors import CacheError, EngineError
from hubretrain.extraction.engines import calibrate, open_engine
from hubretrain.extraction.engines.quantization import N_IMAGES, adds_8_bits, sample
from tests.extraction.engines.samples import (
    needs_openvino,
    noise,
    probed,
    relative_error,
    relative_errors,
    run_python,
    segments,
)


def contents(n, size):
    """Pretended contents: digests and their pixels."""
    return {f"{i:064x}": pixels for i, pixels in enumerate(noise(n, size, seed=1))}


def test_the_sample_depends_on_contents_and_seed_only():
    digests = list(contents(1000, 1))
    first = sample(digests, 0)
    assert sample(digests[::-1] + digests, 0) == first
    assert sample(digests, 1) != first
    assert list(sample(digests[:500], 0)) == [s for s in first if s in set(digests[:500])]


@needs_openvino
def test_nncf_is_silenced_by_its_own_logger_alone():
    import_nncf = pytest.importorskip("hubretrain.extraction.engines.openvino_library").import_nncf
    logger, other = logging.getLogger("nncf"), logging.NullHandler()
    logger.addHandler(other)  # as pytest adds one that hears what does not propagate
    try:
        import_nncf()
        assert other.level == logging.NOTSET
        assert not logger.isEnabledFor(logging.WARNING)
    finally:
        logger.removeHandler(other)


@needs_openvino
def test_int8_is_calibrated_once_and_gives_the_same_bytes_ever_after(pooled_module, tmp_path):
    module, images = probed(pooled_module), contents(320, 8)
    broken = sample(images, 3)[5]
    images[broken] = None
    folder = tmp_path / "small.int8"
    attributes = calibrate(module, folder, images, images.get, seed=3)
    assert attributes["calibration_images"] == N_IMAGES
    chosen = (folder / "calibration.csv").read_text().split()[1:]
    assert chosen == [s for s in sample(images, 3) if s != broken][:N_IMAGES]
    record = json.loads((folder / "calibration.json").read_text())
    assert record["seed"] == 3
    assert record["module_sha256"] == module.sha256
    assert record["weight_bits"] == (8 if adds_8_bits() else 7)

    batch = noise(8, 8)
    with (
        open_engine(module, "openvino", "int8", quantised=folder) as engine,
        open_engine(module) as exact,
    ):
        assert engine.precision == "int8"
        features = engine(batch)
        assert 0 < relative_error(features, exact(batch)) < 0.2
        assert np.array_equal(engine(batch[::-1])[::-1], features)

    def fail(sha256):
        raise AssertionError("calibrated again")

    more = [*images, "f" * 64]
    assert calibrate(module, folder, more, fail, seed=3) == attributes
    with open_engine(module, "openvino", "int8", quantised=folder) as engine:
        assert np.array_equal(engine(batch), features)


@needs_openvino
def test_a_calibration_that_is_lost_is_made_again_byte_by_byte(pooled_module, tmp_path):
    script = """
import sys, numpy as np
from pathlib import Path
from hubretrain.extraction.engines import calibrate
from hubretrain.modules import resolve
pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
images = {str(i): image for i, image in enumerate(pixels)}
print(calibrate(resolve(sys.argv[1]), Path(sys.argv[2]), images, images.get))
"""
    probed(pooled_module)
    first = run_python(script, pooled_module, tmp_path / "small.int8")
    shutil.rmtree(tmp_path / "small.int8")
    assert run_python(script, pooled_module, tmp_path / "small.int8") == first


@needs_openvino
def test_a_calibration_of_something_else_or_damaged_is_refused(pooled_module, tmp_path):
    module, images = probed(pooled_module), contents(20, 8)
    folder = tmp_path / "small.int8"

    def again(**options):
        return calibrate(module, folder, images, images.get, **options)

    attributes = again(seed=3)
    with pytest.raises(
        CacheError, match=r"calibrated with seed 3, and 4 is required now; .*`overwrite`"
    ):
        again(seed=4)
    assert again(seed=4, overwrite=True)["calibration_sha256"] != attributes["calibration_sha256"]
    assert again(seed=4)["calibration_images"] == 20
    whole = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(EngineError, match=r"cannot be read \(model.bin is damaged or another one"):
        open_engine(module, "openvino", "int8", quantised=folder)
    (folder / "model.bin").write_bytes(b"")
    with pytest.raises(CacheError, match=r"is damaged: its digest .* remove it and cache again"):
        again(seed=4)
    shutil.rmtree(folder)
    with pytest.raises(EngineError, match="none of the images can be decoded"):
        calibrate(module, folder, images, {}.get)
    assert not folder.exists()


@needs_openvino
def test_int8_gives_inner_layers_after_the_same_output(residual_module, tmp_path):
    module, images = probed(residual_module), contents(40, 16)
    layers = [point.name for point in module.layer_points]
    calibrate(module, tmp_path / "some.int8", images, images.get, layers=layers[1:])
    calibrate(replace(module, layer_points=()), tmp_path / "last.int8", images, images.get)
    batch = list(images.values())[:8]
    outputs = []
    for name, names in (("some", layers), ("some", layers[-1:]), ("some", []), ("last", [])):
        quantised = tmp_path / f"{name}.int8"
        with open_engine(module, "openvino", "int8", quantised=quantised, layers=names) as engine:
            outputs.append(engine(batch))
            assert np.array_equal(engine(batch[:0:-1])[::-1], outputs[-1][1:])
    with open_engine(module, layers=layers) as exact:
        columns = segments(module, layers)
        assert relative_errors(outputs[0], exact(batch), columns).max() < 0.2
    assert np.array_equal(outputs[2], outputs[3])
    # Where a map is read in the middle, other operations are fused, and a bit of 8 may differ.
    for output in outputs:
        assert relative_errors(output, outputs[3], columns[:1]).max() < 2**-8


@needs_openvino
def test_int8_gives_layers_of_products_of_matrices_and_of_operations_that_are_twice_there(tmp_path):
    from hubretrain.tensorflow import tf

    whole, random = tf.Module(), np.random.default_rng(0)
    shapes = ((3, 3, 3, 12), (12, 24), (24, 8), (1, 1, 24, 8), (16, 10))
    whole.kernels = [tf.Variable(random.normal(0, 0.4, s), dtype=tf.float32) for s in shapes]

    def features(pixels):
        first, second, left, right, last = whole.kernels
        x = tf.nn.relu6(tf.nn.conv2d(pixels - 0.5, first, 2, "SAME"))
        x = x @ second
        left, right = tf.nn.relu(x) @ left, tf.nn.conv2d(tf.nn.relu(x), right, 1, "SAME")
        x = tf.nn.relu(tf.concat([left, right], -1))
        return tf.reduce_mean(x, (1, 2)) @ last

    spec = tf.TensorSpec((None, 16, 16, 3), tf.float32)
    whole.__call__ = tf.function(features, input_signature=[spec])
    tf.saved_model.save(whole, str(tmp_path / "products"))
    module, images = probed(tmp_path / "products"), contents(40, 16)
    assert [point.n_channels for point in module.layer_points] == [12, 24, 16]
    layers = [point.name for point in module.layer_points]
    folder = tmp_path / "products.int8"
    calibrate(module, folder, images, images.get, layers=layers)
    batch = list(images.values())[:8]
    with (
        open_engine(module, "openvino", "int8", quantised=folder, layers=layers) as engine,
        open_engine(module, layers=layers) as exact,
    ):
        errors = relative_errors(engine(batch), exact(batch), segments(module, layers))
    assert errors.max() < 0.2


@needs_openvino
def test_a_calibration_without_inner_layers_is_made_again_on_request(pooled_module, tmp_path):
    module, images = probed(pooled_module), contents(20, 8)
    layers = [point.name for point in module.layer_points]
    calibrate(replace(module, layer_points=()), tmp_path / "small.int8", images, images.get)

    def again(**options):
        return calibrate(module, tmp_path / "small.int8", images, images.get, **options)

    sentence = rf"was calibrated without layer {layers[0]}; choose `layers` last, or `overwrite`"
    with pytest.raises(CacheError, match=sentence):
        again(layers=layers)
    attributes = again()
    assert again(layers=layers, overwrite=True) != attributes
    assert again(layers=layers) == again()


@needs_openvino
def test_8_bit_weights_are_refused_where_they_overflow(pooled_module, tmp_path, monkeypatch):
    from hubretrain.extraction.engines import quantization

    module, images = probed(pooled_module), contents(20, 8)
    monkeypatch.setattr(quantization, "adds_8_bits", lambda: True)
    calibrate(module, tmp_path / "small.int8", images, images.get)
    monkeypatch.setattr(quantization, "adds_8_bits", lambda: False)
    with pytest.raises(EngineError, match="without overflow"):
        calibrate(module, tmp_path / "small.int8", images, images.get)
