from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import write_digits, write_pooled

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.cli import main
from hubretrain.ensemble import Ensemble
from hubretrain.exported import Exported
from hubretrain.heads import Heads
from hubretrain.metrics import METRICS
from hubretrain.predict import predict_images
from hubretrain.runs import Run
from hubretrain.temperature import calibrated


def invoke(*arguments, code=0):
    ran = CliRunner().invoke(main, [str(a) for a in arguments])
    assert ran.exit_code == code, ran.output
    assert "Traceback" not in ran.output
    return ran


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of two modules, fitted and not fine-tuned."""
    place = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HUBRETRAIN_STORE", str(tmp_path_factory.getbasetemp() / "module_store"))
        write_digits(place / "data" / "digits", 150)
        modules = [write_pooled(place / f"m{k}", size=8 + 4 * k, seed=k) for k in range(2)]
        invoke("cache", *(x for one in modules for x in ("-m", one)), "--views", 1)
        invoke("fit", "--metric", "balanced_accuracy")
    return place


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


def said(export, paths):
    names = Exported.open(export).class_names
    found = [dict(one.classes) for one in predict_images(export, paths, 3)]
    return np.array([[one[name] for name in names] for one in found])


def cached(module, sha256s):
    with Bottlenecks(f"cache/digits/{module}.h5") as bottlenecks:
        return bottlenecks.rows(list(sha256s))


def test_predict_exports_the_fitted_head_of_a_run_once_and_says_what_the_head_says(place):
    run = Run(place / "runs" / "digits")
    module = run.facts()["fit"]["shortlist"][0]
    folds = pd.read_csv(run.folds_file).head(20)
    paths = [f"data/digits/{path}" for path in folds["path"]]
    ran = invoke("predict", "runs/digits", *paths, "--json")
    assert ran.stderr == "hubretrain: exporting the fitted head of runs/digits, once\n"
    again = invoke("predict", "runs/digits", *paths, "--json")
    assert again.stderr == ""
    assert again.stdout == ran.stdout
    facts = Exported.open(run.folder).facts
    assert (facts["module"], facts["fine_tuned"]) == (module, False)
    heads = Heads.load(run.heads_file(module))
    plain = heads.select([0]).probabilities(cached(module, folds["sha256"]))[:, 0]
    expected = calibrated(plain, facts["temperature"])
    assert np.abs(said(run.folder, paths) - expected).max() < 1e-3
    decided = Exported.open(run.folder).decisions(expected)
    rows = json.loads(ran.stdout)
    assert [row["decision"] for row in rows] == [facts["class_names"][c] for c in decided]


def test_the_temperature_lowers_the_log_loss_of_images_that_no_head_saw(place):
    invoke("export", "runs/digits", "--head", "m1")
    facts = Exported.open(place / "runs/digits/exports/m1").facts
    table = pd.read_csv("runs/digits/out_of_fold.csv", dtype={"label": str})
    table = table[table["module"] == "m1"]
    plain = table[[f"p({name})" for name in facts["class_names"]]].to_numpy()
    plain = plain / plain.sum(axis=1, keepdims=True)
    labels = table["label"].map(facts["class_names"].index).to_numpy()
    loss = METRICS["log_loss"].function
    best = loss(calibrated(plain, facts["temperature"]), labels, None)
    for other in (1.0, facts["temperature"] * 1.05, facts["temperature"] / 1.05):
        assert best <= loss(calibrated(plain, other), labels, None)


def test_the_ensemble_is_one_export_of_several_sizes(place):
    ran = invoke("export", "runs/digits", "--ensemble", "--output", "together")
    assert "ensemble (fitted head), temperature " in ran.stdout
    assert "Next: hubretrain predict together IMAGE" in ran.stdout
    run = Run(place / "runs" / "digits")
    folds = pd.read_csv(run.folds_file).head(12)
    ensemble = Ensemble.load(run.ensemble_file)
    features = {name: cached(name, folds["sha256"]) for name in ensemble.weights}
    plain = ensemble.probabilities(run, features)
    exported = Exported.open(place / "together")
    expected = calibrated(plain, exported.facts["temperature"])
    paths = [f"data/digits/{path}" for path in folds["path"]]
    assert np.abs(said("together", paths) - expected).max() < 1e-3
    sizes = {"m0": 8, "m1": 12}
    assert exported.sizes == tuple(sorted(sizes[name] for name in ensemble.weights))
    assert exported.has("litert")


def test_an_ensemble_is_explained_as_a_whole_from_pixels_of_its_largest_size(place, tmp_path):
    from hubretrain.images import decode, view
    from hubretrain.report.explained import open_explained
    from hubretrain.report.saliency import integrated_gradients

    invoke("export", "runs/digits", "--ensemble")
    export = place / "runs" / "digits" / "exports" / "ensemble"
    image = sorted(place.glob("data/digits/*/*.png"))[0]
    ran = invoke("explain", export, image, "--out", tmp_path)
    (said,) = [dict(one.classes) for one in predict_images(export, [image], 3)]
    name, share = ran.stdout.split(": ")[1].split(",")[0].rsplit(" ", 1)
    assert name == max(said, key=said.get)
    assert float(share.rstrip("%")) / 100 == pytest.approx(said[name], abs=0.01)
    assert not list(tmp_path.glob("*gradcam*"))  # that of one member would explain that member
    assert list(tmp_path.glob("*integrated*"))
    assert list(tmp_path.glob("*smoothgrad*"))
    explained = open_explained(export)
    model, c = explained.model, explained.class_names.index(name)
    assert model.size == max(Exported.open(export).sizes)
    pixels = view(decode(image.read_bytes()), model.size).astype(np.float32) / 255
    added = integrated_gradients(model, pixels, c, n_steps=256).sum()
    score = model.derive(np.stack([pixels, 0 * pixels]), np.array([c, c]))["score"]
    assert added == pytest.approx(score[0] - score[1], rel=0.02, abs=1e-3)  # all of it is told


def test_foreseen_errors_are_one_sentence(place):
    ran = invoke("export", "runs/none", code=1)
    assert "holds no finished fit; run first: hubretrain fit" in ran.stderr
    ran = invoke("export", "runs/digits", "--head", "m7", code=1)
    assert "m7 was not fitted in this run (there are: m0, m1)" in ran.stderr
    assert ran.stderr.count("\n") == 1
    ran = invoke("export", "runs/digits", "--head", "m0", "--ensemble", code=2)
    assert "two different exports; ask for one" in ran.stderr
    (place / "file").write_text("")
    ran = invoke("export", "runs/digits", "--head", "m0", "--output", "file/x", code=1)
    assert "file/x/ cannot be written" in ran.stderr
