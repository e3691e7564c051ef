from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hubretrain.errors import CacheError, EngineError
from hubretrain.extraction.engines import calibrate, choice, choose_engine, open_engine
from hubretrain.extraction.engines.quantization import N_IMAGES, adds_8_bits, sample
from hubretrain.modules import resolve
from tests.samples import write_module, write_pooled

needs_openvino = pytest.mark.skipif(
    not (choice._has("openvino") and choice._has("nncf")), reason="no OpenVINO"
)
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="session")
def antialiased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module with an operation that OpenVINO does not know."""
    return write_module(tmp_path_factory.mktemp("modules") / "antialiased")


@pytest.fixture(scope="session")
def small_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pooled(tmp_path_factory.mktemp("modules") / "small")


def probed(folder):
    from hubretrain.modules.backbone import Backbone

    return Backbone(resolve(str(folder))).stored


def noise(n, size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return list(pixels)


def run_python(script, *arguments, **environment):
    """Runs a script in a process of its own and returns what it printed."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# Choice


def test_what_is_asked_for_is_taken():
    assert choose_engine("tensorflow") == "tensorflow"


@needs_openvino
def test_auto_takes_openvino_unless_a_gpu_is_in_sight_or_features_are_there(
    small_module, monkeypatch
):
    monkeypatch.setattr(choice, "gpu_in_sight", lambda: False)
    assert choose_engine("auto") == "openvino"
    assert choose_engine("auto", module=probed(small_module)) == "openvino"
    assert choose_engine("auto", before="tensorflow") == "tensorflow"
    monkeypatch.setattr(choice, "gpu_in_sight", lambda: True)
    assert choose_engine("auto") == "tensorflow"
    assert choose_engine("auto", "int8") == "openvino"
    assert choose_engine("openvino") == "openvino"


def test_a_hidden_gpu_is_not_in_sight(monkeypatch):
    there = {"/dev/nvidia0"}
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choice.gpu_in_sight()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not choice.gpu_in_sight()
    there.add("/dev/kfd")
    assert choice.gpu_in_sight()


def test_without_openvino_auto_is_tensorflow_and_the_extra_is_named(tmp_path):
    script = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "openvino" else found(name, *a)
from hubretrain.extraction.engines import choose_engine
from hubretrain.errors import EngineError
print(choose_engine("auto"))
for name, precision, before in (
    ("openvino", "f32", None), ("auto", "int8", None), ("auto", "f32", "openvino")
):
    try:
        choose_engine(name, precision, before=before)
    except EngineError as error:
        print(error)
"""
    name, *errors = run_python(script).splitlines()
    assert name == "tensorflow"
    sentence = (
        "the OpenVINO engine{} needs openvino, which is not installed; "
        "install it with: pip install 'hubretrain[openvino]'"
    )
    assert errors == [sentence.format(w) for w in ("", " with int8", "")]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_tensorflow_refuses_what_it_cannot_compute(precision):
    with pytest.raises(EngineError, match=f"computes f32 only, not {precision}; .*openvino"):
        choose_engine("tensorflow", precision)


@needs_openvino
def test_bf16_is_refused_by_a_processor_without_it():
    from hubretrain.extraction.engines.openvino import ov

    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert choose_engine("openvino", "bf16") == "openvino"
    else:
        with pytest.raises(EngineError, match=r"no bfloat16 .* f32 and call it bf16"):
            choose_engine("openvino", "bf16")


def test_an_unknown_engine_is_an_error_that_lists_them():
    with pytest.raises(EngineError, match="the engines are auto, tensorflow, openvino"):
        choose_engine("onnx")


def test_choosing_imports_neither_library():
    script = (
        "import sys; from hubretrain.extraction.engines import choose_engine\n"
        "choose_engine('auto')\n"
        "print({'tensorflow', 'openvino', 'nncf'} & set(sys.modules))"
    )
    assert run_python(script) == "set()"


# TensorFlow


def test_submitted_batches_give_what_calls_give(small_module):
    with open_engine(probed(small_module)) as engine:
        images = noise(100, 8)
        parts = [images[i : i + 7] for i in range(0, 100, 7)]
        futures = [engine.submit(part) for part in parts]
        together = np.concatenate([future.result() for future in futures])
        assert together.dtype == np.float32
        assert np.array_equal(together, np.concatenate([engine(part) for part in parts]))
        with pytest.raises(ValueError, match="49 images in a batch of at most 48"):
            engine.submit(images[:49])


@pytest.mark.slow  # TensorFlow waits ten seconds for memory to become free
def test_a_batch_that_does_not_fit_in_memory_is_a_sentence(small_module, tmp_path):
    script = """
import sys, numpy as np
from hubretrain.extraction.engines import open_engine
from hubretrain.extraction.engines.tensorflow import best_batch_size
from hubretrain.errors import EngineError
from hubretrain.modules import resolve
from hubretrain.modules.backbone import Backbone
module = Backbone(resolve(sys.argv[1], image_size=256)).stored
images = [np.zeros((256, 256, 3), np.uint8)] * 192
try:
    open_engine(module, batch_size=192)(images)
except EngineError as error:
    print(error)
build = lambda n: open_engine(module, batch_size=n)
print(best_batch_size(build, first=24, seconds=0.05) < 192)
"""
    any_size = write_pooled(tmp_path / "any", size=None)
    error, fits = run_python(script, any_size, TF_CPU_BFC_MEM_LIMIT_IN_MB="400").splitlines()
    assert "TensorFlow cannot run" in error
    assert "on 192 images at once (" in error
    assert "choose a smaller --batch-size" in error
    assert fits == "True"


# OpenVINO


@needs_openvino
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_openvino_gives_the_features_of_tensorflow(small_module, value_range):
    from dataclasses import replace

    module = replace(probed(small_module), value_range=value_range)
    images = noise(8, 8)
    with open_engine(module, "tensorflow") as tensorflow, open_engine(module, "openvino") as other:
        assert (other.name, other.precision) == ("openvino", "f32")
        expected, found = tensorflow(images), other(images)
        assert found.dtype == np.float32
        assert relative_error(found, expected) < 1e-5
        assert np.array_equal(other(images[:3]), found[:3])


@needs_openvino
def test_openvino_gives_the_features_of_tensorflow_on_a_real_module(real_models):
    module = probed(real_models / "mobilenet_v2_035_224")
    images = noise(8, module.image_size)
    with open_engine(module, "tensorflow") as tensorflow, open_engine(module, "openvino") as other:
        assert relative_error(other(images), tensorflow(images)) < 1e-4


@needs_openvino
def test_openvino_features_depend_on_no_neighbour_and_no_slot(real_models):
    module = probed(real_models / "mobilenet_v2_035_224")
    images = noise(24, module.image_size)
    with open_engine(module, "openvino") as engine:
        alone = np.concatenate([engine([image]) for image in images])
        for _ in range(6):
            order = RANDOM.permutation(24)
            parts = np.split(order, np.sort(RANDOM.choice(np.arange(1, 24), 5, replace=False)))
            parts = [p for part in parts for p in np.split(part, [8, 16]) if len(p)]
            futures = [engine.submit([images[i] for i in part]) for part in parts]
            for part, future in zip(parts, futures, strict=True):
                assert np.array_equal(future.result(), alone[part])


@needs_openvino
def test_a_converted_module_needs_no_tensorflow_and_a_damaged_one_is_made_again(tmp_path):
    module = probed(write_pooled(tmp_path / "mine", seed=5))
    images = noise(3, 8)
    with open_engine(module, "openvino") as engine:
        expected = engine(images)
    script = """
import sys, numpy as np
from hubretrain.extraction.engines import open_engine
from hubretrain.modules import resolve
images = list(np.load(sys.argv[2]))
np.save(sys.argv[2], open_engine(resolve(sys.argv[1]), "openvino")(images))
print('tensorflow' in sys.modules, 'openvino_telemetry' in sys.modules)
"""
    np.save(tmp_path / "it.npy", images)
    assert run_python(script, tmp_path / "mine", tmp_path / "it.npy") == "False False"
    assert np.array_equal(np.load(tmp_path / "it.npy"), expected)

    (kept,) = (Path(os.environ["HUBRETRAIN_STORE"]) / "openvino").glob("mine-*")
    weights = (kept / "model.bin").read_bytes()
    (kept / "model.bin").write_bytes(weights[: len(weights) // 2])
    with open_engine(module, "openvino") as engine:
        assert np.array_equal(engine(images), expected)
    assert (kept / "model.bin").read_bytes() == weights


@needs_openvino
def test_a_store_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    module = probed(write_pooled(tmp_path / "mine", seed=6))
    (tmp_path / "store").write_text("a file, not a folder")
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    with pytest.raises(EngineError, match="openvino/ cannot be written"):
        open_engine(module, "openvino")


@needs_openvino
def test_a_module_that_openvino_cannot_convert_runs_in_tensorflow(antialiased, monkeypatch):
    module = probed(antialiased)
    sentence = "cannot convert .* for operations: ScaleAndTranslate.; go on with --engine tensorfl"
    with pytest.raises(EngineError, match=sentence):
        open_engine(module, "openvino")
    monkeypatch.setattr(choice, "gpu_in_sight", lambda: False)
    assert choose_engine("auto", module=module) == "tensorflow"
    assert choose_engine("openvino", module=module) == "openvino"


# int8


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
def test_int8_is_calibrated_once_and_gives_the_same_bytes_ever_after(small_module, tmp_path):
    module, images = probed(small_module), contents(320, 8)
    broken = sample(images, 3)[5]
    images[broken] = None
    folder = tmp_path / "small.int8"
    facts = calibrate(module, folder, images, images.get, seed=3)
    assert facts["calibration_images"] == N_IMAGES
    chosen = (folder / "calibration.csv").read_text().split()[1:]
    assert chosen == [s for s in sample(images, 3) if s != broken][:N_IMAGES]
    kept = json.loads((folder / "calibration.json").read_text())
    assert kept["seed"] == 3
    assert kept["module_sha256"] == module.sha256
    assert kept["weight_bits"] == (8 if adds_8_bits() else 7)

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
    assert calibrate(module, folder, more, fail, seed=3) == facts
    with open_engine(module, "openvino", "int8", quantised=folder) as engine:
        assert np.array_equal(engine(batch), features)


@needs_openvino
def test_a_calibration_that_is_lost_is_made_again_byte_by_byte(small_module, tmp_path):
    script = """
import sys, numpy as np
from pathlib import Path
from hubretrain.extraction.engines import calibrate
from hubretrain.modules import resolve
pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
images = {str(i): one for i, one in enumerate(pixels)}
print(calibrate(resolve(sys.argv[1]), Path(sys.argv[2]), images, images.get))
"""
    probed(small_module)
    first = run_python(script, small_module, tmp_path / "small.int8")
    shutil.rmtree(tmp_path / "small.int8")
    assert run_python(script, small_module, tmp_path / "small.int8") == first


@needs_openvino
def test_a_calibration_of_something_else_or_damaged_is_refused(small_module, tmp_path):
    module, images = probed(small_module), contents(20, 8)
    folder = tmp_path / "small.int8"

    def again(**options):
        return calibrate(module, folder, images, images.get, **options)

    facts = again(seed=3)
    with pytest.raises(CacheError, match=r"calibrated with seed 3, and now it is 4; .*`overwrite`"):
        again(seed=4)
    assert again(seed=4, overwrite=True)["calibration_sha256"] != facts["calibration_sha256"]
    assert again(seed=4)["calibration_images"] == 20
    (folder / "model.bin").write_bytes(b"")
    with pytest.raises(CacheError, match=r"is damaged: its digest .* remove it and cache again"):
        again(seed=4)
    shutil.rmtree(folder)
    with pytest.raises(EngineError, match="none of the images can be decoded"):
        calibrate(module, folder, images, {}.get)
    assert not folder.exists()


@needs_openvino
def test_8_bit_weights_are_refused_where_they_overflow(small_module, tmp_path, monkeypatch):
    from hubretrain.extraction.engines import quantization as calibration

    module, images = probed(small_module), contents(20, 8)
    monkeypatch.setattr(calibration, "adds_8_bits", lambda: True)
    calibrate(module, tmp_path / "small.int8", images, images.get)
    monkeypatch.setattr(calibration, "adds_8_bits", lambda: False)
    with pytest.raises(EngineError, match="without overflow"):
        calibrate(module, tmp_path / "small.int8", images, images.get)
