from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hubretrain.errors import CacheError
from hubretrain.evaluation import METRICS, Evaluator, Predictions
from hubretrain.files import read_json, write_record
from hubretrain.progress import Bar
from hubretrain.screening.fitted.more_images import (
    FILE_NAME,
    LITTLE,
    LearningCurve,
    _by_class,
    _next,
    _scored,
    learning_curve,
)
from hubretrain.screening.screen import Probe
from tests.screening.samples import images_of, write_features

NAMES = ("a", "b", "c")


def probe_of(images, metric="accuracy", l2=None):
    probe = Probe.of(metric, "last", NAMES, images["class_index"].to_numpy())
    return probe if l2 is None else Probe(replace(probe.sweep, l2=(l2,)))


def curve_of(folder, n_images=500, metric="accuracy", **options):
    images, features = images_of(n_images, **{"n_folds": 5, **options})
    file = write_features(folder / "m.h5", images, [features])
    return learning_curve(file, images, probe_of(images, metric), folder, 0)


def test_heads_on_one_fold_are_those_that_are_fitted_to_it_alone(tmp_path):
    images, features = images_of(200, n_folds=5)
    file = write_features(tmp_path / "m.h5", images, [features])
    probe = probe_of(images, l2=10.0)
    with Bar("", 5) as bar:
        scored = _scored(file, images, probe, 1, bar)
    two = images[images["fold"].isin([3, 4])]
    alone = probe.predictions(file, two.assign(fold=two["fold"] - 3).reset_index(drop=True))
    here = (two["fold"] == 3).to_numpy()  # fold 3 is scored by heads on fold 4, the next
    of_fold = scored.unadjusted[(images["fold"] == 3).to_numpy()]
    np.testing.assert_allclose(of_fold, alone.unadjusted[here], atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_twice_the_images_bring_is_within_the_interval(tmp_path, seed):
    """Forty features that tell little each: heads on twice the images are better by points."""
    options = {"n_features": 40, "signal": 1.2, "seed": seed}
    curve = curve_of(tmp_path, 300, **options)
    images, features = images_of(6000, **options, n_folds=5)
    train, rest = np.arange(len(images)) % 10 == 0, np.arange(len(images)) % 10 != 0
    reached = []
    for n in (240, 480):  # what was trained on, and twice that; scored on all others
        chosen = np.flatnonzero(train)[:: max(1, train.sum() // n)][:n]
        head = LogisticRegression(C=0.1, max_iter=500)
        head.fit(features[chosen], images["class_index"].to_numpy()[chosen])
        reached.append(head.score(features[rest], images["class_index"].to_numpy()[rest]))
    gain, low, high = curve.gain
    assert low <= gain <= high
    assert low <= reached[1] - reached[0] <= high


def test_where_there_is_nothing_to_learn_the_interval_holds_zero_and_the_sentence_says_so(tmp_path):
    assert curve_of(tmp_path, signal=0.0).gain[1] <= 0 <= curve_of(tmp_path, signal=0.0).gain[2]
    certain = curve_of(tmp_path / "b", signal=30.0)
    assert certain.values[-1] == 1.0
    assert abs(certain.gain[2]) < LITTLE
    assert "another backbone or fine-tuning is the better try" in certain.sentence()


def test_of_a_loss_less_is_better(tmp_path):
    curve = curve_of(tmp_path, 300, metric="log_loss", n_features=40, signal=1.2)
    assert not METRICS["log_loss"].higher_is_better
    assert curve.values[0] > curve.values[1]
    assert curve.gain[0] > 0
    assert "nats of log loss" in curve.sentence()


def test_the_sentence_names_numbers_of_images_and_the_class_that_gains_most():
    gains = {"a": (0.001, -0.01, 0.01), "b": (0.03, 0.01, 0.05), "c": (0.02, 0.015, 0.03)}
    curve = LearningCurve(
        "", "m", "balanced_accuracy", (200, 400), (0.6, 0.65), (0.02, 0.01, 0.03), gains
    )
    assert curve.sentence() == (
        "Twice the images would bring heads on m about +2.0 points of balanced accuracy (95 % +1.0 "
        "to +3.0), by what 200 to 400 training images brought; most for b (+3.0 points of "
        "its recall)."
    )


def test_a_class_of_few_groups_does_not_surely_gain_and_one_of_many_does():
    """All images of the last class are wrong before and right after: no resample moves that."""

    def gain_of(n_images, n_groups, names=NAMES):
        labels = np.repeat([0, 1, 2], [100, 100, n_images])
        groups = np.arange(len(labels))
        groups[200:] = 200 + np.arange(n_images) % n_groups
        after = Predictions(*2 * [np.eye(3)[labels]])
        before = Predictions(*2 * [np.eye(3)[np.minimum(labels, 1)]])
        return _by_class([before, after], Evaluator(labels, groups), names, 2.0)["c"]

    assert gain_of(3, 1)[1] <= 0 < gain_of(3, 1)[0]
    assert gain_of(30, 2)[1] <= 0
    assert 0 < gain_of(60, 60)[1] < gain_of(60, 60)[0]


def test_a_curve_is_kept_for_the_next_fit_and_made_anew_for_other_images(tmp_path):
    curve = curve_of(tmp_path)
    marked = {**read_record_of(tmp_path), "values": [0.1, 0.2]}
    write_record(tmp_path / FILE_NAME, marked)
    assert curve_of(tmp_path).values == (0.1, 0.2)
    assert curve_of(tmp_path, metric="macro_f1").metric == "macro_f1"
    (tmp_path / FILE_NAME).write_text("{")
    assert curve_of(tmp_path) == curve


def read_record_of(folder):
    return read_json(folder / FILE_NAME, dict, CacheError, "")


def test_fewer_than_three_folds_allow_no_curve(tmp_path):
    assert curve_of(tmp_path, n_folds=2) is None
    assert curve_of(tmp_path, n_folds=3).n_images == (167, 333)


@pytest.mark.parametrize("ratio", [2.0, 2.25, 3.0])
@pytest.mark.parametrize("c", [0.25, 0.5, 1.0])
def test_a_gain_that_follows_a_power_law_gives_the_next_one(ratio, c):
    """Errors n^-c at n / ratio, n and 2 n: the estimate is exact for c = 1/2, else in the ends."""
    brought, next_ = ratio**c - 1, 1 - 2.0**-c
    estimate, low, high = _next(brought, brought, brought, ratio)
    assert low - 1e-6 <= next_ <= high + 1e-6
    if c == 0.5:
        assert estimate == pytest.approx(next_, abs=1e-6)
