"""The chain of commands on images that may have several labels, from the cache to the report."""

from __future__ import annotations

import csv
import io

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.cli import main
from hubretrain.data.images.decoding import decode, to_unit, view
from hubretrain.evaluation import at_temperature
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import open_runtime
from hubretrain.heads import Ensemble, ModuleHeads
from hubretrain.report.run_data import gather
from hubretrain.runs import Run
from tests.browsing import asked
from tests.finetuning.runs import write_labelled
from tests.samples import write_module

pytestmark = pytest.mark.slow
NAMES = ["0", "1", "2", "bright"]
COUNTS = """return [[...document.querySelectorAll('#model option')].map(one => one.textContent),
  [...document.querySelectorAll('#confusion button')].map(one => Number(one.textContent)),
  [...document.querySelectorAll('#map-colour option')].map(one => one.textContent),
  document.documentElement.scrollWidth - innerWidth];"""


def invoke(*arguments):
    ran = CliRunner().invoke(main, [str(one) for one in arguments])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of data, cache and a run that was fitted and fine-tuned by commands."""
    folder = tmp_path_factory.mktemp("chain")
    write_labelled(folder)
    seeds = {"small5": 5, "small6": 6}
    modules = [write_module(folder / n, n_features=12, seed=s) for n, s in seeds.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ["digits", "--labels", "labels.csv", "--label-column", "labels", "--multi-label"]
        invoke("cache", *data, "--module", modules[0], "--module", modules[1], "--views", 1)
        text = invoke("fit", "digits", "--run", "run")
        assert "Chosen by mean average precision" in text
        invoke("finetune", "run", "--epochs", 1, "--unfreeze-last", 1)
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_the_exported_ensemble_of_labels_is_the_one_of_the_cached_path(folder):
    run, paths = (
        Run("runs/run"),
        pd.read_csv("runs/run/folds.csv", dtype=str, keep_default_na=False)["path"],
    )
    invoke("export", "run", "--ensemble", "--output", "ensemble")
    ensemble, probs = Ensemble.load(run.ensemble_file), {}
    sha256s = pd.read_csv("runs/run/folds.csv", dtype=str)["sha256"].tolist()
    for name in ensemble.weights:
        head = ModuleHeads.load(run.heads_file(name)).ensemble_member
        assert head.multi_label
        with Bottlenecks(f"cache/digits/{name}.h5") as bottlenecks:
            probs[name] = head.probabilities(
                bottlenecks.rows(sha256s, layers=head.layers or "last")
            )
    mean, temperature = ensemble.mean(probs), ensemble.calibration.temperature
    export = Export.open("ensemble")
    images = [view(decode((folder / "digits" / path).read_bytes()), 8) for path in paths]
    pixels = {8: to_unit(np.stack(images))}
    given = open_runtime(export)(pixels)
    assert np.abs(given - at_temperature(mean, temperature, True)).max() < 1e-4
    decided = ensemble.rule.decide(mean)
    assert (export.decisions(given) == decided).mean() > 0.995  # but at a threshold, rounded


def test_predictions_in_views_and_the_evaluation_follow_the_thresholds():
    rows = list(csv.DictReader(io.StringIO(invoke("predict", "run", "digits", "--csv"))))
    thresholds = Export.open("runs/run").manifest["thresholds"]
    for row in rows:
        probs = [float(row[f"p({name})"]) for name in NAMES]
        labels = [n for n, p, t in zip(NAMES, probs, thresholds, strict=True) if p > t]
        assert row["decision"].split("|") == (labels or [""])
    image = rows[3]["path"]
    invoke("export", "run", "--head", "small5", "--tta", 2, "--output", "views")
    assert f"{image}: " in invoke("predict", "views", image)
    data = ["digits", "--labels", "labels.csv", "--label-column", "labels", "--multi-label"]
    text = invoke("evaluate", "run", *data, "--cache", "cache")
    n_test = (pd.read_csv("runs/run/folds.csv", dtype=str)["fold"] == "test").sum()
    assert text.startswith(
        f"{n_test} images; {150 - n_test} that the model was fitted or chosen on"
    )
    table = pd.read_csv("evaluated/digits/predictions.csv", dtype=str, keep_default_na=False)
    decision = {row["path"].removeprefix("digits/"): row["decision"] for row in rows}
    assert table["decision"].tolist() == [decision[path] for path in table["path"]]


def test_the_report_counts_what_each_model_decided_on(browser, folder, tmp_path):
    invoke("report", "run", "--saliency", 0)
    run_data = gather(Run("runs/run"))
    model, truth = run_data.models[0], run_data.labels[run_data.models[0].rows]
    titles, counts, colours, sideways = asked(
        browser, folder / "runs/run/report.html", tmp_path, COUNTS, 400
    )
    assert titles == [model.title for model in run_data.models]
    expected = [
        [
            (has & decided).sum(),
            (~has & decided).sum(),
            (has & ~decided).sum(),
            (~has & ~decided).sum(),
        ]
        for has, decided in zip(truth.T, model.decisions.T, strict=True)
    ]
    assert counts == [int(n) for row in expected for n in row]
    assert colours == [*NAMES, "correct or wrong"]
    assert sideways <= 0
    assert all(len(model.thresholds) == len(NAMES) for model in run_data.models)
    doubtful = pd.read_csv("runs/run/label_errors.csv", dtype=str, keep_default_na=False)
    for _, row in doubtful.iterrows():
        verb, name = row["suggested"].split(" ", 1)
        assert (name in row["label"].split("|")) == (verb == "remove")
