"""An export on labelled images of another data set, against scikit-learn on its own table."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from hubretrain.data import Quarantine, SplitOptions, open_dataset
from hubretrain.data.splitting import write_folds
from hubretrain.errors import DataError, RunError
from hubretrain.export.evaluate import evaluate_export
from hubretrain.export.predict import predict_images
from hubretrain.files import file_sha256
from hubretrain.runs import Run
from tests.samples import encoded, fit_record

NAMES = ["a", "<b>", "ç é"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise in the three classes of the export, and a file that is no image."""
    folder = tmp_path_factory.mktemp("external") / "images"
    random = np.random.default_rng(0)
    for name, n in zip(NAMES, (20, 15, 10), strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            (folder / name / f"{i}.png").write_bytes(encoded(pixels))
    (folder / "a" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def evaluated(small_export, images, tmp_path_factory):
    return evaluate_export(small_export, open_dataset(images), cache=tmp_path_factory.mktemp("c"))


def test_the_metrics_are_those_of_scikit_learn_on_the_predictions_that_predict_gives(
    small_export, images, evaluated
):
    table = evaluated.predictions
    probs = table[[f"p({name})" for name in NAMES]].to_numpy()
    told = list(predict_images(small_export, [images / path for path in table["path"]]))
    assert [one.decision for one in told] == table["decision"].tolist()
    assert [one.classes[0][1] for one in told] == probs.max(axis=1).tolist()
    truth, decisions = table["label"], table["decision"]
    values = {name: interval.estimate for name, interval in evaluated.figures.items()}
    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(truth, decisions))
    balanced = metrics.balanced_accuracy_score(truth, decisions)
    assert values["balanced_accuracy"] == pytest.approx(balanced)
    labels = [NAMES.index(name) for name in truth]
    exact = probs.astype(float)
    log_loss = metrics.log_loss(labels, exact / exact.sum(axis=1, keepdims=True))
    assert values["log_loss"] == pytest.approx(log_loss, rel=1e-5)
    matrix = metrics.confusion_matrix(truth, decisions, labels=NAMES)
    assert evaluated.confusion[NAMES].to_numpy().tolist() == matrix.tolist()
    for interval in evaluated.figures.values():
        assert interval.low <= interval.estimate <= interval.high


def test_the_rule_of_the_export_decides_and_the_top_class_is_told_apart(evaluated):
    top_1 = evaluated.predictions[[f"p({name})" for name in NAMES]].to_numpy().argmax(axis=1)
    right = np.array(NAMES)[top_1] == evaluated.predictions["label"]
    assert evaluated.figures["unadjusted_accuracy"].estimate == pytest.approx(right.mean())
    assert (np.array(NAMES)[top_1] != evaluated.predictions["decision"]).any()


def test_an_image_that_cannot_be_read_is_named_and_left_out(evaluated):
    assert list(evaluated.failed) == ["a/broken.png"]
    assert len(evaluated.predictions) == 45
    assert evaluated.n_known == 0


def test_an_image_that_the_cache_could_not_decode_is_named_too(small_export, images, tmp_path):
    dataset = open_dataset(images)
    quarantine = Quarantine(dataset.cache_folder(tmp_path))
    sha256 = file_sha256(images / "a" / "broken.png")
    quarantine.add(sha256, "a/broken.png", "no image of a known type")
    quarantine.add("f" * 64, "elsewhere.png", "an empty file")
    quarantine.save()
    again = evaluate_export(small_export, dataset, cache=tmp_path)
    assert dict(again.failed) == {"a/broken.png": "no image of a known type"}
    assert len(again.predictions) == 45


def test_the_tables_are_written_as_they_are(evaluated, tmp_path):
    evaluated.save(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["confusion.csv", "metrics.csv", "per_class.csv", "predictions.csv"]
    table = pd.read_csv(tmp_path / "metrics.csv").set_index("metric")
    assert tuple(table.loc["accuracy"]) == tuple(evaluated.figures["accuracy"])


def test_a_class_that_the_model_does_not_know_is_refused(small_export, images, tmp_path):
    for name in ("a", "d"):
        (tmp_path / "other" / name).mkdir(parents=True)
        (tmp_path / "other" / name / "0.png").write_bytes((images / "a" / "0.png").read_bytes())
    (tmp_path / "other" / "d" / "0.png").write_bytes((images / "a" / "1.png").read_bytes())
    with pytest.raises(DataError, match=r"holds the class 'd', which the model does not know"):
        evaluate_export(small_export, open_dataset(tmp_path / "other"), cache=tmp_path)


def test_images_that_the_model_has_all_seen_are_refused(small_export, images, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_export, run / "export")
    dataset = open_dataset(images)
    folds = dataset.split(SplitOptions(test_fraction=0, n_folds=5), cache=tmp_path)
    write_folds(run / "folds.csv", folds)
    with pytest.raises(DataError, match=r"fitted or chosen on all 46 images"):
        evaluate_export(run, dataset, cache=tmp_path)


def test_folds_that_are_not_those_of_the_fit_are_refused(small_export, images, tmp_path):
    run = Run(tmp_path / "run")
    shutil.copytree(small_export, run.export_folder)
    dataset = open_dataset(images)
    folds = dataset.split(SplitOptions(test_fraction=0.3, n_folds=2), cache=tmp_path)
    write_folds(run.folds_file, folds)
    run.write_fit(fit_record(files={"folds.csv": file_sha256(run.folds_file)}))
    unseen = set(folds.loc[folds["fold"] == -1, "path"]) - {"a/broken.png"}
    evaluated = evaluate_export(run.folder, dataset, cache=tmp_path)
    assert set(evaluated.predictions["path"]) == unseen
    lines = run.folds_file.read_text().splitlines(keepends=True)
    run.folds_file.write_text("".join(lines[:1] + lines[2:]))  # an image that is unknown now
    with pytest.raises(RunError, match=r"folds\.csv is damaged or another one than the run rec"):
        evaluate_export(run.folder, dataset, cache=tmp_path)
