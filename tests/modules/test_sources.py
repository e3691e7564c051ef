"""Downloads from servers that answer as the real hubs do."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hubretrain.cli import main
from hubretrain.errors import ModuleError
from hubretrain.modules import UntrustedModuleError, find_stored, network, resolve, store_folder
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.catalogue import HubModule, described
from hubretrain.modules.saved_model import tree_sha256
from hubretrain.tensorflow import tf


def test_a_handle_is_fetched_once_over_redirects_and_then_needs_no_server(hub, small_module):
    handle = f"{hub.url}/google/tiny/feature_vector/1"
    module = resolve(handle)
    assert module.name == "google_tiny_feature_vector_1"
    assert module.sha256 == tree_sha256(small_module)
    assert hub.requests == [
        "/google/tiny/feature_vector/1?tf-hub-format=compressed",
        "/storage/module.tar.gz",
    ]
    facts = json.loads((module.folder / "module.json").read_text())
    assert facts["handle"] == handle
    assert facts["versions"]["tensorflow"] == tf.__version__
    assert Backbone(module).stored.n_features == 5
    again = resolve(handle)
    assert again.probed
    assert len(hub.requests) == 2
    assert json.loads((module.folder / "module.json").read_text())["files"] == facts["files"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("forbidden/1", r"HTTP Error 403: Forbidden"),
        ("truncated/1", r"does not appear to be a valid module"),
        ("outside/1", r"Relative path '../../escaped.txt' is invalid"),
        ("slow/1", r"timed out"),
    ],
)
def test_an_answer_that_is_no_module_is_one_sentence_and_leaves_nothing(
    hub, path, reason, monkeypatch, tmp_path
):
    monkeypatch.setattr(network, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(ModuleError, match=reason) as caught:
        resolve(f"{hub.url}/{path}")
    assert "could not be downloaded; tried http://localhost" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(store_folder().iterdir()) == []
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_source_that_refuses_falls_through_to_the_next_and_says_so(
    hub, kaggle, monkeypatch, caplog, small_module
):
    pytest.importorskip("kagglehub")
    known = HubModule(
        "tiny",
        (),
        "tfhub",
        8,
        5,
        (0.0, 1.0),
        f"{hub.url}/forbidden/1",
        "google/tiny/tensorFlow2/a/1",
    )
    monkeypatch.setattr(sys.modules[described.__module__], "read_catalogue", lambda: (known,))
    with caplog.at_level(logging.INFO, "hubretrain"):
        module = resolve("tiny")
    assert module.handle == "kaggle:google/tiny/tensorFlow2/a/1"
    assert module.sha256 == tree_sha256(small_module)
    assert "tiny comes from kaggle:google/tiny/tensorFlow2/a/1; it could not be down" in caplog.text
    assert "HTTP Error 403: Forbidden" in caplog.text
    assert resolve("tiny").folder == module.folder


def test_kaggle_models_come_through_kagglehub_by_handle_and_by_page(kaggle, small_module):
    handle = "kaggle:google/tiny/tensorFlow2/feature-vector/2"
    module = resolve(handle)
    assert module.sha256 == tree_sha256(small_module)
    assert module.name == "google_tiny_tensorFlow2_feature-vector_2"
    n_requests = len(kaggle.requests)
    assert n_requests == 1 + sum(p.is_file() for p in small_module.rglob("*"))
    for page in (
        "tensorFlow2/feature-vector/2",
        "frameworks/TensorFlow2/variations/feature-vector/versions/2",
    ):
        assert resolve(f"https://www.kaggle.com/models/google/tiny/{page}") == module
    shutil.rmtree(module.folder)
    assert resolve(handle) == module  # from kagglehub's own cache
    assert len(kaggle.requests) == n_requests
    with pytest.raises(ModuleError, match=r"tried kaggle:google/tiny/tensorFlow2/gone/1 \(.*404"):
        resolve("kaggle:google/tiny/tensorFlow2/gone/1")


def test_a_half_deleted_store_or_cache_is_repaired(hub, small_module, caplog):
    handle = f"{hub.url}/google/tiny/1"
    module = resolve(handle)
    next((module.folder / "variables").glob("*.data*")).unlink()
    assert find_stored(module.name) is None
    n_requests = len(hub.requests)
    with caplog.at_level(logging.INFO, "hubretrain"):
        again = resolve(handle)
    assert tree_sha256(again.folder) == module.sha256  # from the hub's cache
    assert "is damaged or another module; it is replaced" in caplog.text
    assert len(hub.requests) == n_requests
    (weights,) = (module.folder / "variables").glob("*.data*")
    weights.write_bytes(bytes(weights.stat().st_size))  # as long as before
    assert tree_sha256(resolve(handle).folder) == module.sha256
    shutil.rmtree(module.folder)
    for left in Path(os.environ["TFHUB_CACHE_DIR"]).rglob("saved_model.pb"):
        left.unlink()
    assert tree_sha256(resolve(handle).folder) == module.sha256  # fetched again
    assert len(hub.requests) == n_requests + 2


def test_a_download_from_outside_the_catalogue_is_asked_for_once_per_digest(kaggle, small_module):
    handle = "kaggle:google/tiny/tensorFlow2/feature-vector/2"
    asked: list[str] = []

    def answer(sentence: str) -> bool:
        asked.append(sentence)
        return len(asked) > 1

    sentence = r"is not of the catalogue \(sha256 \w{12}\), and a module is a program, which may"
    for trust in (False, answer):
        with pytest.raises(UntrustedModuleError, match=rf"^{handle} {sentence}"):
            resolve(handle, trust=trust)
        assert find_stored("google_tiny_tensorFlow2_feature-vector_2") is None
    module = resolve(handle, trust=answer)
    assert len(asked) == 2
    shutil.rmtree(module.folder)
    assert resolve(handle, trust=False).sha256 == tree_sha256(small_module)  # it was asked before


def test_the_command_line_takes_such_a_download_only_with_trust(kaggle):
    handle = "kaggle:google/tiny/tensorFlow2/feature-vector/2"
    refused = CliRunner().invoke(main, ["modules", "fetch", handle])
    assert refused.exit_code == 1
    assert "if you trust it, run `hubretrain modules fetch` with --trust." in refused.stderr
    taken = CliRunner().invoke(main, ["modules", "fetch", handle, "--trust"])
    assert taken.exit_code == 0, taken.output
    assert "5 features of 8 px" in taken.stdout


def test_a_folder_an_archive_and_a_server_of_ones_own_are_warned_of_once_per_digest(
    hub, small_module, caplog, tmp_path
):
    copy = shutil.copytree(small_module, tmp_path / "copy")
    with caplog.at_level(logging.WARNING, "hubretrain"):
        resolve(str(copy), trust=False)
        assert "copy: a module is a program, which may read and write files" in caplog.text
        caplog.clear()
        resolve(str(small_module), trust=False)
        stored = resolve(f"{hub.url}/google/tiny/1", trust=False)
        resolve(str(stored.folder), trust=False)
    assert "is a program" not in caplog.text
