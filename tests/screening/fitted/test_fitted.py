"""What people take from a fit: features, two runs compared, the result as a table and a chart."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from threadpoolctl import threadpool_limits

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data import SplitOptions, open_dataset
from hubretrain.data.splitting import TEST, read_folds
from hubretrain.errors import CacheError, RunError
from hubretrain.runs import LEADERBOARD, OUT_OF_FOLD, Run
from hubretrain.screening import ScreenOptions, compare_runs, load_features, screen_modules
from tests.samples import write_digits
from tests.screening.test_fit import write_cache


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Digits, two cached modules, and three runs: of one module, of both, and on other folds."""
    place = tmp_path_factory.mktemp("fitted")
    data = write_digits(place / "digits", 120)
    write_cache(data, place / "cache", "pixels")
    write_cache(data, place / "cache", "one_column", columns=slice(2, 3))
    with threadpool_limits(1):
        for name, modules, seed in (("a", ("one_column",), 0), ("b", (), 0), ("c", ("pixels",), 1)):
            options = ScreenOptions(
                l2=(1.0, 10.0), heads=("softmax",), split=SplitOptions(seed=seed)
            )
            screen_modules(
                open_dataset(data),
                str(place / name),
                options,
                cache=str(place / "cache"),
                modules=modules,
            )
    return place


def test_the_difference_of_two_runs_is_that_of_their_decisions_out_of_fold(place):
    pairs = compare_runs(place / "a", str(place / "b"))
    models = dict.fromkeys(zip(pairs["first"], pairs["second"], strict=True))
    assert list(models) == [("one_column", "pixels"), ("one_column", "one_column")]
    row = pairs[(pairs["metric"] == "balanced_accuracy")].iloc[0]
    expected = []
    for run, module in (("a", "one_column"), ("b", "pixels")):
        table = OUT_OF_FOLD.read(place / run)
        table = table[table["module"] == module]
        expected.append(balanced_accuracy_score(table["label"], table["decision"]))
    # The leaderboard's figure is the mean over the two halves that choose for each other.
    assert [row["of_first"], row["of_second"]] == pytest.approx(expected, abs=0.02)
    boards = [LEADERBOARD.read(place / run) for run in "ab"]
    boards = [board[board["kind"] == "module"].set_index("module") for board in boards]
    assert row["of_first"] == boards[0].loc["one_column", "balanced_accuracy"]
    assert row["of_second"] == boards[1].loc["pixels", "balanced_accuracy"]
    assert row["difference"] == row["of_second"] - row["of_first"]
    assert row["low"] < row["difference"] < row["high"]
    same = pairs[pairs["first"] == pairs["second"]]
    assert same[["difference", "low", "high"]].abs().max().max() == 0
    losses = pairs[pairs["metric"] == "log_loss"].iloc[0]
    of_first = boards[0].loc["one_column", "calibrated_log_loss"]
    assert losses["of_first"] == pytest.approx(of_first, abs=1e-5)  # six decimals are written


def test_turned_around_a_comparison_changes_its_sign_alone(place):
    there, back = compare_runs(place / "a", place / "b"), compare_runs(place / "b", place / "a")
    assert (there["difference"] == -back["difference"]).all()
    assert np.allclose(there["low"], -back["high"])


def test_runs_on_other_folds_are_refused_in_one_sentence(place):
    with pytest.raises(RunError, match=r"were not fitted on the same folds: \d+ of \d+ images"):
        compare_runs(place / "a", place / "c")
    with pytest.raises(RunError, match="holds no finished fit"):
        compare_runs(place / "a", place / "none")


def test_a_new_run_with_the_folds_of_another_can_be_compared_with_it(place):
    (place / "d").mkdir()
    for name in ("folds.csv", "folds.json"):
        shutil.copy(place / "c" / name, place / "d" / name)
    options = ScreenOptions(l2=(1.0,), heads=("softmax",), split=SplitOptions(seed=1))
    with threadpool_limits(1):
        screen_modules(open_dataset(place / "digits"), place / "d", options, cache=place / "cache")
    assert len(compare_runs(place / "c", place / "d"))


def test_features_of_a_run_are_the_cached_rows_of_its_images_with_its_folds(place):
    X, y, groups, folds, class_names = load_features(place / "b", "pixels")
    table = read_folds(place / "b" / "folds.csv")
    with Bottlenecks(place / "cache" / "digits" / "pixels.h5") as bottlenecks:
        np.testing.assert_array_equal(X, bottlenecks.rows(table["sha256"].tolist()))
    assert [class_names[c] for c in y] == table["label"].tolist()
    assert (folds == table["fold"]).all()
    assert (groups == table["group"]).all()
    assert TEST in folds


def test_features_of_a_data_set_are_those_of_a_run_that_was_split_alike(place):
    of_run = load_features(Run(place / "b"), "one_column")
    for source in (open_dataset(place / "digits"), str(place / "digits")):
        of_data = load_features(source, "one_column", cache=place / "cache")
        assert (of_data.folds == of_run.folds).all()
        np.testing.assert_array_equal(of_data.X, of_run.X)


def test_a_module_that_is_not_cached_is_named_with_those_that_are(place):
    with pytest.raises(CacheError, match=r"lite9 is not cached in .* \(there are: one_column, pix"):
        load_features(place / "a", "lite9")


def test_a_notebook_shows_the_leaderboard_and_draws_it(place):
    options = ScreenOptions(l2=(1.0, 10.0), heads=("softmax",))
    with threadpool_limits(1):
        screening = screen_modules(
            open_dataset(place / "digits"), place / "b", options, cache=place / "cache"
        )
    html = screening._repr_html_()
    best = screening.leaderboard.iloc[0]
    assert f"{100 * best[screening.metric]:.1f} (" in html
    assert "1-nearest-neighbour of pixels" in html
    pytest.importorskip("matplotlib").use("agg")
    axes = screening.plot("accuracy")
    assert axes.get_xlabel() == "accuracy"
    assert [bar.get_width() for bar in axes.patches][-1] == best["accuracy"]
