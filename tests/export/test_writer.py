from __future__ import annotations

import shutil

import numpy as np
import pytest

from hubretrain.data.images.decoding import to_unit
from hubretrain.errors import EngineError
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import open_runtime
from hubretrain.files import read_record, write_record
from hubretrain.modules import resolve
from tests.samples import photo_crops


def test_formats_are_added_to_an_export_without_training(small_export, tmp_path):
    from hubretrain.export.writer import add_formats

    copy = tmp_path / "copy"
    shutil.copytree(small_export, copy)
    facts = read_record(copy / "export.json")
    for name in ("model.onnx", "model.tflite", "model_int8.tflite"):
        del facts["files"][name]
        (copy / name).unlink()
    facts["not_converted"] = "it could not then"
    write_record(copy / "export.json", facts)
    pixels = to_unit(photo_crops(4))
    added = add_formats(copy, ["onnx"])
    assert added.manifest["not_converted"] == "it could not then"
    assert add_formats(copy, ["litert"]).manifest["not_converted"] == ""
    said = open_runtime(added, "onnx")({8: pixels})
    assert np.allclose(said, open_runtime(Export.open(small_export), "onnx")({8: pixels}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


def test_what_cannot_be_converted_is_served_by_tensorflow(small_module, tmp_path):
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier

    zeros = np.zeros((5, 2), np.float32), np.zeros(2, np.float32)
    classifier = Classifier(Backbone(resolve(str(small_module))), "softmax", *zeros)
    write_export([Member(classifier)], ["a", "b"], tmp_path / "export", {})
    exported = Export.open(tmp_path / "export")
    assert "cannot be converted to LiteRT" in exported.manifest["not_converted"]
    runner = open_runtime(exported)
    assert runner.name == "TensorFlow"
    assert np.allclose(runner({8: to_unit(photo_crops(2))}), 0.5)
    with pytest.raises(EngineError, match="cannot be converted to LiteRT"):
        write_export([Member(classifier)], ["a", "b"], tmp_path / "e", {}, formats=["litert"])
    assert not (tmp_path / "e").exists()
