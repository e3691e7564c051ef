"""Fine-tuning of images that may have several labels, or none."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from hubretrain.data import TableOptions, open_dataset
from hubretrain.errors import RunError
from hubretrain.evaluation.label_thresholds import LabelThresholds, best_thresholds
from hubretrain.evaluation.selection import choice_parts
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import open_runtime
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.finetuning.finetune import Resumption, finetune_module
from hubretrain.finetuning.input_pipeline import TrainingImages, label_weights
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.results import Criterion, scores_of, thresholds_on
from hubretrain.heads.heads import Head, ModuleHeads
from hubretrain.modules import resolve
from hubretrain.runs import VALIDATION_PREDICTIONS, Run
from hubretrain.screening import ScreenOptions
from hubretrain.screening.fit import screen_modules
from tests.finetuning.heads import pixels_of
from tests.finetuning.runs import copied, weights_of, write_labelled
from tests.samples import record_files, write_module

NAMES = ("0", "1", "2", "bright")


def samples(n_images=200, n_labels=3, seed=0):
    """Labels, and probabilities that know something of them, for groups of two images."""
    random = np.random.default_rng(seed)
    labels = random.random((n_images, n_labels)) < 0.3
    logits = random.normal(size=labels.shape) + 2.0 * labels - 1
    return labels, 1 / (1 + np.exp(-logits)), np.arange(n_images) // 2


def test_each_half_of_the_fold_is_decided_by_the_thresholds_of_the_other():
    labels, probs, groups = samples()
    parts, rule = choice_parts(labels, groups), LabelThresholds((0.5, 0.5, 0.5))
    scores = scores_of(probs, labels, groups, rule)
    for part in (0, 1):
        here = parts == part
        other = best_thresholds(probs[~here], labels[~here])
        assert other != best_thresholds(probs, labels)
        np.testing.assert_array_equal(scores[here] > 0.5, other.decide(probs[here]))


def test_a_label_of_few_images_keeps_the_threshold_of_the_head():
    labels, probs, groups = samples()
    labels[:, 1] = False
    labels[:4, 1] = True
    head = LabelThresholds((0.2, 0.3, 0.4))
    chosen = thresholds_on(probs, labels, head)
    best = best_thresholds(probs, labels)
    assert astuple(chosen) == ((best.values[0], 0.3, best.values[2]),)  # noqa: PD011 - no table
    criterion = Criterion("macro_f1", labels, groups, head, head)
    assert criterion.rule_of(probs, 0) == head
    assert criterion.rule_of(probs, 3) == chosen


def test_epochs_are_compared_by_what_thresholds_of_other_images_decide():
    labels, probs, groups = samples()
    head = LabelThresholds((0.2, 0.3, 0.4))
    criterion = Criterion("macro_f1", labels, groups, head, head)
    decided = head.decide(probs)
    expected = metrics.f1_score(labels, decided, average="macro")
    assert criterion.value(probs, 0) == pytest.approx(expected)
    decided = scores_of(probs, labels, groups, head) > 0.5
    expected = metrics.f1_score(labels, decided, average="macro")
    assert criterion.value(probs, 1) == pytest.approx(expected)
    ranking = Criterion("mean_average_precision", labels, groups, head, head)
    expected = metrics.average_precision_score(labels, probs)
    assert ranking.value(probs, 1) == pytest.approx(expected)


def test_with_balanced_weights_images_with_and_without_a_label_weigh_alike():
    labels, _, _ = samples()
    arrays = np.zeros((5, 3), np.float32), np.zeros(3, np.float32)
    head = Head("logistic", *arrays, LabelThresholds((0.5,) * 3), np.array([1.0, 4.0, 2.0]))
    without, with_it = label_weights(replace(head, class_weight="balanced"), labels)
    n_with = labels.sum(axis=0)
    np.testing.assert_allclose(n_with * with_it, (len(labels) - n_with) * without, rtol=1e-6)
    np.testing.assert_allclose(n_with * with_it + (200 - n_with) * without, 200, rtol=1e-6)
    without, with_it = label_weights(replace(head, class_weight="1: 4, 2: 2"), labels)
    assert (without.tolist(), with_it.tolist()) == ([1, 1, 1], [1, 4, 2])


def test_another_label_of_one_image_is_another_training(tmp_path):
    labels, _, _ = samples(n_images=4)
    names = list("abcd")
    images = TrainingImages(tmp_path, names, names, labels, np.ones((4, 1), np.float32))
    other = labels.copy()
    other[2, 1] ^= True
    assert images.digest() == replace(images, labels=labels.copy()).digest()
    assert images.digest() != replace(images, labels=other).digest()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Digits with labels and a run of one module; no test writes there."""
    folder = tmp_path_factory.mktemp("labelled")
    write_labelled(folder)
    stored = resolve(str(write_module(folder / "small", n_features=12, seed=5)))
    dataset = dataset_of(folder)
    assert dataset.class_names == NAMES
    cache_bottlenecks(dataset, [stored], CacheOptions(n_views=1), cache=folder / "cache")
    options = ScreenOptions(heads=("logistic",), class_weights=("balanced",), l2=(1.0, 10.0))
    screen_modules(dataset, Run(folder / "run"), options, cache=folder / "cache")
    return folder


def dataset_of(folder):
    table = TableOptions(label_column="labels", multi_label=True)
    return open_dataset(folder / "digits", labels=folder / "labels.csv", table=table)


def tune(folder, run, *, resumption=None, **options):
    options = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, **options}
    return finetune_module(
        dataset_of(folder),
        run,
        cache=folder / "cache",
        options=FineTuneOptions(**options),
        resumption=resumption,
    )


def weaken(run):
    """Let fine-tuning start from a tenth of the head: there is something to gain."""
    heads = ModuleHeads.load(run.heads_file("small"))
    weaker = replace(heads.warm_start, weight=heads.warm_start.weight * 0.1)
    replace(heads, warm_start=weaker).save(run.heads_file("small"), {})
    record_files(run)


@pytest.mark.slow
def test_labels_are_trained_from_what_the_head_predicted_and_exported_with_thresholds(
    fitted, tmp_path, caplog
):
    caplog.set_level("INFO", "hubretrain")
    run = copied(fitted, tmp_path)
    weaken(run)
    result = tune(fitted, run, label_smoothing=0.05)
    head = ModuleHeads.load(run.heads_file("small")).warm_start
    from hubretrain.modules.backbone import Backbone

    table = VALIDATION_PREDICTIONS.read(run.finetune_folder("small"))
    pixels = pixels_of(fitted, table["path"], 8)
    backbone = Backbone(resolve(str(fitted / "small")), head.layers)
    of_head = head.probabilities(backbone(pixels).numpy())
    truth = np.array([[name in row.split("|") for name in NAMES] for row in table["label"]])
    history = result.history
    precision = history["validation_metric"].iloc[1]
    assert f"validation mean average precision {precision:.3f}" in caplog.text
    folds = pd.read_csv(run.folds_file, dtype=str, keep_default_na=False)
    trained = folds.loc[~folds["fold"].isin(["test", "0"]), "label"]
    share = np.array([[name in row.split("|") for name in NAMES] for row in trained]).mean(axis=0)
    weights = np.where(truth, 1 / (2 * share), 1 / (2 * (1 - share)))
    losses = -np.where(truth, np.log(of_head), np.log(1 - of_head))
    loss = (weights * losses).sum() / (weights.mean() * len(truth))
    assert history["validation_loss"].iloc[0] == pytest.approx(loss, rel=1e-4)
    step_0 = metrics.average_precision_score(truth, of_head)
    assert history["validation_metric"].iloc[0] == pytest.approx(step_0, abs=1e-6)
    assert result.kept_epoch > 0
    probs = table[[f"p({name})" for name in NAMES]].to_numpy()
    kept = metrics.average_precision_score(truth, probs)
    assert result.validation["mean_average_precision"][0] == pytest.approx(kept, abs=1e-5)
    assert {"macro_f1", "subset_accuracy", "hamming_loss"} <= result.validation.keys()
    record = run.finetune.modules["small"]
    assert len(record.thresholds) == len(NAMES)
    exported = run.finetune.exported
    assert exported.kind == "fine-tuned"
    export = Export.open(run.export_folder)
    assert export.multi_label
    probs_of_export = open_runtime(export)({8: pixels})
    np.testing.assert_allclose(probs_of_export, probs, atol=1e-4)
    rule = LabelThresholds(tuple(record.thresholds)).at_temperature(record.temperature)
    assert export.manifest["thresholds"] == pytest.approx(astuple(rule)[0])


def test_balanced_sampling_and_other_kinds_of_labels_are_refused_in_a_sentence(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    with pytest.raises(
        RunError, match=r"`balanced_sampling` draws each class equally often, which"
    ):
        tune(fitted, run, balanced_sampling=True)
    assert not run.finetune_folder("small").exists()
    several = dataset_of(fitted)
    single = replace(several, multi_label=False)
    with pytest.raises(RunError, match=r"was fitted on several labels per image, but the data set"):
        finetune_module(single, run, cache=fitted / "cache", options=FineTuneOptions(epochs=1))


@pytest.mark.slow
@pytest.mark.parametrize("unfreeze_last", [None, 1])
def test_a_training_of_labels_that_is_continued_is_the_one_that_went_through(
    fitted, tmp_path, unfreeze_last
):
    options = {"unfreeze_last": unfreeze_last, "schedule": "plateau"}
    whole, parts = (copied(fitted, tmp_path, name) for name in ("whole", "parts"))
    for run in (whole, parts):
        weaken(run)
    first = tune(fitted, whole, epochs=3, **options)
    tune(fitted, parts, epochs=1, **options)
    again = tune(fitted, parts, epochs=None, resumption=Resumption(more_epochs=2), **options)
    columns = ["epoch", "loss", "validation_loss", "validation_metric"]
    pd.testing.assert_frame_equal(again.history[columns], first.history[columns], rtol=1e-5)
    trunk = parts.finetune_folder("small") / "trunk.h5"
    assert trunk.exists() == (unfreeze_last is not None)
    one, other = weights_of(whole), weights_of(parts)
    assert one.keys() == other.keys()
    for name in one:
        if len(one[name]) > 8:
            values = [np.frombuffer(of[name], np.float32) for of in (one, other)]
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)
