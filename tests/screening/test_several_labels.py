"""Fits of images that may have several labels: what is chosen, kept, refused, and said."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score, f1_score
from threadpoolctl import threadpool_limits

from hubretrain.cli.fit import print_leaderboard
from hubretrain.data import TableOptions, open_dataset
from hubretrain.data.options import SplitOptions
from hubretrain.errors import HeadError, RunError
from hubretrain.evaluation import Evaluator, choice_parts
from hubretrain.evaluation.metrics import LABEL_METRICS
from hubretrain.heads.ensemble import Ensemble
from hubretrain.heads.heads import ModuleHeads
from hubretrain.runs import LEADERBOARD, OUT_OF_FOLD, PER_CLASS, TEST_PREDICTIONS, Run
from hubretrain.screening import ScreenOptions, compare_runs, load_features
from hubretrain.screening.comparison import ModuleComparison
from hubretrain.screening.fit import screen_modules
from hubretrain.screening.result import merged
from hubretrain.screening.screen import screen
from hubretrain.screening.sweep import Sweep
from tests.samples import write_digits
from tests.screening.samples import images_of, write_features
from tests.screening.test_fit import write_cache

NAMES = ("a", "b", "c", "d")
SWEEP = Sweep(
    "mean_average_precision",
    NAMES,
    (None,),
    (10.0, 100.0),
    (0.0,),
    kinds=("logistic",),
    multi_label=True,
)


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


def several_labels(n_images, shares=(0.5, 0.3, 0.15, 0.1), signal=1.5, group_size=1, seed=0):
    """Images with any number of labels, the indicators, and features that tell them a little."""
    rng = np.random.default_rng(seed)
    images, _ = images_of(n_images, group_size=group_size)
    of_group = rng.random((n_images // group_size, len(shares))) < shares
    labels = np.repeat(of_group, group_size, axis=0)
    names = np.array(NAMES[: len(shares)], object)
    images["label"] = ["|".join(names[row]) for row in labels]
    features = rng.normal(size=(n_images, 8))
    features[:, : len(shares)] += signal * labels
    return images.drop(columns="class_index"), labels, features.astype(np.float32)


def thresholds_of(model):
    return model.rule.values  # noqa: PD011 - no table


def best_f1_threshold(probs, labels):
    """The cut between two probabilities of the best F1, tried one after the other."""
    ranked = np.unique(probs)
    cuts = [0.0, *((ranked[1:] + ranked[:-1]) / 2)]
    f1 = [2 * (labels & (probs > cut)).sum() / (labels.sum() + (probs > cut).sum()) for cut in cuts]
    return cuts[int(np.argmax(f1))]


def test_thresholds_of_a_half_are_those_of_the_best_f1_on_the_other(tmp_path):
    images, labels, features = several_labels(120)
    file = write_features(tmp_path / "noisy.h5", images, [features])
    result, heads = screen(file, images, replace(SWEEP, l2=(10.0,)))
    probs, adjusted = result.predictions["unadjusted"], result.predictions["adjusted"]
    parts = choice_parts(labels, images["cluster"].to_numpy())
    for part in (0, 1):
        inside = parts == part
        for k in range(4):
            threshold = best_f1_threshold(probs[~inside, k], labels[~inside, k])
            expected = f1_score(labels[inside, k], probs[inside, k] > threshold)
            decided = f1_score(labels[inside, k], adjusted[inside, k] > 0.5)
            assert decided == pytest.approx(expected, abs=1e-9)
    rule = heads.deployed.rule
    for k in range(4):
        best = best_f1_threshold(probs[:, k], labels[:, k])
        found = f1_score(labels[:, k], rule.decide(probs)[:, k])
        assert found == pytest.approx(f1_score(labels[:, k], probs[:, k] > best))
    np.testing.assert_array_equal(
        result.predictions["deployed_adjusted"] > 0.5, rule.decide(result.predictions["deployed"])
    )


@pytest.mark.parametrize("metric", ["mean_average_precision", "micro_f1"])
def test_the_best_head_is_chosen_and_kept_with_its_labels(tmp_path, metric):
    images, labels, features = several_labels(150)
    file = write_features(tmp_path / "noisy.h5", images, [features, features + 0.1])
    sweep = replace(SWEEP, metric=metric, l2=(1.0, 100.0), class_weights=(None, "balanced"))
    result, heads = screen(file, images, sweep)
    assert len(result.candidates) == 2 * 2 * 2
    assert {"mean_average_precision", "macro_f1", "log_loss"} <= set(result.candidates)
    assert result.about["uncorrected"] == result.candidates[metric].max()
    for head in (heads.deployed, heads.warm_start, heads.ensemble_member):
        assert head.multi_label
        assert head.kind == "logistic"
        assert len(thresholds_of(head)) == 4
    probs = heads.deployed.probabilities(features)
    assert average_precision_score(labels, probs) > labels.mean() + 0.2
    if heads.deployed.class_weight == "balanced":
        np.testing.assert_allclose(heads.deployed.weight_of_class, 1 / labels.mean(axis=0) - 1)
    with_it, without = (result.predictions[f"{side}_class_weights"] for side in ("with", "without"))
    comparison = ModuleComparison(images, [result], sweep, 0)
    effect = comparison.effects().set_index("effect").loc["class weights", "estimate"]
    values = [comparison.evaluator.resample(metric, of).estimate for of in (with_it, without)]
    assert effect == pytest.approx(values[0] - values[1])


@pytest.mark.parametrize("metric", ["mean_average_precision", "macro_f1"])
def test_merging_is_screening_both_at_once(tmp_path, metric):
    images, labels, features = several_labels(90)
    file = write_features(tmp_path / "noisy.h5", images, [features])
    sweep = replace(SWEEP, metric=metric, l2=(1.0, 10.0))
    plain, balanced, both = (
        screen(file, images, replace(sweep, class_weights=some))[0]
        for some in ((None,), ("balanced",), (None, "balanced"))
    )
    parts = choice_parts(labels, images["cluster"].to_numpy())
    one = merged(plain, balanced, metric, parts, "balanced")
    for name in ("chosen", "ensemble_member", "uncorrected"):
        assert one.about[name] == both.about[name]
    for name in both.predictions:
        if not name.startswith(("with_", "without_")):
            np.testing.assert_array_equal(one.predictions[name], both.predictions[name])
    assert one.predictions["with_balanced"] is not None


def chance(labels, parts, n=40):
    """Mean average precision of random rankings within halves, which a small set raises."""
    random = np.random.default_rng(0)
    values = []
    for part in (0, 1):
        y = labels[parts == part]
        some = y[:, y.any(axis=0) & ~y.all(axis=0)]
        values += [average_precision_score(some, random.random(some.shape)) for _ in range(n)]
    return np.mean(values)


def alike_in_every_fold(seed, shares=(0.5, 0.3, 0.2)):
    """Images of which every fold has as many with each label, so that none is ranked below."""
    of_fold = np.random.default_rng(seed).random((12, len(shares))) < shares
    of_fold[0], of_fold[1] = True, False
    labels = np.tile(of_fold, (5, 1))
    images, _ = images_of(len(labels))
    names = np.array(NAMES[: len(shares)], object)
    images["label"] = ["|".join(names[row]) for row in labels]
    images["fold"] = np.repeat(np.arange(5), len(of_fold))
    return images.drop(columns="class_index"), labels


@pytest.mark.slow
def test_labels_without_signal_show_chance_of_module_best_module_and_ensemble(tmp_path):
    """The fits are real; only what is not corrected is above chance."""
    sweep = replace(SWEEP, class_names=NAMES[:3], l2=(1.0, 10.0, 100.0, 1000.0))
    figures = []
    for seed in range(10):
        images, labels = alike_in_every_fold(seed)
        results = []
        for m in range(3):
            features = np.random.default_rng([seed, m]).normal(size=(60, 20)).astype(np.float32)
            file = write_features(tmp_path / f"m{m}.h5", images, [features])
            results.append(screen(file, images, sweep)[0])
            file.unlink()
        comparison = ModuleComparison(images, results, sweep, seed)
        *of_modules, ensemble, best = (
            comparison.evaluator.resample(SWEEP.metric, of.of(SWEEP.metric)).estimate
            for of in [*comparison.predictions().values(), comparison.best()]
        )
        uncorrected = max(result.about["uncorrected"] for result in results)
        expected = chance(labels, choice_parts(labels, images["cluster"].to_numpy()))
        values = [np.mean(of_modules), best, ensemble, uncorrected]
        figures.append(np.array(values) - expected)
    *honest, uncorrected = np.transpose(figures)
    for above in honest:
        assert abs(above.mean()) < 2.5 * above.std(ddof=1) / np.sqrt(len(above))
    assert uncorrected.mean() > np.mean(honest)


def test_without_signal_rankings_are_chance_and_thresholds_no_better_than_every_label(tmp_path):
    """F1 of deciding on all is 2 p / (1 + p); where images choose for themselves, it is more."""
    figures = []
    for seed in range(6):
        images, labels = alike_in_every_fold(seed)
        features = np.random.default_rng(seed).normal(size=(60, 8)).astype(np.float32)
        file = write_features(tmp_path / f"m{seed}.h5", images, [features])
        result, _ = screen(file, images, replace(SWEEP, class_names=NAMES[:3], metric="macro_f1"))
        groups = images["cluster"].to_numpy()
        evaluator = Evaluator(labels, groups, parts=choice_parts(labels, groups))
        ranked = evaluator.resample(SWEEP.metric, result.chosen.unadjusted).estimate
        ranked -= chance(labels, evaluator.parts)
        p = labels.mean(axis=0)
        decided = f1_score(labels, result.predictions["adjusted"] > 0.5, average="macro")
        trivial = (2 * p / (1 + p)).mean()
        figures.append((ranked, decided - trivial, result.about["uncorrected"] - trivial))
    ranked, decided, uncorrected = np.transpose(figures)
    error = np.std(figures, axis=0, ddof=1) / np.sqrt(len(figures))
    assert abs(ranked.mean()) < 2.5 * error[0]
    assert decided.mean() < 2.5 * error[1]
    assert uncorrected.min() > 0


def test_labels_that_cannot_be_learned_are_constant_and_left_out_of_the_mean(tmp_path):
    images, labels, features = several_labels(90)
    rare = np.zeros((90, 3), bool)
    rare[0, 0] = rare[:, 1] = True  # one image has it, all have it, none has it
    every = np.hstack([labels, rare])
    names = (*NAMES, "once", "always", "never")
    images["label"] = ["|".join(np.array(names, object)[row]) for row in every]
    file = write_features(tmp_path / "noisy.h5", images, [features])
    sweep = replace(SWEEP, class_names=names, class_weights=(None, "balanced"))
    result, heads = screen(file, images, sweep)
    assert all(np.isfinite(probs).all() for probs in result.predictions.values())
    probs = heads.deployed.probabilities(features)
    assert (probs[:, 5] > 0.95).all()
    assert (probs[:, 6] < 0.05).all()
    assert thresholds_of(heads.deployed)[4:] == (0.5, 0.5, 0.5)
    comparison = ModuleComparison(images, [result], sweep, 0)
    per_class = comparison.evaluator.per_class(names, "noisy", result.chosen)
    per_class = per_class.set_index("class")
    assert per_class["average_precision"].isna().tolist() == [False] * 5 + [True] * 2
    board = comparison.leaderboard(3).set_index("module")
    expected = per_class["average_precision"].mean()
    assert board.loc["noisy", "mean_average_precision"] == pytest.approx(expected)


def test_one_label_alone_is_fitted(tmp_path):
    images, labels, features = several_labels(80, shares=(0.4,))
    file = write_features(tmp_path / "noisy.h5", images, [features])
    sweep = replace(SWEEP, class_names=NAMES[:1])
    result, _ = screen(file, images, sweep)
    board = ModuleComparison(images, [result], sweep, 0).leaderboard(3).set_index("module")
    assert board.loc["noisy", "mean_average_precision"] > labels.mean() + 0.2
    shares = board.loc["prevalence of each label"]
    assert shares["mean_average_precision"] == pytest.approx(labels.mean(), abs=1e-6)
    assert shares["macro_f1"] == pytest.approx(2 * labels.mean() / (1 + labels.mean()))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Digits that are even, large or round, some of them nothing, and two caches of pixels."""
    folder = tmp_path_factory.mktemp("several")
    data = write_digits(folder / "digits", 160, tuple(range(10)))
    rows = ["image,labels"]
    for path in sorted(data.rglob("*.png")):
        digit = int(path.parent.name)
        names = [("even", digit % 2 == 0), ("large", digit > 4), ("round", digit in (0, 6, 8, 9))]
        joined = ";".join(name for name, has in names if has)
        rows.append(f"{path.relative_to(data)},{joined}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    for module, columns in (("pixels", slice(None)), ("left", slice(0, 4))):
        write_cache(data, folder / "cache", module, columns=columns)
    write_cache(data, folder / "views", n_views=2)
    return folder


def opened(place, **options):
    options = {"multi_label": True, "label_separator": ";", **options}
    table = TableOptions(image_column="image", label_column="labels", **options)
    return open_dataset(place / "digits", labels=place / "labels.csv", table=table)


def fit(place, run="run", *, cache="cache", **options):
    options = {"l2": (10.0, 100.0), "heads": ("logistic",), "class_weights": (None,), **options}
    return screen_modules(
        opened(place), Run(place / run), ScreenOptions(**options), cache=place / cache
    )


@pytest.fixture(scope="module")
def screening(place):
    with threadpool_limits(1):
        return fit(place)


def test_a_fit_writes_what_it_found_of_every_label(place, screening):
    run = screening.run
    assert run.fit.multi_label
    assert run.fit.metric == screening.metric == "mean_average_precision"
    board = LEADERBOARD.read(run.folder)
    assert set(LABEL_METRICS) <= set(board)
    assert not {"accuracy", "balanced_accuracy", "top_3", "h_score"} & set(board)
    assert board["kind"].tolist()[-3:] == ["reference"] * 3
    per_class = PER_CLASS.read(run.folder)
    heads = ModuleHeads.load(run.heads_file("pixels"))
    of_pixels = per_class[per_class["module"] == "pixels"]
    assert of_pixels["class"].tolist() == ["even", "large", "round"]
    assert tuple(of_pixels["threshold"]) == thresholds_of(heads.deployed)
    ensemble = Ensemble.load(run.ensemble_file)
    of_ensemble = per_class[per_class["module"] == "ensemble"]
    assert tuple(of_ensemble["threshold"]) == thresholds_of(ensemble)


def test_predictions_are_written_with_labels_that_bars_join(screening):
    table = OUT_OF_FOLD.read(screening.run.folder)
    rows = table[table["module"] == "pixels"]
    names = np.array(["even", "large", "round"])
    labels = np.array([np.isin(names, label.split("|")) for label in rows["label"]])
    decided = np.array([np.isin(names, label.split("|")) for label in rows["decision"]])
    assert (rows["label"] == "").any()
    assert rows["label"].str.contains("|", regex=False).any()
    board = screening.leaderboard
    board = board[board["kind"] == "module"].set_index("module")
    f1 = f1_score(labels, decided, average="macro")
    assert board.loc["pixels", "macro_f1"] == pytest.approx(f1)
    on_test = TEST_PREDICTIONS.read(screening.run.folder)
    assert {"label", "decision", "p(even)", "p(large)", "p(round)"} <= set(on_test)
    assert np.abs(on_test[["p(even)", "p(large)", "p(round)"]].sum(axis=1) - 1).max() > 0.1


@pytest.mark.slow
def test_a_module_that_ties_gets_networks_and_averaged_views(place):
    found = fit(place, "networks", heads=None, l2=(100.0,), cache="views")
    assert set(found.leaderboard["head"]) <= {"logistic", "mlp", "ensemble", "none"}
    assert found.leaderboard["averaged_mean_average_precision"].notna().any()
    effects = found.effects["effect"].tolist()
    assert "an mlp instead of linear heads" in effects
    assert not {"softmax instead of logistic heads"} & set(effects)


def test_notes_say_how_many_labels_images_have_and_what_chance_is(screening):
    notes = " ".join(screening.notes)
    assert "160 images, 3 labels" in notes
    assert "Chosen by mean average precision" in notes
    assert "labels on average, at most 3" in notes


@pytest.mark.parametrize("width", [80, 120])
def test_the_leaderboard_fits_the_terminal(screening, width):
    out = io.StringIO()
    print_leaderboard(
        screening.leaderboard, screening.metric, Console(file=out, width=width, no_color=True)
    )
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for words in ("mean average precision", "macro F1", "prevalence of each", "Test split, pixels"):
        assert words in text
    assert "logistic" in text


def test_a_fit_again_gives_the_same_bytes(place, screening):
    folder = screening.run.folder
    files = ["out_of_fold.csv", "per_class.csv", "effects.csv", "ensemble.json", "heads.csv"]
    before = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files]
    fit(place)
    fit(place, "other")
    for run in (folder, place / "other"):
        after = [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files]
        assert after == before


def test_two_runs_are_compared_by_metrics_of_labels(place, screening):
    balanced = fit(place, "balanced", class_weights=("balanced",), metric="micro_f1")
    pairs = compare_runs(screening.run, balanced.run)
    assert set(pairs["metric"]) == {
        *("mean_average_precision", "macro_f1", "micro_f1", "log_loss"),
    }
    board = balanced.leaderboard[balanced.leaderboard["kind"] == "module"].set_index("module")
    rows = pairs[(pairs["first"] == "left") & (pairs["metric"] == "macro_f1")]
    assert rows["of_second"].iloc[0] == pytest.approx(board.loc["left", "macro_f1"])
    same = compare_runs(screening.run, screening.run)
    assert same["difference"].eq(0).all()


def test_features_come_with_indicators(place, screening):
    features = load_features(screening.run, "pixels")
    assert features.y.dtype == bool
    assert features.y.shape == (160, 3)
    of_data = load_features(opened(place), "pixels", cache=place / "cache", split=SplitOptions())
    np.testing.assert_array_equal(of_data.y.sum(axis=0), features.y.sum(axis=0))


def test_a_run_of_labels_takes_no_classes(place, screening):
    table = place / "digits.csv"
    rows = [f"{p.relative_to(place / 'digits')},{p.parent.name}" for p in
            sorted((place / "digits").rglob("*.png"))]  # fmt: skip
    table.write_text("\n".join(["image,label", *rows]) + "\n")
    classes = open_dataset(place / "digits", labels=table)
    with pytest.raises(RunError, match="was fitted on several labels per image"):
        screen_modules(classes, screening.run, cache=place / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "top_3"}, "is top_3, which does not apply .*; expected one of mean_av"),
        ({"metric": "accurate"}, "is 'accurate'; expected one of mean_average_precision"),
        ({"adjust": (0.0, 1.0)}, "`adjust` does not apply where images may have several labels"),
        ({"heads": ("softmax", "mlp")}, "softmax, which does not apply .* some of logistic, mlp"),
        ({"heads": ("tree",)}, "`heads` is tree; expected some of logistic, mlp"),
        ({"class_weights": ({"odd": 2.0},)}, "names the class 'odd'; expected one of even"),
    ],
)  # fmt: skip
def test_what_does_not_apply_is_one_sentence(place, options, message):
    with pytest.raises(HeadError, match=message):
        fit(place, "refused", **options)


def test_metrics_of_labels_are_refused_for_classes():
    with pytest.raises(HeadError, match="is 'micro_f1'; expected one of accuracy"):
        Sweep.of(ScreenOptions(metric="micro_f1"), NAMES, np.arange(8) % 4)


def test_defaults_leave_out_what_does_not_apply():
    labels = pd.DataFrame(np.eye(8, 4, dtype=bool)).to_numpy()
    sweep = Sweep.of(ScreenOptions(), NAMES, labels)
    assert sweep.kinds == ("logistic",)
    assert sweep.strengths == (0.0,)
    assert sweep.mlp_where_tied
