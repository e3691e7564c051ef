"""The fit stage on real digits: what is compared, kept, refused, and said."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, log_loss
from threadpoolctl import threadpool_limits

from hubretrain.bottlenecks import BottleneckWriter, RowIndex
from hubretrain.bottlenecks.costs import ForwardPassLog
from hubretrain.cli.fit import print_leaderboard
from hubretrain.data.dataset import open_dataset
from hubretrain.data.options import SplitOptions, TableOptions
from hubretrain.data.splitting.folds import TEST, read_folds
from hubretrain.errors import CacheError, HeadError, RunError
from hubretrain.export import run_entries
from hubretrain.heads.ensemble import Ensemble
from hubretrain.heads.heads import ModuleHeads
from hubretrain.runs import CANDIDATES, LEADERBOARD, OUT_OF_FOLD, PER_CLASS, TEST_PREDICTIONS, Run
from hubretrain.screening import ScreenOptions
from hubretrain.screening.fit import screen_modules
from hubretrain.screening.options import L2 as L2_DEFAULT
from tests.bottlenecks.samples import edited
from tests.samples import PATIENCE, at_temperature, write_digits

L2 = (1.0, 10.0, 100.0)
LINEAR = ("softmax", "logistic")


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are fastest on one thread, above all while others use the machine."""
    with threadpool_limits(1):
        yield


def pixels_of(data, path, view):
    """An image's pixels, shifted by a column in view 1: features as real as any."""
    pixels = np.asarray(Image.open(data / path).convert("L"), dtype=np.float32) / 255
    return np.roll(pixels, view, axis=1)


def write_cache(data, cache, module="pixels", *, columns=slice(None), n_views=1, facts=(), of=None):
    """A finished bottleneck file; `of` gives the views of each image, `n_views` of all."""
    dataset = open_dataset(data)
    paths = dataset.images["path"].tolist()
    digest = {path: hashlib.sha256((data / path).read_bytes()).hexdigest() for path in paths}
    first = {sha256: path for path, sha256 in reversed(digest.items())}
    views_of = np.array([(of or {}).get(path, n_views) for path in first.values()], np.int16)
    rows = RowIndex(tuple(first.values()), tuple(first), views_of)
    known = {"module": module, "handle": module, "module_sha256": module, "image_size": 8}
    known |= {"value_range": "[0.0, 1.0]", **dict(facts)}
    features = {
        v: np.stack([pixels_of(data, p, v)[:, columns].ravel() for p in first.values()])
        for v in range(int(views_of.max()))
    }
    path = cache / dataset.name / f"{module}.h5"
    with BottleneckWriter(path, rows, features[0].shape[1], known) as writer:
        for v, values in features.items():
            here = np.flatnonzero(views_of > v)
            writer.write(np.full(len(here), v), here, values[here])
        writer.seal()
    return path


@pytest.fixture
def place(tmp_path):
    """Digits of three unbalanced classes, and their pixels as a cache."""
    data = write_digits(tmp_path / "digits", 300)
    for name, kept in (("1", 45), ("2", 25)):
        for image in sorted((data / name).iterdir())[kept:]:
            image.unlink()
    write_cache(data, tmp_path / "cache")
    return tmp_path


def fit(place, run="run", *, cache=None, modules=(), **options):
    # Networks take most of the time, so they are for the tests of them.
    options = ScreenOptions(**{"l2": L2, "heads": LINEAR, **options})
    return screen_modules(
        open_dataset(place / "digits"),
        Run(place / run),
        options,
        cache=cache or place / "cache",
        modules=modules,
    )


def rows_of(found, kind):
    return found.leaderboard[found.leaderboard["kind"] == kind]


def test_the_leaderboard_has_modules_ensemble_and_references_with_intervals(place):
    write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    found = fit(place)
    assert found.metric == "balanced_accuracy"  # the classes are unbalanced
    board = found.leaderboard
    assert rows_of(found, "module")["module"].tolist() == ["pixels", "left_half"]
    assert len(rows_of(found, "ensemble")) == 1
    references = rows_of(found, "reference").set_index("module")
    assert references.loc["majority class", "balanced_accuracy"] == pytest.approx(1 / 3)
    assert references.loc["1-nearest-neighbour of pixels", "accuracy"] > 0.9
    names = ["balanced_accuracy", "accuracy", "top_3", "macro_f1", "roc_auc"]
    names += ["mean_average_precision", "log_loss", "calibration_error", "unadjusted_accuracy"]
    ranked = board[board["rank"].notna()]
    for name in names:
        assert (ranked[f"{name}_low"] <= ranked[name]).all()
        assert (ranked[name] <= ranked[f"{name}_high"]).all()
    assert ranked["rank"].tolist() == [1, 2, 3]
    assert ranked["balanced_accuracy"].is_monotonic_decreasing
    assert {"log_me", "h_score", "seconds_to_fit", "n_features"} <= set(board)


def test_what_is_written_agrees_with_what_is_said(place):
    write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    found = fit(place)
    run = found.run
    table = OUT_OF_FOLD.read(run.folder)
    assert set(table["module"]) == {"pixels", "left_half", "ensemble"}
    one = table[table["module"] == "pixels"]
    recall = balanced_accuracy_score(one["label"], one["decision"])
    row = found.leaderboard.set_index("module").loc["pixels"]
    assert row["balanced_accuracy"] == pytest.approx(recall)
    assert row["accuracy"] == pytest.approx((one["label"] == one["decision"]).mean())
    probs = one[["p(0)", "p(1)", "p(2)"]].to_numpy()
    loss = log_loss(one["label"], probs / probs.sum(axis=1, keepdims=True))
    assert row["calibrated_log_loss"] == pytest.approx(loss, abs=1e-4)  # six decimals
    classes = PER_CLASS.read(run.folder)
    of_class = classes[classes["module"] == "pixels"].set_index("class")
    assert of_class["recall"].mean() == pytest.approx(recall)
    assert (of_class["recall_low"] <= of_class["recall"]).all()
    assert of_class["n_images"].sum() == len(one)
    heads = CANDIDATES.read(run.folder)
    of_pixels = heads[heads["module"] == "pixels"].drop(columns=["module", "passes", "converged"])
    # Kinds, weights and rules with some l2 each: a path may end before the last of them.
    assert of_pixels.groupby(["head", "class_weight", "adjust"]).ngroups == 2 * 2 * 7
    assert 2 * 2 * 7 * 2 <= len(of_pixels) <= 2 * 2 * 7 * len(L2)
    assert set(heads["head"]) == {"softmax", "logistic"}
    uncorrected = row["balanced_accuracy_uncorrected"]
    assert of_pixels["balanced_accuracy"].max() == pytest.approx(uncorrected)
    fit_record = run.fit
    assert fit_record.shortlist[0] in {"pixels", "left_half"}
    assert len(fit_record.test_looked_at) == 1


def test_the_kept_head_and_the_ensemble_say_of_the_cache_what_they_are_worth(place):
    write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    found = fit(place)
    data, run = place / "digits", found.run
    folds = read_folds(run.folds_file)
    test = folds[folds["fold"] == TEST]
    pixels = np.stack([pixels_of(data, path, 0) for path in test["path"]])
    heads = {name: ModuleHeads.load(run.heads_file(name)) for name in ("pixels", "left_half")}
    said = heads["pixels"].deployed.probabilities(pixels.reshape(len(test), -1))
    right = said.argmax(axis=1) == test["label"].astype(int).to_numpy()
    row = found.leaderboard.set_index("module").loc["pixels"]
    assert row["test_unadjusted_accuracy"] == pytest.approx(right.mean())
    features = {"pixels": pixels.reshape(len(test), -1)}
    features["left_half"] = pixels[:, :, :4].reshape(len(test), -1)
    members = {
        name: module.ensemble_member.probabilities(features[name]) for name, module in heads.items()
    }
    together = Ensemble.load(run.ensemble_file).mean(members)
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-5)
    assert (together.argmax(axis=1) == test["label"].astype(int)).mean() > 0.9


def test_the_predictions_of_the_test_split_are_kept_of_shortlist_and_ensemble(place):
    write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    found = fit(place)
    run = found.run
    folds = read_folds(run.folds_file)
    test = folds[folds["fold"] == TEST]
    table = TEST_PREDICTIONS.read(run.folder)
    assert set(table["module"]) == {*run.fit.shortlist, "ensemble"}
    board = found.leaderboard[found.leaderboard["kind"] == "module"].set_index("module")
    for name in run.fit.shortlist:
        of_module = table[table["module"] == name]
        assert of_module["path"].tolist() == test["path"].tolist()
        assert of_module["label"].tolist() == test["label"].tolist()
        probs = of_module[["p(0)", "p(1)", "p(2)"]].to_numpy()
        np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)
        row = board.loc[name]
        recall = balanced_accuracy_score(of_module["label"], of_module["decision"])
        assert row["test_balanced_accuracy"] == pytest.approx(recall)
        decided = of_module["label"] == of_module["decision"]
        assert row["test_accuracy"] == pytest.approx(decided.mean())
        top_1 = probs.argmax(axis=1).astype(str) == of_module["label"]
        assert row["test_unadjusted_accuracy"] == pytest.approx(top_1.mean())
        # They are of the head that is exported, at its temperature, and of no other.
        width = slice(4) if name == "left_half" else slice(None)
        pixels = [pixels_of(place / "digits", path, 0)[:, width].ravel() for path in test["path"]]
        heads = ModuleHeads.load(run.heads_file(name))
        temperature = heads.deployed.calibration.temperature
        of_head, of_warm_start = (
            at_temperature(head.probabilities(np.stack(pixels)), temperature)
            for head in (heads.deployed, heads.warm_start)
        )
        np.testing.assert_allclose(probs, of_head, atol=1e-5)
        assert np.abs(probs - of_warm_start).max() > 1e-3
        rule = heads.deployed.rule.at_temperature(temperature)
        assert of_module["decision"].tolist() == rule.decide(probs).astype(str).tolist()


def test_modules_keep_their_names_costs_and_rows_whatever_they_are_called(place):
    shutil.rmtree(place / "cache")
    for name, columns in (("2024", slice(None)), ("None", slice(4))):
        file = write_cache(place / "digits", place / "cache", name, columns=columns)
        ForwardPassLog(file.parent).add(name, "tensorflow", "f32", 100, 1.0)
    run = fit(place).run
    assert set(run.fit.modules) == {"2024", "None"}
    board = LEADERBOARD.read(run.folder)
    modules = board[board["kind"] == "module"]
    assert set(modules["module"]) == {"2024", "None"}
    assert modules["ms_per_image"].tolist() == [10, 10]
    for table in (OUT_OF_FOLD, PER_CLASS):
        assert set(table.read(run.folder)["module"]) == {"2024", "None", "ensemble"}
    assert set(CANDIDATES.read(run.folder)["module"]) == {"2024", "None"}
    of_test = set(TEST_PREDICTIONS.read(run.folder)["module"])
    assert of_test == {*run.fit.shortlist, "ensemble"}


def test_an_ensemble_of_one_member_is_not_evaluated_on_the_test_split(place):
    write_cache(place / "digits", place / "cache", "blank", columns=slice(1))
    found = fit(place)
    ensemble, module = rows_of(found, "ensemble").iloc[0], rows_of(found, "module").iloc[0]
    assert ensemble["module"] == module["module"] == "pixels"
    assert module["test_accuracy"] > 0.8
    assert pd.isna(ensemble["test_accuracy"])


def test_other_images_in_the_test_split_change_its_figures_and_nothing_else(place):
    write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    first = fit(place)
    folds = read_folds(first.run.folds_file)
    is_test = dict(zip(folds["sha256"], folds["fold"] == TEST, strict=True))
    for path in (place / "cache" / "digits").glob("*.h5"):
        with edited(path) as file:
            rows = [is_test[sha256] for sha256 in file["images/sha256"][:].astype(str)]
            view = file["view_000"][:]
            view[rows] = np.random.default_rng(0).random(view[rows].shape)
            file["view_000"][:] = view
    second = fit(place, "other")
    pd.testing.assert_frame_equal(folds, read_folds(second.run.folds_file))
    boards = [found.leaderboard.set_index("module") for found in (first, second)]
    of_test = [c for c in boards[0] if c.startswith("test_")]
    apart = [c for c in boards[0] if c.startswith("seconds_")] + of_test
    pd.testing.assert_frame_equal(*(board.drop(columns=apart) for board in boards))
    tops = [board.loc[first.run.fit.shortlist[0], "test_accuracy"] for board in boards]
    assert tops[1] < tops[0] - 0.2
    assert first.run.fit.shortlist == second.run.fit.shortlist
    for name in ("pixels", "left_half"):
        heads = [ModuleHeads.load(of.run.heads_file(name)).deployed for of in (first, second)]
        assert heads[0].calibration == heads[1].calibration
        np.testing.assert_array_equal(heads[0].weight, heads[1].weight)
    ensembles = [Ensemble.load(of.run.ensemble_file) for of in (first, second)]
    assert ensembles[0] == ensembles[1]


def test_without_a_test_split_its_table_has_no_row(place):
    found = fit(place, split=SplitOptions(test_fraction=0.0))
    assert TEST_PREDICTIONS.read(found.run.folder).empty
    assert found.run.fit.test_looked_at == ()


def test_heads_that_another_version_wrote_are_fitted_anew(place):
    first = fit(place)
    first.run.heads_file("pixels").write_bytes(b"of another version")
    again = fit(place)
    columns = ["module", "balanced_accuracy", "l2", "adjust"]
    pd.testing.assert_frame_equal(first.leaderboard[columns], again.leaderboard[columns])
    ModuleHeads.load(again.run.heads_file("pixels"))


def test_fitting_again_fits_nothing_and_says_the_same(place):
    first = fit(place)
    before = first.run.heads_file("pixels").stat().st_mtime_ns
    again = fit(place)
    assert again.run.heads_file("pixels").stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(first.leaderboard, again.leaderboard)
    fit_record = again.run.fit
    assert len(fit_record.test_looked_at) == 1


def test_a_damaged_result_is_fitted_anew(place):
    first = fit(place)
    place_of = first.run.screened_file("pixels", "linear")
    place_of.write_bytes(place_of.read_bytes()[:1000])
    again = fit(place)
    columns = ["module", "balanced_accuracy", "l2", "adjust"]
    pd.testing.assert_frame_equal(first.leaderboard[columns], again.leaderboard[columns])


def test_damaged_features_are_refused_and_mending_them_gives_the_fit_before(place):
    """Zeros in half of a view, as a bad sector leaves them; also after a fit with sound ones."""
    path = place / "cache" / "digits" / "pixels.h5"
    whole, first = path.read_bytes(), fit(place, "sound")
    with h5py.File(path, "r+") as file:
        file["view_000"][:100] = 0
    for run in ("sound", "new"):
        with pytest.raises(CacheError, match=r"pixels\.h5: view_000: its bytes are not those that"):
            fit(place, run)
    path.write_bytes(whole)
    again = fit(place, "new")
    columns = ["module", "balanced_accuracy", "l2", "adjust"]
    pd.testing.assert_frame_equal(first.leaderboard[columns], again.leaderboard[columns])


def test_other_features_under_the_same_settings_are_fitted_anew(place):
    first = fit(place)
    with edited(place / "cache" / "digits" / "pixels.h5") as file:
        file["view_000"][:, :32] = 0
    assert fit(place).leaderboard["log_loss"][0] != first.leaderboard["log_loss"][0]


def test_a_bottleneck_file_of_another_module_is_refused(place):
    other = write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    shutil.copy(other, other.with_name("pixels.h5"))
    with pytest.raises(
        CacheError, match=r"pixels\.h5 holds bottlenecks of left_half, not of pixels"
    ):
        fit(place)


@pytest.mark.parametrize("first", [100, 600, 3000, 9000, 20000])
def test_a_result_with_one_other_bit_is_fitted_anew(place, first):
    before = fit(place)
    path = before.run.screened_file("pixels", "linear")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[first] ^= 1
    path.write_bytes(damaged)
    again = fit(place)
    assert path.read_bytes() != damaged
    columns = ["module", "balanced_accuracy", "log_loss", "l2", "adjust"]
    pd.testing.assert_frame_equal(before.leaderboard[columns], again.leaderboard[columns])


def test_what_is_wrong_with_the_second_module_is_found_before_the_first_is_fitted(place):
    file = write_cache(place / "digits", place / "cache", "second", n_views=2)
    whole, run = file.read_bytes(), Run(place / "run")
    with edited(file, stopped=True) as opened:
        opened["view_000"][7] = np.nan
    with pytest.raises(CacheError, match=r"second\.h5: view 0 is not finished"):
        fit(place)
    damaged = bytearray(whole)
    damaged[-100] ^= 1  # in the last view, which is the last that is read
    file.write_bytes(damaged)
    with pytest.raises(CacheError, match=r"second\.h5: view_001: its bytes are not those that we"):
        fit(place)
    kept = run.screened_file("pixels", "linear")
    assert not kept.exists()
    fit(place, modules=["pixels"])
    before = kept.stat().st_mtime_ns
    file.write_bytes(whole)
    found = fit(place)
    assert kept.stat().st_mtime_ns == before
    assert set(rows_of(found, "module")["module"]) == {"pixels", "second"}


def test_a_later_fit_adds_a_module_to_the_folds_and_modules_of_the_run(place):
    first = fit(place, modules=["pixels"])
    folds = first.run.folds_file.read_bytes()
    before = first.run.heads_file("pixels").stat().st_mtime_ns
    write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    second = fit(place, modules=["left_half"])
    assert set(rows_of(second, "module")["module"]) == {"pixels", "left_half"}
    assert second.run.folds_file.read_bytes() == folds
    assert second.run.heads_file("pixels").stat().st_mtime_ns == before
    looks = second.run.fit.test_looked_at
    shortlists = [[first.run.fit.shortlist[0]], [*second.run.fit.shortlist]]
    expected = shortlists if shortlists[1] != shortlists[0] else shortlists[:1]
    assert [list(look) for look in looks] == expected


def test_every_different_look_at_the_test_split_is_counted(place):
    run = fit(place).run
    assert run.looks_at_test() == ""
    for options, n_looks in (
        ({}, 1),
        ({"metric": "log_loss"}, 2),
        ({"class_weights": ("balanced",)}, 3),
        ({}, 3),
    ):
        assert len(fit(place, **options).run.fit.test_looked_at) == n_looks
    assert "was looked at 3 times (fit 3, finetune 0)" in run.looks_at_test()


def test_no_second_split_is_cut_once_a_model_was_fine_tuned(place):
    run = fit(place).run
    folder = run.finetune_folder("pixels")
    folder.mkdir(parents=True)
    (folder / "options.json").write_text("{}")
    fit(place)  # keeps its folds
    run.folds_file.unlink()
    with pytest.raises(
        RunError, match=r"holds fine-tunings \(pixels\), .* choose another `run` for"
    ):
        fit(place)
    assert not run.folds_file.exists()


def test_changed_labels_keep_their_folds_are_said_and_fitted_anew(place):
    first = fit(place)
    folds = read_folds(first.run.folds_file).set_index("sha256")["fold"]
    moved = sorted((place / "digits" / "0").iterdir())[:4]
    for image in moved:
        image.rename(place / "digits" / "1" / image.name)
    write_cache(place / "digits", place / "cache")
    second = fit(place)
    assert any(note.startswith("4 labels have changed") for note in second.notes)
    assert (
        read_folds(second.run.folds_file).set_index("sha256")["fold"].to_dict() == folds.to_dict()
    )
    assert (
        rows_of(second, "module")["log_loss"].iloc[0]
        != rows_of(first, "module")["log_loss"].iloc[0]
    )


def test_views_are_an_effect_and_images_may_have_different_numbers_of_them(place):
    rare = {f"2/{image.name}": 3 for image in (place / "digits" / "2").iterdir()}
    write_cache(place / "digits", place / "cache", n_views=2, of=rare)
    found = fit(place)
    sentences = found.effects.set_index("effect")["sentence"]
    assert "points (95 % " in sentences["augmented views"]
    assert "averaging over views when scoring" in sentences
    row = rows_of(found, "module").iloc[0]
    assert row["averaged_accuracy_low"] <= row["averaged_accuracy"] <= 1
    assert row["averaged_views"] == 2  # a new image is of no class that has a third
    heads = CANDIDATES.read(found.run.folder)
    assert set(heads["trained_on"]) == {"view 0", "all views"}
    alone = fit(place, "alone", views=False)
    assert "augmented views" not in set(alone.effects["effect"])
    assert set(CANDIDATES.read(alone.run.folder)["trained_on"]) == {"view 0"}


def test_weights_by_class_name_are_compared_named_and_kept(place):
    found = fit(place, class_weights=[{"2": 5.0}], adjust=[0])
    row = rows_of(found, "module").iloc[0]
    assert row["class_weight"] == "0: 1, 1: 1, 2: 5"
    assert row["adjust"] == 0
    heads = ModuleHeads.load(found.run.heads_file("pixels"))
    np.testing.assert_array_equal(heads.deployed.weight_of_class, [1, 1, 5])


def test_a_metric_of_probabilities_is_chosen_without_adjustment(place):
    found = fit(place, metric="log_loss")
    assert set(CANDIDATES.read(found.run.folder)["adjust"]) == {0.0}
    by_accuracy = fit(place, "accuracy", metric="accuracy")
    assert set(CANDIDATES.read(by_accuracy.run.folder)["adjust"]) == {0.0}
    assert not by_accuracy.effects["effect"].str.contains("adjustment").any()
    assert fit(place, "balanced").effects["effect"].str.contains("adjustment").any()


def test_a_random_twin_is_a_reference_and_its_module_is_compared_with_it(place):
    write_cache(place / "digits", place / "cache", "pixels_random", columns=slice(2))
    found = fit(place)
    assert rows_of(found, "module")["module"].tolist() == ["pixels"]
    twin = found.leaderboard.set_index("module").loc["pixels_random"]
    assert twin["kind"] == "reference"
    assert not twin["tied"]
    effect = found.effects.set_index("effect").loc["pretrained instead of random weights"]
    assert effect["low"] > 0


def test_the_best_by_estimate_leads_the_shortlist_and_what_the_cheapest_loses_is_said(place):
    facts = {"gflops": 1.5}
    write_cache(place / "digits", place / "cache", "dear", facts=facts)
    (place / "cache" / "digits" / "pixels.h5").unlink()
    facts = {"gflops": 0.25}
    write_cache(place / "digits", place / "cache", "cheap", columns=slice(6), facts=facts)
    found = fit(place)
    board = found.leaderboard.set_index("module")
    modules = board[board["kind"] == "module"]
    assert modules["tied"].all()
    assert modules["shortlist"].to_dict() == {"dear": 1, "cheap": 2}
    loss = 100 * (modules["balanced_accuracy"]["dear"] - modules["balanced_accuracy"]["cheap"])
    assert loss > 0
    (note,) = (note for note in found.notes if "tied" in note)
    said = re.fullmatch(
        r"2 modules are tied as the best at 95 % confidence; the cheapest of them, cheap \(0.25 "
        r"GFLOPs per image instead of 1.50\), loses (.*) points of balanced accuracy to dear by "
        r"estimate, and at most (.*) points with 97.5 % confidence.",
        note,
    )
    assert said
    assert float(said[1]) == pytest.approx(loss, abs=0.051)
    assert loss < float(said[2]) < 15
    assert found.run.fit.shortlist == ("dear", "cheap")
    assert fit(place, "one", top=1).run.fit.shortlist == ("dear",)


def test_what_the_cheapest_loses_of_a_metric_that_should_be_small_is_positive(place):
    data, cache = place / "digits", place / "other"
    write_cache(data, cache, "dear", columns=slice(6), facts={"gflops": 1.5})
    write_cache(data, cache, "cheap", facts={"gflops": 0.25})
    found = fit(place, cache=cache, metric="log_loss", heads=("softmax",))
    losses = rows_of(found, "module").set_index("module")["log_loss"]
    assert losses["cheap"] > losses["dear"]
    (note,) = (note for note in found.notes if "tied" in note)
    said = re.search(r"loses (.*) nats .* to dear by estimate, and at most (\S+) nats", note)
    assert float(said[1]) == pytest.approx(losses["cheap"] - losses["dear"], abs=0.00051)
    assert float(said[1]) < float(said[2]) < 0.2


def test_a_choice_at_an_end_of_the_penalties_is_told_and_the_default_ones_go_on(place):
    found = fit(place, l2=(1e5, 1e4))
    (note,) = (note for note in found.notes if "At an end" in note)
    assert "the head of pixels (l2 10000); `l2` compares others" in note
    rng = np.random.default_rng(0)
    for image in (place / "digits").glob("*/*.png"):  # what no module tells: the largest l2 is best
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(image)
    shutil.rmtree(place / "cache")
    write_cache(place / "digits", place / "cache")
    table = CANDIDATES.read(fit(place, "noise", l2=L2_DEFAULT, metric="log_loss").run.folder)
    assert table["l2"].max() > max(L2_DEFAULT)


def test_of_equal_modules_the_cheaper_comes_first(place):
    shutil.rmtree(place / "cache")
    for name, speed in (("slow", 10.0), ("fast", 1000.0)):
        facts = {"n_parameters": int(1e6)}
        file = write_cache(place / "digits", place / "cache", name, facts=facts)
        ForwardPassLog(file.parent).add(name, "tensorflow", "float32", 500, 500 / speed)
    found = fit(place)
    modules = rows_of(found, "module").set_index("module")
    assert modules["tied"].all()
    assert modules["shortlist"].to_dict() == {"fast": 1, "slow": 2}
    assert modules.loc["slow", "ms_per_image"] == pytest.approx(100)
    assert modules.loc["slow", "seconds_to_cache"] == pytest.approx(50)
    assert rows_of(found, "ensemble")["ms_per_image"].iloc[0] <= 101
    assert found.run.fit.shortlist == ("fast", "slow")
    (note,) = (note for note in found.notes if "tied" in note)
    assert note.endswith("; fast, the first, is also the cheapest (1.0 ms per image).")


def test_a_given_validation_split_is_the_one_fold(place):
    data = place / "digits"
    for split in ("train", "val", "test"):
        (data / split).mkdir()
    for folder in [data / c for c in "012"]:
        images = sorted(folder.iterdir())
        for i, image in enumerate(images):
            split = ("val", "test")[i % 5] if i % 5 < 2 else "train"
            target = data / split / folder.name
            target.mkdir(exist_ok=True)
            image.rename(target / image.name)
        folder.rmdir()
    write_cache(data, place / "cache")
    found = fit(place)
    table = OUT_OF_FOLD.read(found.run.folder)
    assert table["path"].str.startswith("val/").all()
    assert rows_of(found, "module")["balanced_accuracy"].iloc[0] > 0.9
    assert found.notes[0].endswith(f"validation split {len(table)}.")
    assert "each half of the validation split is evaluated by what the other" in " ".join(
        found.notes
    )
    figures = run_entries(found.run, "pixels")
    assert "cross_validation" not in figures
    assert figures["validation"]["accuracy"][0] > 0.9


def test_the_images_of_a_group_are_in_one_fold_or_all_in_the_test_split(place):
    in_tens = TableOptions(group_from=r"/(\d{3})\d\.png")
    dataset = open_dataset(place / "digits", table=in_tens)
    screen_modules(
        dataset, Run(place / "run"), ScreenOptions(l2=L2, heads=LINEAR), cache=place / "cache"
    )
    folds = read_folds(place / "run" / "folds.csv")
    ten = folds["path"].str.extract(in_tens.group_from)[0]
    ends = folds.groupby(ten)["fold"].agg(["min", "max"])
    assert (ends["min"] == ends["max"]).all()
    assert folds["fold"].nunique() == 6  # five folds and the test split
    assert folds.groupby(ten).size().max() > 5


def test_no_penalty_on_separable_classes_and_constant_features_end(place):
    data = place / "digits"
    found = fit(place, l2=[0.0])
    assert rows_of(found, "module")["accuracy"].iloc[0] > 0.9
    path = write_cache(data, place / "cache", "constant", columns=slice(1))
    with edited(path) as file:
        file["view_000"][:] = 3.0
    flat = fit(place, "flat", modules=["constant"], metric="accuracy")
    row = rows_of(flat, "module").iloc[0]
    counts = np.bincount([int(p.parent.name) for p in data.glob("*/*.png")])
    assert row["accuracy"] == pytest.approx(counts.max() / counts.sum(), abs=0.02)


def test_an_unfinished_cache_names_the_command_that_finishes_it(place):
    with edited(place / "cache" / "digits" / "pixels.h5", stopped=True) as file:
        file["view_000"][5:8] = np.nan
    with pytest.raises(
        CacheError, match=r"view 0 is not finished .* same `hubretrain cache` command"
    ):
        fit(place)


def test_a_cache_of_other_images_names_the_command_that_brings_it_up_to_date(place):
    write_digits(place / "digits", 40, classes=(3,))
    with pytest.raises(
        CacheError, match=r"has no row for an image .* run `hubretrain cache` again"
    ):
        fit(place)


def test_a_run_of_other_data_is_refused(place):
    fit(place)
    (place / "digits" / "2").rename(place / "digits" / "two")
    with pytest.raises(RunError, match="was fitted on the classes 0, 1, 2, the data set has 0, 1,"):
        fit(place)
    shutil.rmtree(place / "digits")
    write_digits(place / "digits", 90)
    for folder in (place / "digits").iterdir():
        for image in sorted(folder.iterdir()):
            other = image.with_name(f"other_{image.name}")
            Image.fromarray(255 - np.asarray(Image.open(image))).save(other)
            image.unlink()
    write_cache(place / "digits", place / "other")
    with pytest.raises(RunError, match="holds none of these images"):
        fit(place, cache=place / "other")


def test_a_module_that_is_not_cached_is_named_with_what_is(place):
    with pytest.raises(CacheError, match=r"lite9 is not cached in .* \(there are: pixels\)"):
        fit(place, modules=["lite9"])


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_table_fits_the_terminal(place, width):
    write_cache(place / "digits", place / "cache", "a_module_with_a_rather_long_name")
    found = fit(place)
    stream = io.StringIO()
    print_leaderboard(found.leaderboard, found.metric, Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert set(rows_of(found, "module")["head"]) <= {word for word in LINEAR if word in text}
    best = f"{100 * found.leaderboard['balanced_accuracy'][0]:.1f}"
    assert best in text
    assert "s to fit" not in text
    assert "top-3" not in text
    assert "Adjusted" not in text or "adjusted" in text.partition("Percent")[0] + text
    print_leaderboard(
        found.leaderboard, found.metric, Console(file=stream, width=width), costs=True
    )
    assert "s to fit" in stream.getvalue().replace("\n", " ") or width < 80
    assert max(map(len, stream.getvalue().splitlines())) <= width


def test_the_top_3_accuracy_of_three_classes_is_neither_shown_nor_chosen_by(place):
    found = fit(place)
    stream = io.StringIO()
    print_leaderboard(found.leaderboard, found.metric, Console(file=stream, width=160))
    assert "top-3 accuracy" not in stream.getvalue().partition("Percent")[0]
    assert "top-3 accuracy 100" not in stream.getvalue()
    with pytest.raises(HeadError, match="`metric` is top_3, which is 1 for any head of 3 classes"):
        fit(place, "other", metric="top_3")


def test_a_printed_row_is_of_one_model_the_decisions_by_its_rule():
    shares = {"balanced_accuracy": 0.511, "accuracy": 0.487, "unadjusted_accuracy": 0.731}
    row = {"module": "m", "kind": "module", "head": "softmax", "adjust": 1.0, "tied": True}
    row |= {"shortlist": 1, "averaged_views": 4, "top_3": 0.9}
    for prefix, less in (("", 0), ("averaged_", 0.01), ("test_", 0.02)):
        for name, share in shares.items():
            for end in ("", "_low", "_high"):
                row[f"{prefix}{name}{end}"] = share - less
    row["gflops"] = 1.0
    stream = io.StringIO()
    print_leaderboard(pd.DataFrame([row]), "balanced_accuracy", Console(file=stream, width=200))
    text = stream.getvalue()
    for share in ("51.1", "48.7", "50.1", "47.7", "accuracy 46.7"):
        assert share in text
    for share in ("73.1", "72.1", "71.1", "unadjusted"):
        assert share not in text
    assert "accuracy, balanced accuracy and macro F1 are of its decisions" in text


def test_a_cache_that_does_not_fit_into_memory_is_streamed_to_the_same_leaderboard(
    place, monkeypatch
):
    rare = {f"2/{image.name}": 3 for image in (place / "digits" / "2").iterdir()}
    write_cache(place / "digits", place / "cache", n_views=2, of=rare)
    in_memory = fit(place, "memory").leaderboard
    monkeypatch.setattr("hubretrain.screening.fitting.MEMORY", 0)
    streamed = fit(place, "streamed").leaderboard
    for column in ("module", "trained_on", "head", "l2", "adjust"):
        assert in_memory[column].equals(streamed[column])
    for column in ("balanced_accuracy", "log_loss", "averaged_accuracy"):
        np.testing.assert_allclose(in_memory[column], streamed[column], atol=2e-3)


def test_the_modules_that_tie_get_networks_which_are_kept(place, monkeypatch):
    write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    write_cache(place / "digits", place / "cache", "column", columns=slice(3, 4))
    found = fit(place, heads=None)
    heads = CANDIDATES.read(found.run.folder)
    with_networks = set(heads.loc[heads["head"] == "mlp", "module"])
    assert "column" not in with_networks
    assert "pixels" in with_networks
    assert "an mlp instead of linear heads" in set(found.effects["effect"])
    assert any("got an mlp, too, in" in note for note in found.notes)
    alone = fit(place, "linear")
    tied = alone.leaderboard.loc[alone.leaderboard["tied"], "module"]
    assert with_networks == set(tied)
    assert not any("mlp" in note for note in alone.notes)
    monkeypatch.setattr("hubretrain.screening.stages.screen", None)  # nothing is fitted again
    pd.testing.assert_frame_equal(found.leaderboard, fit(place, heads=None).leaderboard)


@pytest.mark.slow
def test_the_order_in_which_modules_join_changes_nothing(place):
    one_by_one = Run(place / "one_by_one")
    write_cache(place / "digits", place / "cache", "column", columns=slice(3, 4))
    fit(place, "one_by_one", modules=["column"], heads=None)
    assert set(CANDIDATES.read(one_by_one.folder)["head"]) == {"softmax", "logistic", "mlp"}
    later = fit(place, "one_by_one", modules=["pixels"], heads=None)
    at_once = fit(place, "at_once", heads=None)
    columns = [c for c in at_once.leaderboard if not c.startswith("seconds")]
    pd.testing.assert_frame_equal(later.leaderboard[columns], at_once.leaderboard[columns])
    for module in ("column", "pixels"):
        bytes_of = [run.heads_file(module).read_bytes() for run in (one_by_one, at_once.run)]
        assert bytes_of[0] == bytes_of[1]
    assert ModuleHeads.load(one_by_one.heads_file("column")).deployed.kind != "mlp"


@pytest.mark.slow
def test_modules_that_processes_fit_at_the_same_time_are_those_of_one_fit(place):
    names = ("pixels", "left_half")
    write_cache(place / "digits", place / "cache", "left_half", columns=slice(4))
    where = ("digits", "--cache", "cache", "--run", str(place / "apart"))
    options = (*where, "--heads", "softmax", "--l2", "1,10,100")
    command = [sys.executable, "-m", "hubretrain"]
    split = [*command, "data", "split", *where]
    subprocess.run(split, cwd=place, check=True, capture_output=True)
    fits = [
        subprocess.Popen([*command, "fit", *options, "--module", name], cwd=place) for name in names
    ]
    assert [process.wait(PATIENCE) for process in fits] == [0, 0]
    apart = Run(place / "apart")
    kept = {name: apart.screened_file(name, "linear").read_bytes() for name in names}
    joined = fit(place, "apart", heads=("softmax",))
    assert kept == {name: apart.screened_file(name, "linear").read_bytes() for name in names}
    at_once = fit(place, "at_once", heads=("softmax",))
    columns = [c for c in at_once.leaderboard if not c.startswith("seconds")]
    pd.testing.assert_frame_equal(joined.leaderboard[columns], at_once.leaderboard[columns])
    for path in (*(f"heads/{name}.h5" for name in names), "out_of_fold.csv", "effects.csv"):
        both = [run.folder / path for run in (joined.run, at_once.run)]
        assert both[0].read_bytes() == both[1].read_bytes()


def test_networks_for_all_modules_are_asked_for_by_name(place):
    alone = fit(place, "mlp", heads=("mlp",))
    assert set(CANDIDATES.read(alone.run.folder)["head"]) == {"mlp"}
    assert rows_of(alone, "module")["head"].tolist() == ["mlp"]
    heads = ModuleHeads.load(alone.run.heads_file("pixels"))
    assert heads.warm_start.kind == heads.ensemble_member.kind == "mlp"
    with pytest.raises(HeadError, match="`heads` is tree; expected some of softmax, logistic, mlp"):
        fit(place, "none", heads=("tree",))
