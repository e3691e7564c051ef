from __future__ import annotations

import os
import shutil

import pytest

from hubretrain.data.images.decoding import to_unit
from hubretrain.errors import RunError
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.export.manifest import Export, read_manifest
from hubretrain.export.runtimes import open_runtime
from hubretrain.files import read_record, write_record
from tests.samples import photo_crops


def test_half_an_export_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is no export; run `hubretrain export` first"):
        read_manifest(tmp_path)
    write_record(tmp_path / "export.json", {})
    with pytest.raises(RunError, match=r"field 'class_names'.; run `hubretrain export` again"):
        read_manifest(tmp_path)


def test_half_a_copy_and_another_models_labels_are_refused(small_export, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(small_export, copy)
    (copy / "labels.txt").write_text("x\ny\nz\n")
    with pytest.raises(RunError, match=r"labels\.txt names other classes than export\.json; copy"):
        Export.open(copy)
    shutil.copy(small_export / "labels.txt", copy)
    exported = Export.open(copy)
    model = copy / "model.tflite"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"model\.tflite is not the file that export\.json was writ"):
        open_runtime(exported)
    model.unlink()
    with pytest.raises(RunError, match=r"model\.tflite cannot be read \(No such file"):
        open_runtime(exported)
    shutil.rmtree(copy / "variables")
    with pytest.raises(RunError, match=r"variables/.* cannot be read \(No such file"):
        open_runtime(exported, "savedmodel")
    facts = read_record(copy / "export.json")
    del facts["files"]["model.onnx"]
    write_record(copy / "export.json", facts)
    with pytest.raises(RunError, match=r"holds no model\.onnx; run the `hubretrain export` that"):
        open_runtime(Export.open(copy), "onnx")


def test_decisions_are_those_of_the_rule_without_the_temperature(small_export, pooled_module):
    exported = Export.open(small_export)
    pixels = to_unit(photo_crops(40))
    calibrated = open_runtime(exported, "litert")({8: pixels})
    plain = calibrated.astype(float) ** 1.6
    plain /= plain.sum(axis=1, keepdims=True)
    decided = DecisionRule(1.0, (0.6, 0.3, 0.1)).decide(plain)
    assert (exported.decisions(calibrated) == decided).all()
    assert (decided != calibrated.argmax(axis=1)).any()
    assert exported.manifest["adjust"] == pytest.approx(1 / 1.6)


@pytest.mark.parametrize("name", ["labels.txt", "model.tflite"])
def test_a_pipe_in_an_export_is_refused_and_not_waited_for(small_export, tmp_path, name):
    copy = shutil.copytree(small_export, tmp_path / "export")
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(RunError, match=f"{name} cannot be read .*named pipe, not a regular file"):
        open_runtime(Export.open(copy))
