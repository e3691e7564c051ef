from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hubretrain.errors import EngineError
from hubretrain.extraction.engines import choice, choose_engine, open_engine
from tests.extraction.engines.samples import (
    needs_openvino,
    noise,
    probed,
    relative_error,
    run_python,
)
from tests.samples import REPOSITORY, write_pooled
from tests.tolerances import assert_same_features


@needs_openvino
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_openvino_gives_the_features_of_tensorflow(pooled_module, value_range):
    from dataclasses import replace

    module = replace(probed(pooled_module), value_range=value_range)
    images = noise(8, 8)
    with open_engine(module, "tensorflow") as tensorflow, open_engine(module, "openvino") as other:
        assert (other.name, other.precision) == ("openvino", "f32")
        expected, features = tensorflow(images), other(images)
        assert features.dtype == np.float32
        assert relative_error(features, expected) < 1e-5
        assert np.array_equal(other(images[:3]), features[:3])


@pytest.mark.slow
@needs_openvino
def test_openvino_gives_the_features_of_tensorflow_on_a_real_module(real_models):
    from hubretrain.modules import Backbone

    module = probed(real_models / "mobilenet_v2_035_224")
    images = noise(8, module.image_size)
    with open_engine(module, "tensorflow") as tensorflow, open_engine(module, "openvino") as other:
        assert_same_features(other(images), tensorflow(images), Backbone(module).variables)


@needs_openvino
def test_openvino_features_depend_on_no_neighbour_and_no_slot(real_models):
    module = probed(real_models / "mobilenet_v2_035_224")
    images, random = noise(24, module.image_size), np.random.default_rng(0)
    with open_engine(module, "openvino") as engine:
        alone = np.concatenate([engine([image]) for image in images])
        for _ in range(6):
            order = random.permutation(24)
            parts = np.split(order, np.sort(random.choice(np.arange(1, 24), 5, replace=False)))
            parts = [p for part in parts for p in np.split(part, [8, 16]) if len(p)]
            futures = [engine.submit([images[i] for i in part]) for part in parts]
            for part, future in zip(parts, futures, strict=True):
                assert np.array_equal(future.result(), alone[part])


@needs_openvino
def test_a_converted_module_needs_no_tensorflow_and_a_damaged_one_is_made_again(tmp_path):
    module = probed(write_pooled(tmp_path / "converted_once", seed=5))
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
    np.save(tmp_path / "images.npy", images)
    assert run_python(script, tmp_path / "converted_once", tmp_path / "images.npy") == "False False"
    assert np.array_equal(np.load(tmp_path / "images.npy"), expected)

    (kept,) = (Path(os.environ["HUBRETRAIN_STORE"]) / "openvino").glob("converted_once-*")
    weights = (kept / "model.bin").read_bytes()
    for damaged in (weights[: len(weights) // 2], bytes(len(weights))):
        (kept / "model.bin").write_bytes(damaged)
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
    sentence = "cannot convert .* for operations: ScaleAndTranslate.; choose `engine=tensorflow`"
    with pytest.raises(EngineError, match=sentence):
        open_engine(module, "openvino")
    monkeypatch.setattr(choice, "gpu_in_sight", lambda: False)
    assert choose_engine("auto", module=module) == "tensorflow"
    assert choose_engine("openvino", module=module) == "openvino"


_BUFFERS_OF_NEW_REQUESTS = """
import sys, threading
import numpy as np
from hubretrain.extraction.engines.openvino_library import ov

sys.setswitchinterval(1e-6)
pixels = ov.opset8.parameter([1, 8], np.float32)
model = ov.Core().compile_model(ov.Model([ov.opset8.relu(pixels)], [pixels]), "CPU")
requests = [model.create_infer_request() for _ in range(2)]
together = threading.Barrier(2)

def take(request):
    together.wait()
    request.get_input_tensor().data

threads = [threading.Thread(target=take, args=(r,), daemon=True) for r in requests]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@needs_openvino
@pytest.mark.parametrize(
    "n_processes", [pytest.param(6, id="few"), pytest.param(60, id="many", marks=pytest.mark.slow)]
)
def test_two_threads_that_take_the_first_buffers_do_not_wait_for_each_other(n_processes):
    # Without the call at the door's import, six of eight processes hang.
    for _ in range(n_processes):
        run_python(_BUFFERS_OF_NEW_REQUESTS)


_TWO_ENGINES = """
import sys, threading
import numpy as np
from hubretrain.extraction.engines import open_engine
from hubretrain.modules import resolve

sys.setswitchinterval(1e-6)
engines = [open_engine(resolve(path), "openvino") for path in sys.argv[1:]]
futures = [engine.submit([np.zeros((8, 8, 3), np.uint8)]) for engine in engines]
print([future.result().shape[0] for future in futures])
"""


@needs_openvino
@pytest.mark.slow
def test_two_engines_begin_together_in_a_new_process(tmp_path):
    folders = [write_pooled(tmp_path / f"begins_{seed}", seed=seed) for seed in (7, 8)]
    for folder in folders:
        with open_engine(probed(folder), "openvino"):  # converted once, so that the others are fast
            pass
    for _ in range(40):
        assert run_python(_TWO_ENGINES, *folders) == "[1, 1]"


@needs_openvino
def test_a_conversion_is_kept_with_the_permissions_that_the_umask_leaves(
    pooled_module, tmp_path, monkeypatch
):
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    before = os.umask(0o027)
    try:
        with open_engine(probed(pooled_module), "openvino"):
            pass
    finally:
        os.umask(before)
    (folder,) = (tmp_path / "store" / "openvino").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o750


@needs_openvino
def test_a_conversion_without_room_for_the_saved_model_is_one_sentence(tmp_path):
    """No file of the process may be larger than 16 KiB."""
    module = write_pooled(tmp_path / "pooled")
    script = (
        "import resource, sys\n"
        "from hubretrain.errors import EngineError\n"
        "from hubretrain.extraction.engines.conversion import converted\n"
        "from hubretrain.modules import resolve\n"
        "module = resolve(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))\n"
        "try:\n"
        "    converted(module)\n"
        "except EngineError as error:\n"
        "    print('said:', error)\n"
    )
    environment = {**os.environ, "HUBRETRAIN_STORE": str(tmp_path / "store")}
    environment["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, "-c", script, str(module)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "said: " in ran.stdout, ran.stderr
    assert "cannot be written" in ran.stdout
