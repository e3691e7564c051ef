from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hubretrain.errors import ModuleError, RunError
from hubretrain.modules import find_stored, resolve, restore_module, store, store_folder
from hubretrain.modules.catalogue import described, find
from hubretrain.runs import Run
from tests.cli.test_cli import invoke
from tests.modules.hubs import archived
from tests.samples import write_digits, write_module, write_pooled


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A run of three modules whose names the catalogue does not know."""
    project = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("HUBRETRAIN_STORE", str(tmp_path_factory.getbasetemp() / "module_store"))
        write_digits(project / "data" / "digits", 90)
        write_pooled(project / "mine")
        with tarfile.open(project / "packed.tar.gz", "w:gz") as archive:
            archive.add(write_module(project / "packed"), arcname=".")
        handle = "keras:MobileNet?alpha=0.25&image_size=32&weights=none"
        modules = [x for one in (handle, "mine", "packed.tar.gz") for x in ("--module", one)]
        invoke("cache", *modules, "--views", 1)
        invoke("fit", "--heads", "softmax,logistic")
    return project


def test_a_run_finds_modules_that_the_catalogue_does_not_know_from_any_folder(
    project, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = Run(project / "runs" / "digits")
    fit = run.fit
    (keras,) = (name for name in fit.modules if name.endswith("_random"))
    assert sorted(fit.modules) == sorted([keras, "mine", "packed"])
    invoke("finetune", run.folder, "--module", keras, "--epochs", 1, "--unfreeze-last", 0)
    assert json.loads((run.export_folder / "export.json").read_text())["module"] == keras
    assert (run.export_folder / "saved_model.pb").exists()
    for name in set(fit.modules) - {keras}:
        assert restore_module(name, fit.module(name)).name == name


def test_a_module_is_named_as_the_store_holds_it_if_it_is_undamaged(tmp_path, monkeypatch):
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    archive = tmp_path / "tiny.tar.gz"
    archive.write_bytes(archived(write_module(tmp_path / "made")))
    kept = resolve(archive)
    archive.unlink()
    monkeypatch.chdir(tmp_path / "store")
    assert resolve("tiny").sha256 == kept.sha256
    monkeypatch.chdir("/")
    assert resolve("tiny") == kept
    graph = kept.folder / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[::-1])
    with pytest.raises(ModuleError, match=r"tiny is damaged: .* continue with its source, .*gz\."):
        resolve("tiny")


def test_a_damaged_module_is_not_listed_and_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    archive = tmp_path / "tiny.tar.gz"
    archive.write_bytes(archived(write_module(tmp_path / "made")))
    kept = resolve(archive)
    assert [module.name for module in store.stored_modules()] == ["tiny"]
    assert "fetch the module again" not in caplog.text
    record = kept.folder / "module.json"
    record.write_text(record.read_text().replace('"sha256"', '"sha255"'))
    assert store.stored_modules() == []
    assert f"{kept.folder} is damaged or incomplete: fetch the module again" in caplog.messages


def test_what_the_store_holds_is_found_though_its_archive_is_gone_or_another(project):
    fit = Run(project / "runs" / "digits").fit
    archive = project / "packed.tar.gz"
    kept = restore_module("packed", fit.module("packed"))
    archive.write_bytes(b"another archive")
    assert restore_module("packed", fit.module("packed")) == kept
    archive.unlink()
    assert restore_module("packed", fit.module("packed")) == kept
    assert kept.sha256 == fit.modules["packed"].module_sha256


def test_a_module_that_changed_or_that_a_run_lacks_is_an_error(project):
    fit = Run(project / "runs" / "digits").fit
    assert restore_module("mine", fit.module("mine")) == resolve(str(project / "mine"))
    (project / "mine").rename(project / "as it was")
    write_pooled(project / "mine", seed=1)
    with pytest.raises(RunError, match=r"mine has changed since its bottlenecks were computed"):
        restore_module("mine", fit.module("mine"))
    shutil.rmtree(project / "mine")
    (project / "as it was").rename(project / "mine")
    with pytest.raises(RunError, match=r"^/etc was not fitted in this run \(there are: .*packed"):
        fit.module("/etc")
    with pytest.raises(RunError, match=r"holds no finished fit; run `hubretrain fit` first"):
        _ = Run(project / "none").fit


def test_the_store_is_in_the_users_cache_folder_unless_the_environment_names_another(monkeypatch):
    monkeypatch.delenv("HUBRETRAIN_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    mac = {"darwin": Path.home() / "Library" / "Caches"}
    assert store_folder() == mac.get(sys.platform, Path("/caches")) / "hubretrain" / "modules"
    monkeypatch.delenv("XDG_CACHE_HOME")
    usual = mac.get(sys.platform, Path.home() / ".cache")
    assert store_folder() == usual / "hubretrain" / "modules"
    monkeypatch.setenv("HUBRETRAIN_STORE", "/store")
    assert store_folder() == Path("/store")


def test_a_folder_without_a_saved_model_is_refused(tmp_path):
    with pytest.raises(ModuleError, match=r"holds no saved_model.pb; expected a folder with a TF2"):
        resolve(str(tmp_path))
    with pytest.raises(ModuleError, match=r"nowhere does not exist; expected a folder"):
        resolve(str(tmp_path / "nowhere"))


def test_a_module_that_could_not_be_downloaded_says_what_was_tried_and_how_to_go_on(monkeypatch):
    # No machine listens on this port: the answer is a refusal, as without a network.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModuleError) as caught:
        resolve("mobilenet_v2")
    text = str(caught.value)
    assert "mobilenet_v2_100 could not be downloaded; tried https://tfhub.dev/google/" in text
    assert text.count("(connection refused)") == text.count("(") - text.count("(on this machine)")
    assert "a folder that holds its SavedModel" in text
    assert "`hubretrain modules` lists all names" in text
    assert find_stored("mobilenet_v2_100") is None
    assert not list(store_folder().glob(".mobilenet_v2_100*"))


def test_a_folder_is_probed_once_and_the_result_is_kept(tmp_path):
    from hubretrain.modules.backbone import Backbone

    folder = write_module(tmp_path / "my module", size=12, n_features=7)
    module = resolve(str(folder))
    assert (module.name, module.probed) == ("my_module", False)
    backbone = Backbone(module)
    assert (backbone.stored.image_size, backbone.stored.n_features) == (12, 7)
    again = resolve(str(folder))
    assert again.probed
    assert again.n_features == 7


def test_an_image_size_that_was_asked_for_once_is_not_remembered(small_module):
    from hubretrain.modules.backbone import Backbone

    own = Backbone(resolve(str(small_module))).stored
    with pytest.raises(ModuleError, match=r"refuses float32 images of shape \(2, 12, 12, 3\)"):
        Backbone(resolve(str(small_module), image_size=12))
    assert resolve(str(small_module)) == own


def test_a_full_disk_is_one_sentence_and_two_processes_may_fetch_the_same(hub):
    handle = f"{hub.url}/some/module/1"
    first = resolve(handle)
    shutil.rmtree(first.folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(
            ModuleError, match=r"/store/ cannot be written \(.*too large.*free disk space"
        ):
            resolve(handle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(store_folder().iterdir()) == []
    with ThreadPoolExecutor(4) as pool:
        assert {m.sha256 for m in pool.map(resolve, [handle] * 4)} == {first.sha256}


def test_what_a_killed_fetch_left_is_removed_a_day_later(hub):
    handle = f"{hub.url}/some/module/1"
    name = described(handle).name
    left = [store_folder() / f".{name}.{what}" for what in ("old", "running")]
    for folder in left:
        (folder / "module").mkdir(parents=True)
    os.utime(left[0], (1e9, 1e9))
    resolve(handle)
    assert [folder.exists() for folder in left] == [False, True]


def test_a_classifier_is_refused_before_it_is_fetched(hub):
    with pytest.raises(ModuleError, match=r"is a classifier; .*/v2/feature_vector/5"):
        resolve(f"{hub.url}/v2/classification/5")
    assert hub.requests == []


def test_a_range_that_is_documented_is_not_overridden_and_one_that_is_not_is_asked_for():
    with pytest.raises(ModuleError, match=r"vit_b16 takes values in \[-1, 1\], not in \[0, 1\]"):
        store._check_range(find("vit_b16"), (0.0, 1.0))
    with pytest.raises(ModuleError, match=r"convnext_tiny_1k_224 does not document the range"):
        resolve("convnext_tiny_1k_224")


def test_an_image_size_that_is_asked_for_is_built_into_a_network_of_keras(monkeypatch, tmp_path):
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path))
    monkeypatch.setattr("hubretrain.modules.sources.build_module", lambda handle, _: refuse(handle))

    def refuse(handle):
        raise ModuleError(f"asked for {handle}")

    with pytest.raises(ModuleError, match=r"vgg16_96px .*asked for keras:VGG16\?image_size=96"):
        resolve("vgg16", image_size=96)


def test_a_changed_module_under_the_same_handle_is_refused_by_a_resumed_cache(hub, tmp_path):
    from hubretrain.data.dataset import open_dataset
    from hubretrain.errors import CacheError
    from hubretrain.extraction import CacheOptions
    from hubretrain.extraction.cache import cache_bottlenecks
    from tests.samples import write_digits

    handle = f"{hub.url}/google/tiny/1"
    data = open_dataset(write_digits(tmp_path / "digits", 6))
    options, cache = CacheOptions(1, engine="tensorflow"), tmp_path / "cache"
    before = resolve(handle)
    cache_bottlenecks(data, [before], options, cache=cache)
    hub.archive = archived(write_module(tmp_path / "changed", seed=9))
    shutil.rmtree(before.folder)
    shutil.rmtree(os.environ["TFHUB_CACHE_DIR"])
    after = resolve(handle)
    with pytest.raises(CacheError) as caught:
        cache_bottlenecks(data, [after], options, cache=cache)
    assert f"module_sha256 = {before.sha256}" in str(caught.value)
    assert after.sha256 in str(caught.value)
