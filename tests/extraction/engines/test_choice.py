from __future__ import annotations

from pathlib import Path

import pytest

from hubretrain.errors import EngineError
from hubretrain.extraction.engines import choice, choose_engine
from tests.extraction.engines.samples import (
    needs_openvino,
    probed,
    run_python,
)


def test_the_engine_that_is_named_is_taken():
    assert choose_engine("tensorflow") == "tensorflow"


@needs_openvino
def test_auto_takes_openvino_unless_a_gpu_is_in_sight_or_features_are_there(
    pooled_module, monkeypatch
):
    monkeypatch.setattr(choice, "gpu_in_sight", lambda: False)
    assert choose_engine("auto") == "openvino"
    assert choose_engine("auto", module=probed(pooled_module)) == "openvino"
    assert choose_engine("auto", cached="tensorflow") == "tensorflow"
    monkeypatch.setattr(choice, "gpu_in_sight", lambda: True)
    assert choose_engine("auto") == "tensorflow"
    assert choose_engine("auto", "int8") == "openvino"
    assert choose_engine("openvino") == "openvino"


def test_a_hidden_gpu_is_not_in_sight(monkeypatch):
    files = {"/dev/nvidia0"}
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in files)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choice.gpu_in_sight()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not choice.gpu_in_sight()
    files.add("/dev/kfd")
    assert choice.gpu_in_sight()


def test_without_openvino_auto_is_tensorflow_and_the_extra_is_named(tmp_path):
    script = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "openvino" else find_spec(name, *a)
from hubretrain.extraction.engines import choose_engine
from hubretrain.errors import EngineError
print(choose_engine("auto"))
for engine, precision, cached in (
    ("openvino", "f32", None), ("auto", "int8", None), ("auto", "f32", "openvino")
):
    try:
        choose_engine(engine, precision, cached=cached)
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
def test_bf16_is_refused_by_a_cpu_without_it():
    from hubretrain.extraction.engines.openvino_library import ov

    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert choose_engine("openvino", "bf16") == "openvino"
    else:
        with pytest.raises(EngineError, match=r"no bfloat16 .* f32 and call it bf16"):
            choose_engine("openvino", "bf16")


def test_an_unknown_engine_is_an_error_that_lists_them():
    with pytest.raises(
        EngineError, match="`engine` is 'onnx'; expected one of auto, tensorflow, openvino"
    ):
        choose_engine("onnx")


def test_choosing_imports_neither_library():
    script = (
        "import sys; from hubretrain.extraction.engines import choose_engine\n"
        "choose_engine('auto')\n"
        "print({'tensorflow', 'openvino', 'nncf'} & set(sys.modules))"
    )
    assert run_python(script) == "set()"
