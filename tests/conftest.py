from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.browsing import find_browser
from tests.samples import REPOSITORY, small_head, write_module, write_pooled

# Files that are begun first, so that no CPU waits at the end.
LONGEST = (
    "tests/test_readme.py",
    "tests/extraction/test_ray.py",
    "tests/finetuning/test_trainer.py",
    "tests/report/test_report.py",
    "tests/export/test_export.py",
)

# On a busy machine every example may be slow.
settings.register_profile("any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_speed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: what the
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests start would never hear Ctrl-C


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers("parametrize"):
        values = mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]
        if isinstance(values, (set, frozenset)):  # each worker has another order of hashes
            pytest.fail(f"{metafunc.definition.nodeid} is parametrized by a set: sort it.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(REPOSITORY).as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)  # stable: the others keep order


def real_folder(variable: str, beside: str) -> Path | None:
    """A folder of real data outside the repository, where there is one."""
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / beside)
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = real_folder("HUBRETRAIN_TEST_DATA", "data")
    if folder is None:
        pytest.skip("no real images; set HUBRETRAIN_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def real_models() -> Path:
    folder = real_folder("HUBRETRAIN_TEST_MODELS", "models")
    if folder is None:
        pytest.skip("no real weights; set HUBRETRAIN_TEST_MODELS")
    return folder


@pytest.fixture(scope="session")
def browser() -> str:
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium; install one, such as Debian's: apt-get install chromium")
    return found


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's module store; all tests share one of their own.

    Of the session, so that it is there before the fixtures of modules and of the session.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBRETRAIN_STORE", str(tmp_path_factory.getbasetemp() / "module_store"))
        yield


@pytest.fixture(scope="session")
def small_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_module(tmp_path_factory.mktemp("modules") / "small")


@pytest.fixture(scope="session")
def pooled_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pooled(tmp_path_factory.mktemp("modules") / "pooled")


@pytest.fixture(scope="session")
def small_export(tmp_path_factory: pytest.TempPathFactory, pooled_module: Path) -> Path:
    """A small export in every format, with a temperature and a decision rule."""
    pytest.importorskip("tf2onnx")
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules import resolve
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier

    backbone = Backbone(resolve(str(pooled_module)))
    classifier = Classifier(backbone, "softmax", *small_head(backbone))
    folder = tmp_path_factory.mktemp("exports") / "export"
    facts = {"run": "small", "adjust": 1.0, "priors": [0.6, 0.3, 0.1]}
    names = ["a", "<b>", "ç é"]
    formats = ("litert", "onnx")
    write_export([Member(classifier)], names, folder, facts, temperature=1.6, formats=formats)
    return folder


@pytest.fixture(scope="session")
def label_export(tmp_path_factory: pytest.TempPathFactory, pooled_module: Path) -> Path:
    """A small export of several labels per image in every format, with a temperature."""
    pytest.importorskip("tf2onnx")
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules import resolve
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier

    backbone = Backbone(resolve(str(pooled_module)))
    classifier = Classifier(backbone, "logistic", *small_head(backbone), multi_label=True)
    folder = tmp_path_factory.mktemp("exports") / "labels"
    facts = {"run": "small", "multi_label": True, "thresholds": [0.7, 0.9, 0.5]}
    names = ["a", "<b>", "ç é"]
    formats = ("litert", "onnx")
    write_export([Member(classifier)], names, folder, facts, temperature=1.6, formats=formats)
    return folder
