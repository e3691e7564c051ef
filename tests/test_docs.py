"""The documentation says what the code does: examples run, tables name every column."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import hubretrain
from hubretrain.evaluation import LABEL_METRICS, METRICS
from hubretrain.runs import run_tables
from tests.samples import REPOSITORY, write_digits, write_module

NAMES = sorted(set(hubretrain.__all__) - {"__version__"})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples find it: images, a module, a cache, a run and its export."""
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("workspace")
    write_digits(folder / "data" / "digits", 120)
    write_module(folder / "modules" / "small")
    paths = sorted(p.relative_to(folder / "data/digits") for p in folder.glob("data/digits/*/*"))
    table = {"file": paths, "kind": [p.parts[0] for p in paths]}
    table["patient"] = [f"P{i // 2}" for i in range(len(paths))]
    pd.DataFrame(table).to_csv(folder / "labels.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HUBRETRAIN_STORE", str(folder / "store"))
        dataset = hubretrain.open_dataset("data/digits")
        module = hubretrain.resolve("modules/small")
        hubretrain.cache_bottlenecks(dataset, [module], hubretrain.CacheOptions(n_views=2))
        run = hubretrain.Run(Path("runs/digits"))
        hubretrain.screen_modules(dataset, run)
        hubretrain.export_run(run)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_runs(name, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    thing = getattr(hubretrain, name)
    scope = {**vars(sys.modules[thing.__module__]), "np": np}
    parsed = doctest.DocTestParser().get_doctest(thing.__doc__, scope, name, None, 0)
    assert parsed.examples, f"{name} has no example"
    printed: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(
        parsed, out=printed.append
    )
    assert not printed, "".join(printed)


def test_the_reference_lists_every_public_name():
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: hubretrain\.(\w+)$", page, flags=re.MULTILINE)) == NAMES


def documented() -> tuple[str, set[str]]:
    """The page of a run's files, and every name in backticks on it."""
    page = (REPOSITORY / "docs" / "file-formats.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return page, set(re.findall(r"`([^`]+)`", prose))


def test_file_formats_describe_every_column_of_a_run():
    page, named = documented()
    tables = [t for t in vars(run_tables).values() if isinstance(t, run_tables.RunTable)]
    assert len(tables) >= 8
    for table in tables:
        assert table.file_name in page
        assert set(table.columns) <= named, table.file_name
    assert set(METRICS) | set(LABEL_METRICS) <= named


def test_file_formats_describe_every_column_that_a_fit_writes(workspace):
    _, named = documented()
    for path in sorted((workspace / "runs" / "digits").glob("*.csv")):
        for column in pd.read_csv(path, nrows=0).columns:
            general = re.sub(r"_(low|high)$", "", column)
            general = re.sub(r"^test_.*", "test_...", general)
            general = re.sub(r".*_uncorrected$", "<metric>_uncorrected", general)
            general = re.sub(r"^p\(.*\)$", "p(<class>)", general)
            assert general in named, f"{path.name}: {column}"
