from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hubretrain.data.dataset import open_dataset
from hubretrain.data.images.augmentation import Augmentation
from hubretrain.errors import RunError
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import open_runtime
from hubretrain.files import file_sha256
from hubretrain.finetuning.input_pipeline import PixelSource
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.heads.heads import ModuleHeads
from hubretrain.modules import Backbone, resolve
from tests.finetuning.heads import give_network, pixels_of, weaken
from tests.finetuning.runs import copied, tune, weights_of
from tests.samples import REPOSITORY, at_temperature


def test_before_the_first_step_the_model_says_what_the_head_said(fitted):
    from hubretrain.bottlenecks import Bottlenecks
    from hubretrain.data.images.decoding import decode, view
    from hubretrain.modules.classifier import Classifier

    head = ModuleHeads.load(fitted / "run" / "heads" / "small.h5").warm_start
    backbone = Backbone(resolve(str(fitted / "small")), head.layers)
    classifier = Classifier(backbone, head.kind, head.weight, head.bias)
    images = open_dataset(fitted / "digits").usable_images(fitted / "cache")
    with Bottlenecks(fitted / "cache" / "digits" / "small.h5") as bottlenecks:
        expected = head.probabilities(bottlenecks.rows(images["sha256"].tolist(), layers="all"))
    pixels = [view(decode((fitted / "digits" / p).read_bytes()), 8) for p in images["path"]]
    probs = classifier.probabilities(np.stack(pixels).astype(np.float32) / 255).numpy()
    assert np.allclose(probs, expected, atol=1e-5)


def test_training_lowers_the_loss_and_keeps_the_best_epoch(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    weaken(run, "small")
    result = tune(fitted, run, epochs=6)
    history = pd.read_csv(run.finetune_folder("small") / "history.csv")
    assert history["epoch"].tolist() == list(range(7))
    assert history["loss"].iloc[-1] < history["loss"].iloc[1]
    assert run.fit.metric == "accuracy"
    best = history.sort_values(["validation_metric", "validation_loss"], ascending=[False, True])
    assert history.loc[history["kept"], "epoch"].item() == best["epoch"].iloc[0]
    assert result.test["accuracy"][1] <= result.test["accuracy"][0] <= result.test["accuracy"][2]
    predictions = pd.read_csv(run.finetune_folder("small") / "predictions.csv")
    columns = [c for c in predictions if c.startswith("p(")]
    hits = predictions[columns].to_numpy().argmax(1) == predictions["label"].to_numpy()
    assert result.test["accuracy"][0] == pytest.approx(hits.mean(), abs=1e-6)


def test_the_test_split_and_the_validation_fold_are_never_trained_on(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    folds = pd.read_csv(run.folds_file, dtype=str).set_index("sha256")["fold"]
    seen = set()

    class Watching(Augmentation):  # only what is trained on is augmented
        def draw(self, sha256, view, seed):
            seen.add(folds[sha256])
            return super().draw(sha256, view, seed)

    tune(fitted, run, epochs=1, augmentation=Watching())
    assert seen == {"1", "2", "3", "4"}


def test_each_epoch_shows_the_images_in_another_order(fitted, tmp_path):
    shown = {}

    class Watching(Augmentation):
        def draw(self, sha256, view, seed):
            shown.setdefault(view, []).append(sha256)
            return super().draw(sha256, view, seed)

    tune(fitted, copied(fitted, tmp_path), epochs=2, augmentation=Watching())
    first, second = shown.values()
    assert sorted(first) == sorted(second)
    # Threads draw a few images before others. Of two random halves, half is in both.
    half = len(first) // 2
    in_both = len(set(first[:half]) & set(second[:half]))
    assert 0.3 < in_both / half < 0.7


KILL = """
import os, signal, threading
replace, n_left = os.replace, {n_steps}
def replace_and_count(source, target):
    global n_left
    replace(source, target)
    n_left -= str(target).endswith("state.json")
    if n_left == 0:  # amid the step that follows, or amid its checkpoint
        threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()
os.replace = replace_and_count
"""


def script(fitted, *runs):
    return (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from pathlib import Path; from tests.finetuning.runs import *\n"
        f"for run in {[str(run.folder) for run in runs]!r}:\n"
        f"    tune(Path({str(fitted)!r}), Run(Path(run)), epochs=6, warmup_head=1,\n"
        "         depth_decay=0.5, schedule='plateau', ema=0.9, small_first=True,\n"
        "         seconds_between_checkpoints=0.0)\n"
    )


def test_killed_at_any_step_it_goes_on_exactly(fitted, tmp_path):
    straight, killed = copied(fitted, tmp_path, "straight"), copied(fitted, tmp_path, "killed")
    give_network(fitted, straight, killed)  # it has every kind of variable
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

    def train(*runs, before=""):
        command = [sys.executable, "-c", before + script(fitted, *runs)]
        return subprocess.run(command, capture_output=True, env=environment)

    state = killed.finetune_folder("small") / "checkpoint" / "state.json"
    random = np.random.default_rng(time.time_ns())
    steps = []
    for _ in range(2):
        kill = KILL.format(n_steps=random.integers(2, 12), delay=random.random() * 0.02)
        ran = train(killed, before=kill)
        assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
        steps.append(json.loads(state.read_text())["step"])
    ran = train(killed, straight)
    assert ran.returncode == 0, ran.stderr.decode()
    assert 0 < steps[0] < steps[1]
    for name in ("history.csv", "predictions.csv", "validation.csv"):
        contents = [
            (run.finetune_folder("small") / name).read_bytes() for run in (straight, killed)
        ]
        assert contents[0] == contents[1], f"{name} after kills at steps {steps}"
    assert weights_of(straight) == weights_of(killed)


def test_other_options_do_not_go_on_with_an_earlier_training(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    tune(fitted, run, epochs=1)
    with pytest.raises(RunError, match=r"with batch_size = 16, .*`restart=True`"):
        tune(fitted, run, epochs=1, batch_size=8)
    with pytest.raises(RunError, match=r"of 1 epochs, but `epochs` is 2; .* `more_epochs`"):
        tune(fitted, run, epochs=2)
    tune(fitted, run, epochs=2, restart=True)


def test_what_cannot_be_continued_is_refused_before_anything_is_computed(
    fitted, tmp_path, monkeypatch, caplog
):
    run = copied(fitted, tmp_path)
    tune(fitted, run, epochs=1)
    caplog.set_level("INFO", "hubretrain")
    tune(fitted, run, epochs=1)
    finished = "small: training was finished after epoch 1; it is evaluated and exported again"
    assert finished in caplog.messages
    monkeypatch.setattr(PixelSource, "read", None)  # no image is read
    with pytest.raises(RunError, match=r"of 1 epochs, but `epochs` is 2"):
        tune(fitted, run, epochs=2)
    with pytest.raises(RunError, match=r"with l2_sp = 0.0, but `l2_sp` is 1.0"):
        tune(fitted, run, epochs=1, l2_sp=1.0)
    with pytest.raises(RunError, match=r"holds no fine-tuning to add epochs to"):
        tune(fitted, copied(fitted, tmp_path, "other"), more_epochs=2)


def test_layers_that_are_not_unfrozen_stay_as_they_were(fitted, tmp_path):
    from hubretrain.tensorflow import tf

    run = copied(fitted, tmp_path)
    tune(fitted, run, epochs=2, unfreeze_last=1)
    before = tf.train.load_checkpoint(str(fitted / "small" / "variables" / "variables"))
    (best,) = (run.finetune_folder("small") / "checkpoint").glob("best_*.index")
    after = tf.train.load_checkpoint(str(best.with_suffix("")))

    def tensors(reader):
        names = reader.get_variable_to_shape_map()
        return [reader.get_tensor(n) for n in names if len(names[n]) in (2, 4)]

    kernel = next(t for t in tensors(before) if t.ndim == 4)
    assert any(np.array_equal(kernel, t) for t in tensors(after) if t.ndim == 4)
    dense = next(t for t in tensors(before) if t.shape == (32, 12))
    history = pd.read_csv(run.finetune_folder("small") / "history.csv")
    if history.loc[history["kept"], "epoch"].item() > 0:
        assert not any(np.array_equal(dense, t) for t in tensors(after) if t.shape == (32, 12))


def test_a_loss_that_becomes_nan_ends_training_and_the_best_epoch_is_judged_and_exported(
    fitted, tmp_path
):
    run = copied(fitted, tmp_path)
    result = tune(fitted, run, learning_rate=1e35, epochs=30)
    assert re.search(
        r"small: the loss became (nan|inf) in epoch 1, .* the best epoch before, 0, "
        r".*`restart=True` and a `learning_rate` below 1e\+35",
        str(result.diverged),
    )
    assert result.history["epoch"].tolist()[-1] == result.kept_epoch == 0
    assert result.test == result.head_test
    assert (run.export_folder / "saved_model.pb").exists()
    again = tune(fitted, run, resume=True)  # not trained further, and said again
    assert again.diverged == result.diverged
    with pytest.raises(RunError, match=r"whose loss became .*; start again with `restart=True`"):
        tune(fitted, run, resume=True, more_epochs=2)


def test_more_epochs_go_on_with_a_finished_training(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    first = tune(fitted, run, epochs=2).history
    more = tune(fitted, run, resume=True, more_epochs=2).history
    assert more["epoch"].tolist() == [0, 1, 2, 3, 4]
    columns = ["loss", "validation_loss", "learning_rate"]
    assert first[columns].equals(more[columns][:3])
    assert more["learning_rate"].iloc[3] > 0
    again = tune(fitted, run, resume=True).history  # and is finished then
    assert again.equals(more)
    with pytest.raises(RunError, match=r"holds no fine-tuning to resume"):
        tune(fitted, copied(fitted, tmp_path, "other"), resume=True)


def test_a_cosine_goes_through_all_its_epochs_though_nothing_gets_better(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    history = tune(fitted, run, epochs=7, learning_rate=3.0, unfreeze_last=0).history
    assert np.argmin(history["validation_loss"][:5]) == 0
    assert history["epoch"].tolist() == list(range(8))


def test_the_weights_that_are_kept_are_those_of_the_best_epoch(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    result = tune(fitted, run, epochs=4, schedule="plateau", learning_rate=0.2, interpolate=False)
    of_epoch = result.history.set_index("epoch")["validation_metric"]
    assert result.kept_epoch < 4
    assert of_epoch[result.kept_epoch] > of_epoch[4]
    validation = pd.read_csv(run.finetune_folder("small") / "validation.csv")
    columns = [c for c in validation if c.startswith("p(")]
    hits = validation[columns].to_numpy().argmax(1) == validation["label"].to_numpy()
    assert hits.mean() == pytest.approx(of_epoch[result.kept_epoch], abs=1e-6)


def test_a_warmed_up_head_trains_alone_first(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    result = tune(fitted, run, epochs=1, warmup_head=2, l2_sp=0.1, label_smoothing=0.1)
    assert result.history["phase"].tolist() == ["head", "head", "head", "all"]
    assert result.history["loss"].iloc[2] < result.history["loss"].iloc[1]


def test_the_pull_to_the_start_keeps_weights_near_it(fitted, tmp_path):
    from hubretrain.tensorflow import tf

    start = tf.train.load_checkpoint(str(fitted / "small" / "variables" / "variables"))
    names = start.get_variable_to_shape_map()
    dense = next(start.get_tensor(n) for n in names if names[n] == [32, 12])

    def distance(name, **options):
        run = copied(fitted, tmp_path, name)
        tune(fitted, run, epochs=2, **options)
        (last,) = (run.finetune_folder("small") / "checkpoint").glob("at_*.index")
        reader = tf.train.load_checkpoint(str(last.with_suffix("")))
        of_model = [
            reader.get_tensor(n)
            for n, shape in reader.get_variable_to_shape_map().items()
            if shape == [32, 12] and n.startswith("variables/")
        ]
        return min(float(np.linalg.norm(one - dense)) for one in of_model)

    free, pulled = distance("free"), distance("pulled", l2_sp=100.0)
    assert 0 < pulled < free / 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_weights_that_are_kept_are_best_on_the_way_from_the_start(fitted, tmp_path, momentum):
    runs = [copied(fitted, tmp_path, name) for name in ("all", "way")]
    results = []
    for run, interpolate in zip(runs, (False, True), strict=True):
        weaken(run, "small")
        result = tune(fitted, run, interpolate=interpolate, ema=momentum, export="fine-tuned")
        results.append(result)
    assert results[0].kept_epoch == results[1].kept_epoch > 0
    state = json.loads((runs[1].finetune_folder("small") / "checkpoint" / "state.json").read_text())
    assert state["strength_of"] == results[1].kept_epoch
    accuracies = [result.validation["accuracy"][0] for result in results]
    assert accuracies[1] >= accuracies[0]
    # The dense kernel of the module, before, after, and in between.
    start, end, between = (
        next(v for n, v in tensors(path).items() if v.shape == (32, 12))
        for path in (
            fitted / "small" / "variables" / "variables",
            *(run.export_folder / "variables" / "variables" for run in runs),
        )
    )
    expected = start + np.float32(state["strength"]) * (end - start)
    np.testing.assert_allclose(between, expected, atol=1e-6)
    before = {path: path.read_bytes() for path in runs[1].finetune_folder("small").glob("*.csv")}
    tune(fitted, runs[1], resume=True, export="fine-tuned")
    assert {path: path.read_bytes() for path in before} == before


def tensors(path):
    """Name of each variable in a checkpoint, to its value."""
    from hubretrain.tensorflow import tf

    reader = tf.train.load_checkpoint(str(path))
    shapes = reader.get_variable_to_shape_map()
    names = [name for name in shapes if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    return {name: reader.get_tensor(name) for name in names}


def test_balanced_sampling_trains_without_class_weights_and_adjustment(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    tune(fitted, run, epochs=1, balanced_sampling=True)
    assert run.finetune.modules["small"].adjust == 0.0


WEIGHTS = np.array([0.1, 1.0, 9.0])
UNCHANGED = {"learning_rate": 1e-20, "epochs": 1, "unfreeze_last": 0, "trunk_views": 0}


def losses_of(run, part, size=8):
    """Labels of the images of some folds, and the loss of each by the head at its temperature."""
    head = ModuleHeads.load(run.heads_file("small")).warm_start
    folds = pd.read_csv(run.folds_file, dtype=str)
    images = folds[folds["fold"].isin(list(part))]
    pixels = pixels_of(run.folder.parent, images["path"], size)
    features = Backbone(resolve(str(run.folder.parent / "small")), head.layers)(pixels).numpy()
    labels = images["label"].astype(int).to_numpy()
    probs = at_temperature(head.probabilities(features), head.calibration.temperature)
    return labels, -np.log(probs[np.arange(len(labels)), labels])


STILL = Augmentation(False, crop=1, crop_ratio=1, brightness=0, contrast=0)


def weighted(fitted, tmp_path):
    """Return a copy of the run whose head weighs the classes, beside its images and module."""
    run = copied(fitted, tmp_path)
    for name in ("digits", "small"):
        (tmp_path / name).symlink_to(fitted / name)
    weaken(run, "small", kind="softmax", class_weight="", weight_of_class=WEIGHTS)
    return run


def test_an_image_weighs_the_same_in_every_batch(fitted, tmp_path):
    run = weighted(fitted, tmp_path)
    history = tune(fitted, run, augmentation=STILL, batch_size=4, **UNCHANGED).history
    labels, losses = losses_of(run, "1234")
    expected = np.average(losses, weights=WEIGHTS[labels])
    assert history["loss"][1] == pytest.approx(expected, rel=1e-4)


def test_the_first_two_thirds_of_the_epochs_show_smaller_images(fitted, tmp_path):
    run = weighted(fitted, tmp_path)
    options = {**UNCHANGED, "epochs": 3, "augmentation": STILL, "small_first": True}
    history = tune(fitted, run, **options).history
    for epoch, size in ((1, 6), (2, 6), (3, 8)):
        labels, losses = losses_of(run, "1234", size)
        expected = np.average(losses, weights=WEIGHTS[labels])
        assert history["loss"][epoch] == pytest.approx(expected, rel=1e-4)


def test_epochs_of_balanced_sampling_are_judged_by_balanced_losses(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    for name in ("digits", "small"):
        (tmp_path / name).symlink_to(fitted / name)
    weaken(run, "small", kind="softmax", class_weight="", weight_of_class=WEIGHTS)
    history = tune(fitted, run, balanced_sampling=True, **UNCHANGED).history
    in_training, _ = losses_of(run, "1234")
    labels, losses = losses_of(run, "0")
    expected = np.average(losses, weights=1 / np.bincount(in_training)[labels])
    assert history["validation_loss"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("class_weight", [None, "balanced", {1: 5.0}])
@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_fine_tuning_begins_at_the_least_loss_of_the_fit(kind, class_weight):
    from dataclasses import replace

    from hubretrain import LogisticHead, SoftmaxHead
    from hubretrain.evaluation import DecisionRule
    from hubretrain.finetuning.input_pipeline import loss_weights
    from hubretrain.heads import Head

    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 25, 10])
    features = np.eye(3)[labels] + random.normal(size=(len(labels), 3))
    estimator = {"softmax": SoftmaxHead, "logistic": LogisticHead}[kind]
    fit = estimator(class_weight=class_weight, tol=1e-8).fit(features, labels)
    of_class = np.array([1.0, 5.0, 1.0]) if isinstance(class_weight, dict) else np.ones(3)
    head = Head(kind, fit.coef_.T, fit.intercept_, DecisionRule(0.0, ()), of_class)
    head = replace(head, class_weight=class_weight if class_weight == "balanced" else "")
    logits = head.logits(features)
    probs = head.probabilities(features) if kind == "softmax" else 1 / (1 + np.exp(-logits))
    weights = loss_weights(head, labels)[:, labels].T
    # At the optimum no bias, which no penalty holds back, can lower the loss.
    slope = (weights * (probs - np.eye(3)[labels])).mean(axis=0)
    assert np.abs(slope).max() < 1e-3
    weighed_alike = loss_weights(head, labels, is_balanced=True)[:, labels]
    assert np.allclose([weighed_alike[0, labels == c].sum() for c in range(3)], len(labels) / 3)


def test_the_run_remembers_what_fine_tuning_found(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    weaken(run, "small")
    result = tune(fitted, run, epochs=1, export="fine-tuned")
    record = run.finetune
    assert (record.chosen, record.order) == ("small", None)
    assert record.modules["small"].kept_epoch == result.kept_epoch
    assert record.modules["small"].test["accuracy"] == result.test["accuracy"]
    validation = pd.read_csv(run.finetune_folder("small") / "validation.csv")
    folds = pd.read_csv(run.folds_file, dtype=str).set_index("sha256")["fold"]
    assert set(folds[validation["sha256"]]) == {"0"}
    columns = [c for c in validation if c.startswith("p(")]
    hits = validation[columns].to_numpy().argmax(1) == validation["label"].to_numpy()
    assert record.modules["small"].validation["unadjusted_accuracy"][0] == pytest.approx(
        hits.mean(), abs=1e-6
    )


def test_a_class_that_no_training_fold_holds_is_an_error(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    folds = pd.read_csv(run.folds_file, dtype=str)
    folds.loc[folds["label"] == "2", "fold"] = "test"
    folds.to_csv(run.folds_file, index=False)
    with pytest.raises(RunError, match=r"folds.csv is damaged or another one than the run"):
        tune(fitted, run)
    files = {**run.fit.files, "folds.csv": file_sha256(run.folds_file)}
    run.write_fit(replace(run.fit, files=files))
    expected = r"the training folds hold no image of the class 2 \(its images are in the test split"
    with pytest.raises(RunError, match=expected):
        tune(fitted, run)


class Interrupted(Augmentation):
    """Ctrl-C after a number of views; counts them, and the folds of what is shown."""

    n_left, shown = np.inf, []

    def draw(self, sha256, view, seed):
        Interrupted.shown.append(sha256)
        Interrupted.n_left -= 1
        if Interrupted.n_left < 0:
            raise KeyboardInterrupt
        return super().draw(sha256, view, seed)


def test_a_plateau_which_follows_the_fold_is_not_repeated_on_all_folds():
    with pytest.raises(RunError, match=r"`all_folds` repeats .* of a cosine, but `schedule` is pl"):
        FineTuneOptions(all_folds=True, schedule="plateau")


def test_on_all_folds_epochs_that_were_added_are_trained_at_their_rates_and_others_not_again(
    fitted, tmp_path, monkeypatch
):
    run = copied(fitted, tmp_path)
    weaken(run, "small")
    options = {"epochs": 1, "all_folds": True, "augmentation": Interrupted()}
    monkeypatch.setattr(Interrupted, "shown", [])
    tune(fitted, run, **options)
    n_shown = len(Interrupted.shown)
    assert tune(fitted, run, more_epochs=1, **options).kept_epoch == 2
    assert len(Interrupted.shown) == 2 * n_shown
    folder = run.finetune_folder("small")
    rates = pd.read_csv(folder / "history.csv").set_index("epoch")["learning_rate"]
    repeated = pd.read_csv(folder / "all_folds" / "history.csv").set_index("epoch")["learning_rate"]
    # At the end of an epoch; those of all folds have a quarter more steps.
    assert repeated.loc[1] == pytest.approx(rates.loc[1], abs=0.1 * 3e-3)
    assert repeated.loc[2] == pytest.approx(rates.loc[2], abs=0.1 * 3e-3)


def test_the_work_that_is_left_contains_that_of_training_on_all_folds(fitted, tmp_path):
    from hubretrain.finetuning.checkpoints import State
    from hubretrain.finetuning.devices import available_devices
    from hubretrain.finetuning.trainer import Trainer
    from hubretrain.modules.classifier import Classifier

    head = ModuleHeads.load(fitted / "run" / "heads" / "small.h5").warm_start
    backbone = Backbone(resolve(str(fitted / "small")), head.layers)
    classifier = Classifier(backbone, head.kind, head.weight, head.bias)

    def trainer_of(**options):
        options = FineTuneOptions(epochs=4, **options)
        return Trainer(classifier, tmp_path, options, available_devices())

    trainer = trainer_of(warmup_head=1, all_folds=True)
    a_fold_less, all_folds = 3 * 5 * 80 + 5 * 20, 3 * 5 * 100
    assert trainer.passes_left(80, 20) == a_fold_less + all_folds
    assert trainer.passes_until(3, 100) == 3 * 3 * 100
    cached = trainer_of(unfreeze_last=1, trunk_views=2, all_folds=True)
    assert cached.passes_left(80, 20) == 2 * 80 + 20 + 2 * 100
    state = State(4, 4, epoch=4, history=[{"epoch": 4}], best_epoch=2)
    trainer = trainer_of(all_folds=True)
    trainer.checkpoints.checkpoint_folder.mkdir()
    trainer.checkpoints.point_to(state)
    assert trainer.passes_left(80, 20) == 0
    # Epochs that are added alone are trained without the fold, but all of them on all folds.
    assert trainer.passes_left(80, 20, 2) == 2 * (3 * 80 + 20) + 6 * 3 * 100
    trainer.checkpoints.point_to(replace(state, diverged="nan", stopped=True))
    assert trainer.passes_until(6, 100) == 0


@pytest.mark.parametrize("unfreeze_last", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_the_head_of_all_folds_is_trained_for_the_epochs_that_were_best(
    fitted, tmp_path, monkeypatch, unfreeze_last
):
    chosen = {"epochs": 3, "unfreeze_last": unfreeze_last, "export": "fine-tuned"}
    runs = [copied(fitted, tmp_path, name) for name in ("straight", "later", "killed")]
    for run in runs:
        weaken(run, "small")
    straight = tune(fitted, runs[0], all_folds=True, **chosen)
    first = tune(fitted, runs[1], **chosen)
    assert not first.all_folds
    assert straight.all_folds
    assert straight.kept_epoch == first.kept_epoch > 0
    assert straight.validation == first.validation  # of the model that chose the epoch
    assert straight.test != first.test
    board = pd.read_csv(runs[0].folder / "leaderboard.csv").set_index("kind")
    assert straight.head_test["accuracy"][0] == pytest.approx(board.loc["module", "test_accuracy"])
    assert "all folds" in board.loc["fine-tuned", "head"]
    folds = pd.read_csv(runs[0].folds_file, dtype=str).set_index("sha256")["fold"]
    monkeypatch.setattr(Interrupted, "shown", [])
    tune(fitted, runs[1], all_folds=True, **chosen)
    monkeypatch.setattr(Interrupted, "n_left", 3 * (folds != "test").sum() - 40)
    with pytest.raises(KeyboardInterrupt):
        tune(fitted, runs[2], all_folds=True, augmentation=Interrupted(), **chosen)
    assert {folds[sha256] for sha256 in Interrupted.shown} >= {"1", "2", "3", "4"}
    assert "test" not in {folds[sha256] for sha256 in Interrupted.shown}
    Interrupted.n_left = np.inf
    tune(fitted, runs[2], all_folds=True, augmentation=Interrupted(), **chosen)
    assert {folds[sha256] for sha256 in Interrupted.shown} == {"0", "1", "2", "3", "4"}
    predictions = [(run.finetune_folder("small") / "predictions.csv").read_bytes() for run in runs]
    assert predictions[1] == predictions[0]
    assert predictions[2] == predictions[0]
    table = pd.read_csv(runs[0].finetune_folder("small") / "predictions.csv")
    probs = table[[c for c in table if c.startswith("p(")]].to_numpy()
    exported = open_runtime(Export.open(runs[0].export_folder))
    pixels = pixels_of(fitted, table["path"], 8)
    np.testing.assert_allclose(exported({8: pixels}), probs, atol=1e-4)
