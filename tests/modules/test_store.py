from __future__ import annotations

import json
import tarfile

import pytest

from hubretrain.errors import RunError
from hubretrain.modules import resolve, restore_module
from hubretrain.runs import Run
from tests.cli.test_cli import invoke
from tests.samples import write_digits, write_module, write_pooled


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of three modules whose names the catalogue does not know."""
    place = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HUBRETRAIN_STORE", str(tmp_path_factory.getbasetemp() / "module_store"))
        write_digits(place / "data" / "digits", 90)
        write_pooled(place / "mine")
        with tarfile.open(place / "packed.tar.gz", "w:gz") as archive:
            archive.add(write_module(place / "packed"), arcname=".")
        handle = "keras:MobileNet?alpha=0.25&image_size=32&weights=none"
        modules = [x for one in (handle, "mine", "packed.tar.gz") for x in ("--module", one)]
        invoke("cache", *modules, "--views", 1)
        invoke("fit")
    return place


def test_a_run_finds_modules_that_the_catalogue_does_not_know_from_any_folder(
    place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = Run(place / "runs" / "digits")
    fit = run.fit
    (keras,) = (name for name in fit.modules if name.endswith("_random"))
    assert sorted(fit.modules) == sorted([keras, "mine", "packed"])
    invoke("finetune", run.folder, "--module", keras, "--epochs", 1, "--unfreeze-last", 0)
    assert json.loads((run.export_folder / "export.json").read_text())["module"] == keras
    assert (run.export_folder / "saved_model.pb").exists()
    for name in set(fit.modules) - {keras}:
        assert restore_module(name, fit.module(name)).name == name


def test_what_the_store_holds_is_found_though_its_archive_is_gone_or_another(place):
    fit = Run(place / "runs" / "digits").fit
    archive = place / "packed.tar.gz"
    kept = restore_module("packed", fit.module("packed"))
    archive.write_bytes(b"another archive")
    assert restore_module("packed", fit.module("packed")) == kept
    archive.unlink()
    assert restore_module("packed", fit.module("packed")) == kept
    assert kept.sha256 == fit.modules["packed"].module_sha256


def test_a_module_that_changed_or_that_a_run_lacks_is_an_error(place):
    fit = Run(place / "runs" / "digits").fit
    assert restore_module("mine", fit.module("mine")) == resolve(str(place / "mine"))
    write_pooled(place / "mine", seed=1)
    with pytest.raises(RunError, match=r"mine is not what it was when its bottlenecks were comp"):
        restore_module("mine", fit.module("mine"))
    with pytest.raises(RunError, match=r"^/etc was not fitted in this run \(there are: .*packed"):
        fit.module("/etc")
    with pytest.raises(RunError, match=r"holds no finished fit; run `hubretrain fit` first"):
        _ = Run(place / "none").fit
