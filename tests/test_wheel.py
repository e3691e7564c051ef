"""What is installed from a wheel works alone, without the source tree beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.samples import REPOSITORY, write_digits

SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.cfg", "setup.py")
ALONE = """
import asyncio, sys
from pathlib import Path
site, images, export = sys.argv[1:]
sys.path.insert(0, site)
import hubretrain
assert Path(hubretrain.__file__).is_relative_to(site), hubretrain.__file__

dataset = hubretrain.open_dataset(images)
assert len(dataset.images) == 60
from hubretrain.modules import read_catalogue
assert read_catalogue()
from hubretrain.report import write_check_page
write_check_page(Path("page.html"), hubretrain.check_dataset(dataset), dataset.root)
assert "</html>" in Path("page.html").read_text(encoding="utf-8")

from hubretrain.export import Export, open_runtime
from hubretrain.serving.app import make_app
export = Export.open(export)
app = make_app(export, open_runtime(export), "small", hubretrain.ServeLimits())
sent = []
async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
async def send(message): sent.append(message)
scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "headers": [],
         "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"}
asyncio.run(app(scope, receive, send))
assert sent[0]["status"] == 200
assert b"</html>" in sent[1]["body"]
assert "tensorflow" not in sys.modules
"""


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    ran = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy, for a build leaves files in its source tree, and takes older ones in."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "hubretrain", source / "hubretrain", ignore=ignored)
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (path,) = folder.glob("hubretrain-*.whl")
    return path


def test_a_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("hubretrain/")}
    files = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "hubretrain").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
    }
    assert packed == files
    for name in ("py.typed", "__init__.pyi", "modules/modules.csv", "report/templates/base.html"):
        assert f"hubretrain/{name}" in packed


def test_an_installed_wheel_works_without_the_source_tree(
    wheel: Path, small_export: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fastapi")
    site = tmp_path / "site"
    pip("install", "--no-deps", "--target", site, wheel)
    images = write_digits(tmp_path / "digits", 60)
    command = [sys.executable, "-I", "-c", ALONE, site, images, small_export]
    ran = subprocess.run(
        list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
