"""The rules of the house, read from the imports themselves."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hubretrain"
ACROSS_ROOMS = {"faults"}  # rooms of tests that disturb the whole chain
MAX_FILES = 15  # Python files of a room, its door included

# Room: the rooms that its files may import from. Every room may import the files of the root.
EVERY_ROOM = {room.name for room in PACKAGE.iterdir() if (room / "__init__.py").exists()}
MAY_IMPORT: dict[str, set[str]] = {
    "evaluation": set(),
    "bottlenecks": set(),
    "runs": set(),
    "modules": {"runs"},
    "heads": {"evaluation"},
    "data": {"bottlenecks"},
    "extraction": {"bottlenecks", "data", "modules"},
    "screening": {"bottlenecks", "data", "evaluation", "heads", "runs"},
    "racing": {"bottlenecks", "data", "evaluation", "extraction", "modules", "runs", "screening"},
    "export": {"data", "evaluation", "heads", "modules", "runs"},
    "finetuning": {"data", "evaluation", "export", "heads", "modules", "runs"},
    "serving": {"data", "export"},
    "report": {
        *("bottlenecks", "data", "evaluation", "export", "extraction", "finetuning", "heads"),
        *("modules", "runs", "screening"),
    },
    "cli": EVERY_ROOM - {"cli"},
}

# Foreign library: the files that may import it.
DOORS = {
    "aiohttp": {"storage"},
    "ai_edge_litert": {"export.litert"},
    "click": {"cli.*"},
    "cykooz_resizer": {"data.images.resize"},
    "fastapi": {"serving.app"},
    "fsspec": {"storage"},
    "jinja2": {"report.html"},
    "kagglehub": {"modules.sources"},
    "keras": {"modules.builders.keras_export", "modules.builders.keras_models"},
    "keras_hub": {"modules.builders.keras_models"},
    "matplotlib": {"report.figures"},
    "msgspec": {"files"},
    "nncf": {"extraction.engines.openvino_library"},
    "onnx": {"modules.onnx.graphs"},
    "onnxruntime": {"modules.onnx.runtime"},
    "openvino": {"extraction.engines.openvino_library"},
    "pillow_heif": {"data.images.formats"},
    "platformdirs": {"modules.store"},
    "prometheus_client": {"serving.prometheus"},
    "pyarrow": {
        "data.preparing.archives",
        "extraction.exchange.exporting",
        "extraction.exchange.vectors",
    },
    "ray": {"extraction.ray"},
    "starlette": {"serving.app"},
    "tensorflow": {
        "modules.builders.keras_models",
        "tensorflow",
    },  # it runs without hubretrain, too
    "tensorflow_hub": {"modules.backbone", "modules.sources"},
    "timm": {"modules.builders.timm_models"},
    "torch": {"modules.builders.timm_models"},
    "tf2onnx": {"export.onnx"},
    "tf_keras": {
        "finetuning.optimizers",
        "modules.builders.efficientnet_lite",
        "modules.builders.keras_applications",
        "modules.builders.keras_export",
    },
    "umap": {"report.feature_map"},
    "uvicorn": {"serving.connections", "serving.serve"},
}


class Import(NamedTuple):
    """`from imported import name` in a file; `name` is empty for `import imported`."""

    file: str
    imported: str
    name: str


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports() -> frozenset[Import]:
    """Every import of the package, wherever it stands in a file."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {Import(dotted(path), alias.name, "") for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative imports are for the doors' stubs"
                found |= {
                    Import(dotted(path), str(node.module), alias.name) for alias in node.names
                }
    return frozenset(found)


@cache
def files() -> frozenset[str]:
    return frozenset(dotted(path) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@cache
def doors() -> dict[str, dict[str, str]]:
    """Room: the names on its door and the file that each comes from."""
    rooms: dict[str, dict[str, str]] = {}
    for stub in PACKAGE.rglob("__init__.pyi"):
        room = dotted(stub.with_suffix(".py"))
        rooms[room] = {}
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            assert isinstance(node, ast.ImportFrom), f"{stub} holds more than imports"
            for alias in node.names:
                parts = (room, node.module, None if node.module else alias.name)
                rooms[room][alias.name] = ".".join(p for p in parts if p and p != "__init__")
    return rooms


def own_imports() -> set[tuple[str, str]]:
    """(file, file) within the package; a name on a door is followed to its file."""
    pairs = set()
    for file, imported, name in imports():
        if imported.split(".")[0] != "hubretrain":
            continue
        to = imported.removeprefix("hubretrain").removeprefix(".")
        while to in doors() and name in doors()[to] and to not in files():
            to = doors()[to][name]
        if to not in files() and f"{to}.{name}".removeprefix(".") in files():
            to = f"{to}.{name}".removeprefix(".")
        pairs.add((file, to))
    return pairs


def room_of(file: str) -> str:
    """The top-level room of a file, empty for the root."""
    room = file.split(".")[0]
    return room if (PACKAGE / room).is_dir() else ""


def test_the_table_names_every_room():
    assert set(MAY_IMPORT) == EVERY_ROOM


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_the_rooms_that_the_table_allows(room):
    wrong = [
        f"{a} imports {b}, but MAY_IMPORT allows {room} only {sorted(MAY_IMPORT[room])}"
        for a, b in own_imports()
        if room_of(a) == room != room_of(b) and room_of(b) not in {"", *MAY_IMPORT[room]}
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_the_root_imports_no_room():
    wrong = [
        f"{a} imports {b}, but a file of the root serves every room and imports none"
        for a, b in own_imports()
        if not room_of(a) and room_of(b) and a != "__main__"
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_a_room_is_entered_by_its_door():
    """From outside of a room only what its door names is imported, so the rest can change."""
    wrong = []
    for file, imported, name in imports():
        to = imported.removeprefix("hubretrain").removeprefix(".")
        if not imported.startswith("hubretrain.") or to not in files() or "." not in to:
            continue
        room = to.rpartition(".")[0]
        if not f"{file}.".startswith(f"{room}."):
            wrong.append(f"{file} imports {name} from {to}; expected: from the door of {room}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_name_on_a_door_is_the_name_of_a_file():
    """Once Python has imported the file, the package's attribute would be the file."""
    for room, names in doors().items():
        for name, file in names.items():
            here = f"{room}.{name}".removeprefix(".")
            assert here == file or here not in files(), f"{room}: {name}"


def test_errors_import_nothing_of_the_package():
    assert {b for a, b in own_imports() if a == "errors"} == set()


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_foreign_library_has_its_door(library):
    users = {i.file for i in imports() if i.imported.split(".")[0] == library}
    allowed = DOORS[library]
    assert users, f"nothing imports {library}: take it out of DOORS"
    wrong = {user for user in users if not {user, f"{user.split('.')[0]}.*"} & allowed}
    assert not wrong, f"{sorted(wrong)} import {library}; its door is {sorted(allowed)}"


def test_there_is_no_cycle():
    edges: dict[str, set[str]] = defaultdict(set)
    for a, b in own_imports():
        if a != b:
            edges[a].add(b)
    done: set[str] = set()

    def visit(file: str, above: tuple[str, ...]) -> None:
        assert file not in above, " -> ".join((*above, file))
        if file not in done:
            for other in sorted(edges.get(file, ())):
                visit(other, (*above, file))
            done.add(file)

    for file in sorted(edges):
        visit(file, ())


def test_no_room_has_more_than_fifteen_files():
    counts = {room: len(list(room.glob("*.py"))) for room in [PACKAGE, *PACKAGE.rglob("*/")]}
    assert {str(room): n for room, n in counts.items() if n > MAX_FILES} == {}


def test_every_file_says_what_it_is_for():
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_a_door_names_every_file_of_its_room():
    for path in PACKAGE.rglob("*.py"):
        if path.parent not in (PACKAGE, PACKAGE / "cli") and not path.name.startswith("__"):
            door = ast.parse((path.parent / "__init__.py").read_text(encoding="utf-8"))
            assert f"`{path.stem}`" in str(ast.get_docstring(door)), path


def test_tests_mirror_the_rooms():
    tests = Path(__file__).resolve().parent
    for path in tests.rglob("test_*.py"):
        room = PACKAGE / path.relative_to(tests).parent
        if path.parent.name in ACROSS_ROOMS:
            continue
        assert (room / "__init__.py").exists(), f"{path} tests no room"
