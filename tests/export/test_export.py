from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.cli import main
from hubretrain.evaluation import DecisionRule
from hubretrain.export.manifest import Export
from hubretrain.export.predict import predict_images
from hubretrain.heads.ensemble import Ensemble
from hubretrain.heads.heads import ModuleHeads
from hubretrain.report.run_data import gather
from hubretrain.report.saliency.explain import explain_images
from hubretrain.runs import LEADERBOARD, TEST_PREDICTIONS, Run
from tests.samples import at_temperature, record_files, write_digits, write_pooled


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
        (place / "data" / "digits" / "2").rename(place / "data" / "digits" / "NA")
        modules = [write_pooled(place / f"m{k}", size=8 + 4 * k, seed=k) for k in range(2)]
        invoke("cache", *(x for one in modules for x in ("-m", one)), "--views", 1)
        invoke("fit", "--metric", "balanced_accuracy", "--heads", "softmax,logistic")
    return place


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


def said(export, paths):
    names = Export.open(export).class_names
    found = [dict(one.classes) for one in predict_images(export, paths, 3)]
    return np.array([[one[name] for name in names] for one in found])


def of_cached(head, module, sha256s):
    """The head's probabilities of the features in the cache."""
    with Bottlenecks(f"cache/digits/{module}.h5") as bottlenecks:
        return head.probabilities(bottlenecks.rows(list(sha256s), layers=head.layers))


def test_predict_exports_the_fitted_head_of_a_run_once_and_says_what_the_head_says(place):
    run = Run(place / "runs" / "digits")
    module = run.fit.shortlist[0]
    folds = pd.read_csv(run.folds_file).head(20)
    paths = [f"data/digits/{path}" for path in folds["path"]]
    shutil.rmtree(run.export_folder, ignore_errors=True)
    ran = invoke("predict", "runs/digits", *paths, "--json")
    assert ran.stderr == "hubretrain: exporting the fitted head of runs/digits, once\n"
    again = invoke("predict", "runs/digits", *paths, "--json")
    assert again.stderr == ""
    assert again.stdout == ran.stdout
    facts = Export.open(run.folder).manifest
    assert (facts["module"], facts["fine_tuned"]) == (module, False)
    head = ModuleHeads.load(run.heads_file(module)).deployed
    plain = of_cached(head, module, folds["sha256"])
    expected = at_temperature(plain, facts["temperature"])
    assert np.abs(said(run.folder, paths) - expected).max() < 1e-3
    decided = Export.open(run.folder).decisions(expected)
    rows = json.loads(ran.stdout)
    assert [row["decision"] for row in rows] == [facts["class_names"][c] for c in decided]


def test_the_temperature_is_of_the_kept_heads_own_out_of_fold_probabilities(place):
    ran = invoke("export", "runs/digits", "--head", "m1")
    manifest = Export.open(place / "runs/digits/exports/m1").manifest
    row = LEADERBOARD.read(place / "runs/digits").set_index("module").loc["m1"]
    assert manifest["temperature"] == pytest.approx(row["temperature"])
    calibration = manifest["calibration"]
    assert calibration["log_loss_after"] == pytest.approx(row["calibrated_log_loss"], abs=1e-4)
    before, after = (calibration[f"log_loss_{when}"] for when in ("before", "after"))
    assert (
        f"temperature {row['temperature']:.2f} (log loss out of fold {before:.3f} before it, "
        f"{after:.3f} after):" in ran.stdout
    )


def test_the_model_card_of_a_head_has_its_row_of_the_leaderboard(place):
    invoke("export", "runs/digits", "--head", "m1")
    run = Run(place / "runs/digits")
    manifest = Export.open(run.folder / "exports/m1").manifest
    row = LEADERBOARD.read(run.folder).set_index("module").loc["m1"]
    expected = [row["accuracy"], row["accuracy_low"], row["accuracy_high"]]
    assert manifest["cross_validation"]["accuracy"] == pytest.approx(expected)
    assert manifest["folds_sha256"] == run.fit.files["folds.csv"]
    assert ("test" in manifest) == (row["test_accuracy"] == row["test_accuracy"])
    card = (run.folder / "exports/m1/README.md").read_text()
    assert "| accuracy |" in card
    assert "{:.3f} ({:.3f} to {:.3f})".format(*expected) in card
    assert "on features of m1." in card


def test_tables_report_and_explanations_have_the_probabilities_that_predict_gives(place, tmp_path):
    run = Run(place / "runs" / "digits")
    invoke("export", "runs/digits")
    module = run.fit.shortlist[0]
    table = TEST_PREDICTIONS.read(run.folder)
    table = table[table["module"] == module]
    paths = [f"data/digits/{path}" for path in table["path"]]
    predicted = said(run.folder, paths)
    head = ModuleHeads.load(run.heads_file(module)).deployed
    in_table = table[[f"p({name})" for name in run.fit.class_names]].to_numpy()
    np.testing.assert_allclose(in_table, predicted, atol=1e-3)
    plain = at_temperature(in_table, 1 / head.calibration.temperature)
    assert np.abs(plain - in_table).max() > 2e-3  # so that a temperature's lack would show
    of_report = [model for model in gather(run).models if model.module == module]
    (on_test,) = (model for model in of_report if model.part == "test split")
    np.testing.assert_array_equal(on_test.probabilities, in_table)
    rule = DecisionRule(on_test.adjust, head.rule.priors)
    np.testing.assert_array_equal(rule.decide(in_table), on_test.decisions)
    image = [place / paths[0]]
    (explained,) = explain_images(run.folder, image, tmp_path, methods=["smoothgrad"])
    assert explained.probability == pytest.approx(predicted[0].max(), abs=1e-3)


def test_the_ensemble_is_one_export_of_several_sizes(place):
    ran = invoke("export", "runs/digits", "--ensemble", "--output", "together")
    assert "ensemble (fitted head), temperature " in ran.stdout
    assert "Next: hubretrain predict together IMAGE" in ran.stdout
    run = Run(place / "runs" / "digits")
    folds = pd.read_csv(run.folds_file).head(12)
    ensemble = Ensemble.load(run.ensemble_file)
    members = {
        name: of_cached(
            ModuleHeads.load(run.heads_file(name)).ensemble_member, name, folds["sha256"]
        )
        for name in ensemble.weights
    }
    plain = ensemble.mean(members)
    exported = Export.open(place / "together")
    expected = at_temperature(plain, exported.manifest["temperature"])
    paths = [f"data/digits/{path}" for path in folds["path"]]
    assert np.abs(said("together", paths) - expected).max() < 1e-3
    sizes = {"m0": 8, "m1": 12}
    assert exported.sizes == tuple(sorted(sizes[name] for name in ensemble.weights))
    assert exported.has("litert")


def test_an_ensemble_is_explained_as_a_whole_from_pixels_of_its_largest_size(place, tmp_path):
    from hubretrain.data.images.decoding import decode, to_unit, view
    from hubretrain.export.runtimes import open_runtime
    from hubretrain.report.saliency.gradients import integrated_gradients
    from hubretrain.report.saliency.model import open_explained
    from hubretrain.tensorflow import tf

    invoke("export", "runs/digits", "--ensemble")
    export = place / "runs" / "digits" / "exports" / "ensemble"
    image = sorted(place.glob("data/digits/*/*.png"))[0]
    ran = invoke("explain", export, image, "--out", tmp_path)
    exported = Export.open(export)
    large = to_unit(view(decode(image.read_bytes()), max(exported.sizes))[np.newaxis])
    pixels = {s: tf.image.resize(large, (s, s), antialias=True).numpy() for s in exported.sizes}
    expected = open_runtime(exported)({**pixels, max(exported.sizes): large})[0]
    name, share = ran.stdout.split(": ")[1].split(",")[0].rsplit(" ", 1)
    assert name == exported.class_names[int(expected.argmax())]
    assert float(share.rstrip("%")) / 100 == pytest.approx(expected.max(), abs=0.001)
    assert not list(tmp_path.glob("*gradcam*"))  # that of one member would explain that member
    assert list(tmp_path.glob("*integrated*"))
    assert list(tmp_path.glob("*smoothgrad*"))
    explained = open_explained(export)
    model, c = explained.model, explained.class_names.index(name)
    assert model.size == max(Export.open(export).sizes)
    pixels = view(decode(image.read_bytes()), model.size).astype(np.float32) / 255
    added = integrated_gradients(model, pixels, c, n_steps=256).sum()
    score = model.derive(np.stack([pixels, 0 * pixels]), np.array([c, c]))["score"]
    assert added == pytest.approx(score[0] - score[1], rel=0.02, abs=1e-3)  # all of it is told


def test_an_export_takes_the_place_of_nothing_but_an_export(place, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years")
    (tmp_path / "note").write_text("x")
    for other in (tmp_path / "thesis", tmp_path / "note", "runs/digits"):
        ran = invoke("export", "runs/digits", "--head", "m0", "--output", other, code=1)
        told = f"hubretrain: {other} exists and is no export; move it away, or choose another "
        assert ran.stderr.startswith(told)
        assert ran.stderr.count("\n") == 1
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        invoke("export", "runs/digits", "--head", "m0", "--output", tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "note", "thesis"]


@pytest.fixture
def run(place, tmp_path):
    """A run of its own, to be changed."""
    names = ("run.json", "heads", "out_of_fold.csv", "ensemble.json")
    for name in names:
        source, copy = place / "runs" / "digits" / name, tmp_path / "mine" / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    return Run(tmp_path / "mine")


def fine_tuned(run, class_names):
    """Leaves the export that fine-tuning leaves, of a model that no head is."""
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules import restore_module
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier

    backbone = Backbone(restore_module("m0", run.fit.module("m0")))
    weight = np.zeros((20, 3), "f4")
    classifier = Classifier(backbone, "softmax", weight, np.log(np.array([0.5, 0.3, 0.2], "f4")))
    facts = {"run": run.name, "fine_tuned": True}
    write_export([Member(classifier)], class_names, run.export_folder, facts)


def test_what_was_fine_tuned_is_what_is_exported_elsewhere_in_more_formats(place, run, tmp_path):
    pytest.importorskip("tf2onnx")
    names = run.fit.class_names
    fine_tuned(run, names)
    ran = invoke("export", run.folder, "--output", tmp_path / "out", "--format", "onnx")
    assert "m0 (fine-tuned), temperature 1.00:" in ran.stdout
    image = sorted(place.glob("data/digits/*/*.png"))[0]
    for form in ("litert", "onnx", "savedmodel"):
        (found,) = predict_images(tmp_path / "out", [image], format=form)
        assert [p for _, p in found.classes] == pytest.approx([0.5, 0.3, 0.2], abs=1e-5)
    assert not Export.open(run.folder).has("onnx")


def test_a_fit_makes_the_export_of_a_head_anew_and_leaves_what_was_fine_tuned(place, run):
    image = sorted(place.glob("data/digits/*/*.png"))[0]
    once = f"hubretrain: exporting the fitted head of {run.folder}, once\n"
    before = invoke("predict", run.folder, image, "--json")
    assert before.stderr == once
    module = run.fit.shortlist[0]
    heads = ModuleHeads.load(run.heads_file(module))
    heads.deployed.bias[:] += [0, 0, 50]
    heads.save(run.heads_file(module), {})
    record_files(run)
    after = invoke("predict", run.folder, image, "--json")
    assert after.stderr == once
    assert json.loads(after.stdout)[0]["classes"]["NA"] > 0.9
    run.write_fit(replace(run.fit, shortlist=({"m0": "m1", "m1": "m0"}[module],)))
    assert invoke("predict", run.folder, image).stderr == once
    assert invoke("predict", run.folder, image).stderr == ""
    assert Export.open(run.folder).manifest["module"] != module
    shutil.rmtree(run.folder / "heads")  # a copy of the export goes on without them
    assert invoke("predict", run.folder, image).stderr == ""
    fine_tuned(run, run.fit.class_names)
    assert invoke("predict", run.folder, image).stderr == ""
    fine_tuned(run, ["0", "1", "x"])
    sentence = "was fine-tuned on the classes 0, 1, x, the fit has 0, 1, NA; fine-tune again, or"
    for command in (["predict", run.folder, image], ["export", run.folder]):
        assert sentence in invoke(*command, code=1).stderr


def probs_of(folder, image):
    (found,) = predict_images(folder, [image])
    return dict(found.classes)


def test_an_export_that_averages_over_views_answers_as_predict_does_with_that_many(place, run):
    image = sorted(place.glob("data/digits/*/*.png"))[0]
    for names in (["--ensemble"], ["--head", "m1"]):
        folder = run.folder / "exports" / names[-1].strip("-")
        invoke("export", run.folder, *names)
        (outside,) = predict_images(folder, [image], tta=4)
        ran = invoke("export", run.folder, *names, "--tta", 4)
        assert (
            "  averages over 4 views: image; horizontal flip; centred crop of 75 %; centred crop "
            "of 75 %, horizontal flip\n"
        ) in ran.stdout
        inside = probs_of(folder, image)
        assert inside == pytest.approx(dict(outside.classes), abs=1e-4)
    invoke("export", run.folder, *names)  # made anew, it averages over as many
    assert probs_of(folder, image) == pytest.approx(inside, abs=1e-6)
    ran = invoke("predict", folder, image, "--tta", 2, code=1)
    assert ran.stderr == (
        f"hubretrain: --tta is 2, but {folder} averages over its 4 views itself; leave it "
        "out, or run `hubretrain export` with another number.\n"
    )
    invoke("export", run.folder, *names, "--tta", 1)
    assert probs_of(folder, image) != pytest.approx(inside, abs=1e-4)
    ran = invoke("export", run.folder, "--tta", 9, code=2)
    assert "9 is not in the range 1<=x<=8" in ran.stderr


def test_what_was_fine_tuned_is_averaged_over_views_without_the_module(place, run, tmp_path):
    fine_tuned(run, run.fit.class_names)
    plain = (run.export_folder / "model.tflite").read_bytes()
    ran = invoke("export", run.folder, "--output", tmp_path / "out", "--tta", 2)
    assert "m0 (fine-tuned), temperature 1.00:" in ran.stdout
    assert Export.open(tmp_path / "out").manifest["tta"] == ["image", "horizontal flip"]
    assert (run.export_folder / "model.tflite").read_bytes() == plain
    invoke("export", run.folder, "--tta", 3)
    assert Export.open(run.folder).n_views == 3
    invoke("export", run.folder, "--format", "litert")
    assert Export.open(run.folder).n_views == 3
    image = sorted(place.glob("data/digits/*/*.png"))[0]
    assert list(probs_of(run.folder, image).values()) == pytest.approx([0.5, 0.3, 0.2], abs=1e-5)


def test_serve_exports_the_fitted_head_of_a_run_as_predict_does(run):
    pytest.importorskip("fastapi")
    ran = invoke("serve", run.folder, "--host", "a..b", code=1)
    assert ran.stderr.startswith(f"hubretrain: exporting the fitted head of {run.folder}, once\n")
    assert "cannot listen on" in ran.stderr
    assert Export.open(run.folder).has("litert")


def test_an_export_again_keeps_the_formats_that_are_there(place, run):
    pytest.importorskip("tf2onnx")
    folder = run.folder / "exports" / "m0"
    invoke("export", run.folder, "--head", "m0", "--format", "onnx")
    invoke("export", run.folder, "--head", "m0")
    assert Export.open(folder).content("onnx") == (folder / "model.onnx").read_bytes()


def test_foreseen_errors_are_one_sentence(place):
    ran = invoke("export", "runs/none", code=1)
    assert "runs/none does not exist; expected a run" in ran.stderr
    ran = invoke("export", "runs/digits", "--head", "m7", code=1)
    assert "m7 was not fitted in this run (there are: m0, m1)" in ran.stderr
    assert ran.stderr.count("\n") == 1
    ran = invoke("export", "runs/digits", "--head", "m0", "--ensemble", code=2)
    assert "two different exports; ask for one" in ran.stderr
    (place / "file").write_text("")
    ran = invoke("export", "runs/digits", "--head", "m0", "--output", "file/x", code=1)
    assert "file/x/ cannot be written" in ran.stderr
