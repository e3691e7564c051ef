"""The house's rules, read from the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent / "hubretrain"
STAGES = {
    "cache",
    "cache_files",
    "check",
    "export_run",
    "fit",
    "finetune",
    "predict",
    "prepare",
    "preview",
    "report",
    "serve",
}
COMMANDS = {"cache", "data", "fit", "finetune", "export", "predict", "serve"}
COMMANDS |= {"report", "explain", "modules"}
DOORS = {  # foreign library: the files that may import it
    "ai_edge_litert": {"litert_door"},
    "click": {f"cli.{command}" for command in COMMANDS} | {"cli", "cli.options"},
    "cykooz_resizer": {"resize"},
    "fastapi": {"serving.app"},
    "fsspec": {"storage"},
    "prometheus_client": {"serving.counts"},
    "starlette": {"serving.app"},
    "uvicorn": {"serve", "serving.protocol"},
    "ray": {"parallel"},
    "nncf": {"openvino_door"},
    "onnxruntime": {"onnx_door"},
    "openvino": {"openvino_door"},
    "kagglehub": {"modules.sources"},
    "jinja2": {"pages"},
    "matplotlib": {"report.figures"},
    "tensorflow": {"tensorflow_door"},
    "tensorflow_hub": {"modules.backbone", "modules.sources"},
    "tf2onnx": {"onnx_door"},
    "tf_keras": {
        "modules.efficientnet_lite",
        "modules.keras_applications",
        "modules.keras_export",
        "optimizers",
    },
    "umap": {"report.feature_map"},
}


def imports():
    """(file, imported module) for every import of the package, wherever it stands in a file."""
    found = set()
    for path in sorted(HOUSE.rglob("*.py")):
        name = ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(name, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {(name, node.module)}
                if node.module in ("hubretrain", "hubretrain.modules"):
                    found |= {(name, f"{node.module}.{alias.name}") for alias in node.names}
    return found


def own_imports():
    """(file, file) within the house; the contents page may name everybody."""
    files = {
        ".".join(p.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")
        for p in HOUSE.rglob("*.py")
    }
    pairs = {
        (a, b.removeprefix("hubretrain.")) for a, b in imports() if b.startswith("hubretrain.")
    }
    return {
        (a, b)
        for a, b in pairs
        if b in files and a not in ("__init__", b) and not a.startswith(f"{b}.")
    }


def in_cli(file: str) -> bool:
    return file.split(".")[0] == "cli"


def test_nothing_imports_the_command_line():
    assert {a for a, b in own_imports() if in_cli(b) and not in_cli(a)} == set()


def test_only_the_command_line_imports_stages():
    def stage_of(file: str) -> str | None:
        return next((part for part in file.split(".")[:1] if part in STAGES), None)

    found = {(a, b) for a, b in own_imports() if stage_of(b) and not in_cli(a)}
    assert {(a, b) for a, b in found if stage_of(a) != stage_of(b)} == set()


def test_errors_import_nothing_of_the_house():
    assert {b for a, b in own_imports() if a == "errors"} == set()


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_foreign_library_has_its_door(library):
    users = {a for a, b in imports() if b.split(".")[0] == library}
    assert users <= DOORS[library]


def test_there_is_no_cycle():
    edges: dict[str, set[str]] = {}
    for a, b in own_imports():
        edges.setdefault(a, set()).add(b)
    done: set[str] = set()

    def visit(file: str, above: tuple[str, ...]) -> None:
        assert file not in above, " -> ".join((*above, file))
        if file not in done:
            for other in sorted(edges.get(file, ())):
                visit(other, (*above, file))
            done.add(file)

    for file in sorted(edges):
        visit(file, ())


def test_every_file_says_what_it_is_for():
    for path in HOUSE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
