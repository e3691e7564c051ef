from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def with_onnx():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder, with a store of its own."""
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
