from __future__ import annotations

import json
import re
import shutil
import threading

import pandas as pd
import pytest

from hubretrain.data.dataset import open_dataset
from hubretrain.data.images.augmentation import Augmentation
from hubretrain.errors import HubretrainError, LockedError, ModuleError, NotTrainableError, RunError
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.export import is_current
from hubretrain.files import read_record, write_record
from hubretrain.finetuning import FineTuneOptions, finetune_module, finetune_modules
from hubretrain.finetuning.input_pipeline import PixelSource
from hubretrain.heads import ModuleHeads
from hubretrain.locks import only_writer
from hubretrain.modules import resolve
from hubretrain.runs import LEADERBOARD, FineTuneRecord, Run
from tests.finetuning.heads import give_head, pixels_of, weaken
from tests.finetuning.runs import copied, tune, write_run
from tests.samples import record_files, write_digits, write_module


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A fitted run of two modules and a randomly initialised control; no test writes there."""
    folder = tmp_path_factory.mktemp("fitted")
    write_digits(folder / "digits", 150)
    seeds = {"small5": 5, "small6": 6, "small5_random": 7}
    write_run(folder, *(write_module(folder / n, n_features=12, seed=s) for n, s in seeds.items()))
    return folder


def exported(run):
    return json.loads((run.export_folder / "export.json").read_text())


def test_a_name_that_is_not_of_the_run_touches_nothing(fitted, tmp_path):
    run, mine = copied(fitted, tmp_path), write_module(tmp_path / "mine")
    for name in (str(mine), "../mine", "smal5"):
        with pytest.raises(RunError, match=r"was not fitted in this run \(there are: .*small5"):
            tune(fitted, run, module=name, restart=True)
    assert (mine / "saved_model.pb").exists()
    assert not (run.folder / "finetune").exists()


def test_a_restart_leaves_a_fine_tuning_alone_that_another_process_writes(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    tune(fitted, run, module="small5", epochs=1)
    folder = run.finetune_folder("small5")
    with only_writer(folder), pytest.raises(LockedError, match=r"small5 is being written by proc"):
        tune(fitted, run, module="small5", epochs=1, restart=True)
    assert (folder / "checkpoint" / "state.json").exists()


def test_a_restart_that_cannot_train_leaves_the_earlier_training(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    tune(fitted, run, module="small5", epochs=1)
    folder = run.finetune_folder("small5")
    earlier = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(ModuleError, match=r"`unfreeze_last` is 9; expected at most 2"):
        tune(fitted, run, module="small5", unfreeze_last=9, restart=True)
    with pytest.raises(RunError, match=r"`more_epochs=1` adds to a training that `restart=True`"):
        tune(fitted, run, module="small5", more_epochs=1, restart=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == earlier


def test_images_of_a_given_training_split_are_trained_on(tmp_path):
    write_digits(tmp_path / "all", 120)
    for i, path in enumerate(sorted((tmp_path / "all").rglob("*.png"))):
        split = ("validation", "test")[i % 5] if i % 5 < 2 else "train"
        class_folder = tmp_path / "digits" / split / path.parent.name
        class_folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, class_folder)
    write_run(tmp_path, write_module(tmp_path / "small"))
    run = Run(tmp_path / "run")
    tune(tmp_path, run, epochs=1)
    identity = run.finetune.modules["small"].identity
    folds = pd.read_csv(run.folds_file, dtype=str)["fold"].value_counts()
    assert (identity["n_train"], identity["n_validation"]) == (folds["train"], folds["0"])


@pytest.mark.parametrize("name", ["ensemble.json", "out_of_fold.csv", "leaderboard.csv"])
def test_what_a_trained_model_is_compared_with_is_read_before_the_training(
    fitted, tmp_path, monkeypatch, name
):
    run = copied(fitted, tmp_path)
    monkeypatch.setattr(PixelSource, "read", None)  # no image is read
    contents = (run.folder / name).read_text()
    (run.folder / name).write_text(contents[: len(contents) // 2])
    with pytest.raises(HubretrainError, match=re.escape(name)):
        tune(fitted, run, module="small5")
    assert not run.finetune_folder("small5").exists()


def test_order_and_export_are_of_all_that_the_run_holds(fitted, tmp_path):
    run, metric = copied(fitted, tmp_path), Run(fitted / "run").fit.metric
    tune(fitted, run, module="small6", learning_rate=1e-6, epochs=1)
    before = run.finetune
    assert before.order is None
    assert list(before.modules) == ["small6"]
    run.write_finetune(FineTuneRecord())
    writing = threading.Lock()

    class Meanwhile(Augmentation):  # another process ends while this one trains
        def draw(self, sha256, view, seed):
            if writing.acquire(blocking=False):
                run.write_finetune(before)
            return super().draw(sha256, view, seed)

    result = tune(fitted, run, module="small5", epochs=3, augmentation=Meanwhile())
    record = run.finetune
    scores = {n: one.validation[metric][0] for n, one in record.modules.items()}
    assert sorted(scores) == ["small5", "small6"]
    assert scores["small5"] == result.validation[metric][0]
    assert record.order.finetuned[0] == max(scores, key=lambda name: (scores[name], name))
    heads = {"small5, head", "small6, head", "ensemble"}
    assert heads <= set(record.exported.on_validation)
    assert exported(run)["module"] == record.exported.module
    shutil.rmtree(run.export_folder)
    requested = tune(fitted, run, module="small6", resume=True, export="fine-tuned")
    assert run.finetune.order == record.order
    assert run.finetune.exported.module == "small6" == exported(run)["module"]
    # Of a module that no epoch made better, it is the head, as it was fitted on all folds.
    assert exported(run)["fine_tuned"] == (requested.kept_epoch > 0)


def give_noise(fitted, run):
    """Let fine-tuning of small5 start from a head that knows nothing; others stay as they are."""
    stored = resolve(str(fitted / "small5"))
    images = pixels_of(fitted, pd.read_csv(run.folds_file)["path"], stored.image_size)
    give_head(run, stored, images, "softmax", has_layers=False)


def test_a_worse_model_does_not_replace_a_better_one(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    give_noise(fitted, run)
    options = {"module": "small5", "epochs": 2, "learning_rate": 1e-4}
    result = tune(fitted, run, **options)
    table = pd.read_csv(run.folder / "out_of_fold.csv", dtype={"label": str})
    table = table[(table["module"] == "small5") & (table["fold"] == 0)]
    hits = table[["p(0)", "p(1)", "p(2)"]].to_numpy().argmax(axis=1).astype(str) == table["label"]
    head = ModuleHeads.load(run.heads_file("small5")).deployed
    assert head.rule.strength == 0
    record = run.finetune
    assert record.exported.on_validation["small5, head"] == pytest.approx(hits.mean(), abs=1e-6)
    assert (record.chosen, exported(run)["fine_tuned"]) == (None, False)
    assert record.exported.kind in ("head", "ensemble")
    if result.kept_epoch:
        tuned = record.exported.on_validation["small5, fine-tuned"]
        assert tuned == pytest.approx(result.validation["accuracy"][0], abs=1e-6)
        others = {n: v for n, v in record.exported.on_validation.items() if "fine-tuned" not in n}
        best = max(others.values())
        gain, low, high = record.exported.gain
        assert gain == pytest.approx(tuned - best, abs=2e-6)
        assert low < gain < high
    assert is_current(run)  # `predict` leaves the choice as it is
    requested = tune(fitted, run, module="small5", resume=True, export="fine-tuned")
    is_trained = requested.kept_epoch > 0
    assert exported(run)["fine_tuned"] == is_trained
    assert run.finetune.chosen == ("small5" if is_trained else None)
    assert run.finetune.exported.module == "small5"


def test_where_no_epoch_is_better_the_head_of_all_folds_is_exported(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    result = tune(fitted, run, module="small5", learning_rate=1e35)
    assert result.kept_epoch == 0
    record = run.finetune.exported
    assert record.gain is None
    assert "small5, fine-tuned" not in record.on_validation
    assert not exported(run)["fine_tuned"]
    assert is_current(run)


def test_a_restart_that_gives_a_worse_model_leaves_the_better_export(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    give_noise(fitted, run)
    result = tune(fitted, run, module="small5", epochs=8, export="fine-tuned")
    assert result.kept_epoch
    before = exported(run)
    path = run.folder / "out_of_fold.csv"
    table = pd.read_csv(path)
    table[["p(0)", "p(1)", "p(2)"]] = [1.0, 0.0, 0.0]  # heads that are worse than both
    table.to_csv(path, index=False)
    give_noise(fitted, run)
    tune(fitted, run, module="small5", epochs=1, learning_rate=1e-4, restart=True)
    record = run.finetune.exported
    assert max(record.on_validation, key=record.on_validation.get) == record.name
    assert (record.kind, record.module) == ("fine-tuned", "small5")
    assert record.name == "small5, fine-tuned and exported before"
    assert exported(run) == before


def test_every_fine_tuned_model_that_is_evaluated_counts_as_a_look_at_the_test_split(
    fitted, tmp_path
):
    run = copied(fitted, tmp_path)
    tune(fitted, run, module="small5", epochs=1)
    assert [list(look) for look in run.finetune.test_looked_at] == [["small5"]]
    tune(fitted, run, module="small5", resume=True)  # the same model
    assert len(run.finetune.test_looked_at) == 1
    tune(fitted, run, module="small5", epochs=1, learning_rate=2e-3, restart=True)
    assert len(run.finetune.test_looked_at) == 2
    n_of_fit = len(run.fit.test_looked_at)
    assert f"{n_of_fit + 2} times (fit {n_of_fit}, finetune 2)" in run.looks_at_test()


def test_a_random_control_is_not_among_the_best_modules(fitted):
    from hubretrain.finetuning.plan import best_modules

    run = Run(fitted / "run")
    assert sorted(best_modules(run, 2)) == ["small5", "small6"]
    with pytest.raises(RunError, match=r"`top` is 3, but .* compares 2 modules"):
        best_modules(run, 3)


def test_the_best_module_that_can_be_trained_is_trained_unless_one_is_named(tmp_path, caplog):
    write_digits(tmp_path / "digits", 120)
    names = {"frozen": False, "other": False, "small": True}
    for seed, (name, is_trainable) in enumerate(names.items()):
        write_module(tmp_path / name, n_features=12, seed=seed, trainable=is_trainable)
    write_run(tmp_path, *(tmp_path / name for name in names))
    run = Run(tmp_path / "run")
    dataset, caches = open_dataset(tmp_path / "digits"), {"cache": tmp_path / "cache"}
    options = FineTuneOptions(epochs=1, batch_size=16)
    with pytest.raises(NotTrainableError, match=r"frozen has no trainable variables"):
        finetune_module(dataset, run, module="frozen", options=options, **caches)
    arguments = {"options": options, "may_replace": True, **caches}
    (result,) = finetune_modules(dataset, run, ["frozen"], **arguments)
    assert result.module == "small"
    assert "frozen has no trainable variables" in caplog.text
    with pytest.raises(NotTrainableError):
        finetune_modules(dataset, run, ["frozen", "small"], **arguments)  # no third can be


def test_a_resume_computes_as_its_own_options_say(fitted, tmp_path):
    from hubretrain.tensorflow import tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("a GPU can do it")
    run = copied(fitted, tmp_path)
    tune(fitted, run, module="small5", epochs=1)
    options = run.finetune_folder("small5") / "options.json"
    write_record(options, {**read_record(options), "mixed_precision": True})
    with pytest.raises(RunError, match=r"`mixed_precision` is True, but TensorFlow finds no GPU"):
        tune(fitted, run, module="small5", resume=True)


def test_the_head_is_judged_and_kept_with_its_own_rule(fitted, tmp_path):
    runs = []
    for name in ("plain", "balanced"):
        run = copied(fitted, tmp_path, name)
        weaken(run, "small5", rule=DecisionRule(1.0, (0.98, 0.01, 0.01)))
        runs.append(run)
    plain, balanced = (
        tune(fitted, run, module="small5", balanced_sampling=sampling, export="fine-tuned")
        for run, sampling in zip(runs, (False, True), strict=True)
    )
    assert balanced.head_test == plain.head_test
    assert balanced.head_validation == plain.head_validation
    assert balanced.kept_epoch > 0
    assert exported(runs[0])["adjust"] == pytest.approx(1 / exported(runs[0])["temperature"])
    assert exported(runs[1])["adjust"] == 0.0
    options = {"balanced_sampling": True, "learning_rate": 1e35, "restart": True}
    options["export"] = "fine-tuned"
    assert tune(fitted, runs[1], module="small5", **options).kept_epoch == 0
    assert runs[1].finetune.modules["small5"].adjust == 1.0
    assert exported(runs[1])["fine_tuned"] is False  # the head of all folds, with its own rule
    assert exported(runs[1])["adjust"] == 0.0


def test_more_epochs_are_added_once_though_what_they_came_to_was_not_kept(fitted, tmp_path):
    from hubretrain.finetuning import Resumption

    run = copied(fitted, tmp_path)
    tune(fitted, run, module="small5", epochs=1)
    aside = LEADERBOARD.path(run.folder).rename(tmp_path / "aside")  # it ends after the last epoch
    with pytest.raises(RunError, match=r"leaderboard\.csv is missing; run `hubretrain fit` again"):
        tune(fitted, run, module="small5", resume=True, more_epochs=2)
    aside.rename(LEADERBOARD.path(run.folder))
    n_epochs = [
        len(tune(fitted, run, module="small5", resume=True, more_epochs=2).history) - 1
        for _ in range(2)
    ]
    assert n_epochs == [3, 5]
    data, names = open_dataset(fitted / "digits"), ["small5", "small6"]
    with pytest.raises(RunError, match=r"`more_epochs=2` continues one module, but 2 are named"):
        finetune_modules(
            data, run, names, cache=fitted / "cache", resumption=Resumption(True, more_epochs=2)
        )


def test_other_images_or_labels_are_no_resume(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    tune(fitted, run, module="small5", epochs=1)
    folds = pd.read_csv(run.folds_file, dtype=str)
    one, other = (folds.index[folds["fold"] == fold][0] for fold in ("0", "1"))
    folds.loc[[one, other], "fold"] = ["1", "0"]
    folds.to_csv(run.folds_file, index=False)
    record_files(run)
    expected = r"on other data or another module: its images was [0-9a-f]+ and is [0-9a-f]+;"
    with pytest.raises(RunError, match=expected):
        tune(fitted, run, module="small5", resume=True)
    path = run.finetune_folder("small5") / "checkpoint" / "state.json"
    state = read_record(path)
    assert state["identity"]["image_size"] == 8
    del state["identity"]["images"]
    write_record(path, state)
    with pytest.raises(RunError, match=r"which did not record its images"):
        tune(fitted, run, module="small5", resume=True)
