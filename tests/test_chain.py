"""Files that belong together are bound by digests: one that is damaged or another one is refused.

Each test runs a real chain, and then damages or swaps one file of it.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys

import pytest

from hubretrain.data import SplitOptions
from hubretrain.data.dataset import open_dataset
from hubretrain.data.images import Augmentation
from hubretrain.errors import RunError
from hubretrain.export import export_run
from hubretrain.heads import ModuleHeads
from hubretrain.report.run_data import gather
from hubretrain.runs import Run
from hubretrain.screening import ScreenOptions
from hubretrain.screening.fit import screen_modules
from tests.finetuning.runs import copied, tune, write_run_of_two


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A fitted run of two modules, its cache and its data; no test writes there."""
    folder = tmp_path_factory.mktemp("fitted")
    write_run_of_two(folder)
    return folder


@pytest.fixture
def run(fitted, tmp_path):
    return copied(fitted, tmp_path)


@pytest.fixture(scope="module")
def other(fitted):
    """Another run of the same modules: with other folds and heads."""
    dataset, run = open_dataset(fitted / "digits"), Run(fitted / "other")
    split = SplitOptions(seed=7)
    options = ScreenOptions(l2=(1e4,), heads=("softmax",), class_weights=(None,), split=split)
    screen_modules(dataset, run, options, cache=fitted / "cache")
    return run


def fit_again(fitted, run):
    options = ScreenOptions(heads=("softmax", "logistic"))
    return screen_modules(open_dataset(fitted / "digits"), run, options, cache=fitted / "cache")


def flip(path, at=0.5):
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def swap_folds(run, other):
    shutil.copy(other.folds_file, run.folds_file)


def swap_heads(run, other):
    shutil.copy(run.heads_file("small6"), run.heads_file("small5"))


def heads_of_another_run(run, other):
    shutil.copy(other.heads_file("small5"), run.heads_file("small5"))


def damage_heads(run, other):
    flip(run.heads_file("small5"))


def heads_are_gone(run, other):
    run.heads_file("small5").unlink()


def record_of_another_run(run, other):
    shutil.copy(other.record_file, run.record_file)


DAMAGES = [swap_heads, heads_of_another_run, damage_heads, heads_are_gone, record_of_another_run]


@pytest.mark.parametrize("damage", [*DAMAGES, swap_folds])
def test_fine_tuning_refuses_what_its_fit_did_not_write(fitted, run, other, damage):
    damage(run, other)
    with pytest.raises(RunError, match=r"(folds\.csv|small5\.h5) .*run `hubretrain fit` again\.$"):
        tune(fitted, run, module="small5", epochs=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_export_refuses_heads_that_its_fit_did_not_write(run, other, damage):
    damage(run, other)
    with pytest.raises(RunError, match=r"small5\.h5 .*run `hubretrain fit` again\.$"):
        export_run(run, head="small5")


@pytest.mark.parametrize("damage", [*DAMAGES, swap_folds])
def test_a_fit_makes_them_anew(fitted, run, other, damage):
    before = {p.name: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    damage(run, other)
    notes = fit_again(fitted, run).notes
    after = {p.name: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    if damage in (swap_folds, record_of_another_run):
        assert any("folds.csv is another one than that of the fit before" in n for n in notes)
    if damage is not swap_folds:
        del before["run.json"], after["run.json"]  # it counts looks and knows times
        assert before == after


@pytest.mark.parametrize("name", ["folds.csv", "leaderboard.csv", "effects.csv", "out_of_fold.csv"])
def test_a_report_refuses_tables_of_another_fit(run, other, name):
    gather(run)
    shutil.copy(other.folder / name, run.folder / name)
    sentence = rf"{re.escape(name)} is damaged or another one .*; restore it, or run `hubretrain f"
    with pytest.raises(RunError, match=sentence):
        gather(run)


def test_a_sound_export_stays_where_the_heads_were_damaged_or_a_fit_was_killed(run, other):
    first = export_run(run)
    before = (run.export_folder / "export.json").read_bytes()
    flip(run.heads_file(first.manifest["module"]))
    assert export_run(run).manifest == first.manifest
    assert (run.export_folder / "export.json").read_bytes() == before


def test_a_finished_training_is_not_judged_with_the_head_of_a_later_fit(fitted, run):
    tune(fitted, run, module="small5", epochs=1)
    before = ModuleHeads.load(run.heads_file("small5")).warm_start.kind
    kind = "logistic" if before == "softmax" else "softmax"
    options = ScreenOptions(heads=(kind,), l2=(100.0,))
    screen_modules(open_dataset(fitted / "digits"), run, options, cache=fitted / "cache")
    with pytest.raises(RunError, match=r"its head was [0-9a-f]+ and is [0-9a-f]+; restore"):
        tune(fitted, run, module="small5", epochs=1)


def test_what_was_fine_tuned_on_other_folds_is_left_out_of_the_report(fitted, run, other):
    tune(fitted, run, module="small5", epochs=1)
    swap_folds(run, other)
    fit_again(fitted, run)
    run_data = gather(run)
    assert any("are no longer in the test split of" in sentence for sentence in run_data.missing)
    table = run.finetune_folder("small5") / "predictions.csv"
    table.write_text(table.read_text().replace("0.0", "0.1", 1))
    with pytest.raises(RunError, match=r"predictions\.csv is damaged .* `hubretrain finetune` a"):
        gather(run)


def test_fine_tuning_reads_the_bytes_that_were_fitted(fitted, tmp_path, caplog):
    shutil.copytree(fitted, tmp_path / "place")
    place = tmp_path / "place"
    run = Run(place / "run")
    first, second, third = sorted((place / "digits").rglob("*.png"))[:3]
    third.unlink()
    with caplog.at_level(logging.WARNING):
        tune(place, run, module="small5", epochs=1)
    assert any("1 images of" in m and "are gone, the first" in m for m in caplog.messages)
    first.write_bytes(second.read_bytes())  # a copy of an image that the run knows
    with pytest.raises(
        RunError, match=r"1 images have changed since .*/run was fitted, the first "
    ):
        tune(place, run, module="small5", epochs=1)


def test_fine_tuning_says_that_labels_are_not_those_of_the_fit(fitted, tmp_path, caplog):
    shutil.copytree(fitted, tmp_path / "place")
    place = tmp_path / "place"
    first, *_, last = sorted((place / "digits").rglob("*.png"))
    first.rename(last.parent / first.name)
    with caplog.at_level(logging.WARNING):
        tune(place, Run(place / "run"), module="small5", epochs=1)
    assert any(m.startswith("1 images have other labels than") for m in caplog.messages)


def test_an_image_that_changes_while_it_is_trained_on_is_refused(fitted, tmp_path):
    shutil.copytree(fitted / "digits", tmp_path / "digits")
    shutil.copytree(fitted / "cache", tmp_path / "cache")
    run = copied(fitted, tmp_path)
    images = sorted((tmp_path / "digits").rglob("*.png"))

    class Meanwhile(Augmentation):
        def draw(self, sha256, view, seed):
            for image in images[1:]:
                image.write_bytes(images[0].read_bytes())
            return super().draw(sha256, view, seed)

    with pytest.raises(RunError, match=r"\.png: its bytes have changed; restore"):
        tune(tmp_path, run, module="small5", epochs=2, augmentation=Meanwhile())


def test_two_fine_tunings_at_once_keep_both_and_export_the_best(fitted, run):
    script = """
import sys
from pathlib import Path
from hubretrain.runs import Run
from tests.finetuning.runs import tune
fitted, run, name = Path(sys.argv[1]), Run(Path(sys.argv[2])), sys.argv[3]
tune(fitted, run, module=name, epochs=1)
"""
    names = ("small5", "small6")
    running = [
        subprocess.Popen([sys.executable, "-c", script, fitted, run.folder, name]) for name in names
    ]
    assert [one.wait() for one in running] == [0, 0]
    record = run.finetune
    assert sorted(record.modules) == list(names)
    exported = record.exported
    assert exported.on_validation[exported.name] == max(exported.on_validation.values())
    for name in names:
        assert any(name in compared for compared in exported.on_validation)
    manifest = json.loads((run.export_folder / "export.json").read_text())
    assert exported.kind == "ensemble" or manifest["module"] == exported.module
