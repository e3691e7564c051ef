from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss

from hubretrain.errors import RunError
from hubretrain.evaluation import at_temperature
from hubretrain.export import Export, export_run, is_current, predict_images
from hubretrain.heads import Ensemble
from hubretrain.runs import TEST_PREDICTIONS, Run
from tests.finetuning.heads import weaken
from tests.finetuning.runs import copied, tune, write_run_of_two

CLASSES = ["p(0)", "p(1)", "p(2)"]
MEAN = "mean of small5, fine-tuned, and the ensemble"


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """A fitted run of two modules; no test writes there."""
    folder = tmp_path_factory.mktemp("fitted")
    write_run_of_two(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(of_two, tmp_path_factory):
    """A copy of the run whose first module was fine-tuned; no test writes there."""
    run = copied(of_two, tmp_path_factory.mktemp("tuned"))
    weaken(run, "small5")
    tune(of_two, run, module="small5", epochs=2)
    return run


def without_temperature(table, temperature):
    table = table.set_index("path").sort_index()
    probs = table[CLASSES].to_numpy(np.float64)
    return table, at_temperature(probs / probs.sum(axis=1, keepdims=True), 1 / temperature)


@pytest.mark.parametrize(
    ("part", "own", "of_ensemble"),
    [
        ("validation", "validation.csv", "out_of_fold.csv"),
        ("test", "predictions.csv", "test_predictions.csv"),
    ],
)
def test_the_mean_is_half_of_the_fine_tuned_model_and_half_of_the_ensemble(
    tuned, part, own, of_ensemble
):
    record = tuned.finetune.modules["small5"]
    assert record.kept_epoch
    mean, ensemble = record.with_ensemble, Ensemble.load(tuned.ensemble_file)
    as_text = {"label": str}
    table = pd.read_csv(tuned.finetune_folder("small5") / own, dtype=as_text)
    of_tuned, first = without_temperature(table, record.temperature)
    table = pd.read_csv(tuned.folder / of_ensemble, dtype=as_text)
    is_used = (table["module"] == "ensemble") & table["path"].isin(of_tuned.index)
    others, second = without_temperature(table[is_used], ensemble.calibration.temperature)
    assert of_tuned.index.tolist() == others.index.tolist()
    probs, labels = (first + second) / 2, of_tuned["label"].astype(int)
    figures = getattr(mean, part)
    scores = probs / (np.asarray(mean.priors) ** mean.adjust if mean.adjust else 1)
    expected = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert figures["balanced_accuracy"][0] == pytest.approx(expected, abs=1e-6)
    assert mean.uncalibrated_log_loss[part] == pytest.approx(log_loss(labels, probs), rel=1e-3)
    values = record.validation if part == "validation" else record.test
    difference = figures["balanced_accuracy"][0] - values["balanced_accuracy"][0]
    if tuned.fit.metric == "balanced_accuracy":
        assert mean.over_fine_tuned[part][0] == pytest.approx(difference, abs=2e-6)


def test_the_mean_has_a_row_below_that_of_its_module(tuned):
    board = pd.read_csv(tuned.folder / "leaderboard.csv").set_index("module")
    names = board.index.tolist()
    i = names.index("small5")
    assert names[i : i + 3] == ["small5", "small5, fine-tuned", MEAN]
    row, ensemble = board.loc[MEAN], board[board["kind"] == "ensemble"].iloc[0]
    assert (row["kind"], row["n_members"]) == ("mean", 1 + ensemble["n_members"])
    assert row["gflops"] == pytest.approx(ensemble["gflops"] + board.loc["small5", "gflops"])
    mean = tuned.finetune.modules["small5"].with_ensemble
    assert row["test_accuracy"] == pytest.approx(mean.test["accuracy"][0])
    assert row["over_head"] == pytest.approx(mean.over_head["validation"][0])
    assert MEAN in tuned.finetune.exported.on_validation


def test_the_exported_mean_predicts_the_mean(of_two, tuned, tmp_path):
    run = Run(shutil.copytree(tuned.folder, tmp_path / "run"))
    on_test = TEST_PREDICTIONS.read(run.folder)
    on_test = on_test[on_test["module"] == "ensemble"].head(5)
    paths = [of_two / "digits" / path for path in on_test["path"]]

    def uncalibrated(export):
        probs = [[p for _, p in sorted(one.classes)] for one in predict_images(export, paths)]
        temperature = Export.open(export).manifest["temperature"]
        return at_temperature(np.array(probs), 1 / temperature)

    tune(of_two, run, module="small5", resume=True, export="fine-tuned")
    first = uncalibrated(run.export_folder)
    second = uncalibrated(export_run(run, ensemble=True).folder)
    temperature = Ensemble.load(run.ensemble_file).calibration.temperature
    written = at_temperature(on_test[CLASSES].to_numpy(), 1 / temperature)
    np.testing.assert_allclose(written, second, atol=2e-5)
    tune(of_two, run, module="small5", resume=True, export="mean")
    assert run.finetune.exported.name == MEAN
    assert is_current(run)
    np.testing.assert_allclose(uncalibrated(run.export_folder), (first + second) / 2, atol=2e-5)
    manifest = Export.open(run.export_folder).manifest
    ensemble = Ensemble.load(run.ensemble_file).weights
    members = [(member["module"], member["weight"]) for member in manifest["members"]]
    expected = [("small5", 0.5), *((name, weight / 2) for name, weight in ensemble.items())]
    assert members == expected
    card = (run.export_folder / "README.md").read_text(encoding="utf-8")
    assert "a mean of small5, fine-tuned, and of heads on" in card
    tune(of_two, run, module="small6", epochs=1)
    assert f"{MEAN}, exported before" in run.finetune.exported.on_validation


def test_a_mean_without_an_ensemble_is_refused_before_anything_is_trained(fitted, tmp_path):
    run = copied(fitted, tmp_path)  # of one module
    with pytest.raises(RunError, match="no ensemble of heads that a mean could be exported with"):
        tune(fitted, run, epochs=1, export="mean")
    assert not (run.folder / "finetune").exists()
