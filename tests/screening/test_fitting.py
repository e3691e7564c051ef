"""Heads fitted on the features of one module, against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.screening.candidates import Position, Source
from hubretrain.screening.fitting import ModuleFitting
from hubretrain.screening.sweep import Sweep
from tests.screening.samples import images_of, write_features

WEIGHTS = (1.0, 1.0, 5.0)  # of images by their class


@pytest.mark.parametrize("trained_on", ["view 0", "all views"])
def test_probabilities_are_averaged_over_the_views_that_every_image_has(
    tmp_path, trained_on, monkeypatch
):
    monkeypatch.setattr("hubretrain.screening.fitting.BLOCK_ROWS", 17)
    images, features = images_of(120)
    rng = np.random.default_rng(1)
    views = [features, *(features + rng.normal(size=(2, *features.shape)).astype(np.float32))]
    of_rare = images["class_index"].to_numpy() == 2
    n_views_of = np.where(of_rare, 3, 2)
    file = write_features(tmp_path / "noisy.h5", images, views, n_views_of)
    sweep = Sweep("accuracy", ("a", "b", "c"), (None, WEIGHTS), (10.0,), (0.0,), kinds=("softmax",))
    with Bottlenecks(file) as bottlenecks:
        fitting = ModuleFitting(bottlenecks, images, sweep)
        fitting.fit("fitting")
        source = Source("last", trained_on, "softmax")
        averaged = [fitting.averaged(Position(source, w, 0)) for w in range(2)]
    assert fitting.n_views_averaged == 2
    n_trained_on = np.ones_like(n_views_of) if trained_on == "view 0" else n_views_of
    rows = [np.flatnonzero(n_trained_on > v) for v in range(n_trained_on.max())]
    image = np.concatenate(rows)
    every = np.concatenate([views[v][some] for v, some in enumerate(rows)])
    scaler, labels = StandardScaler().fit(every), images["class_index"].to_numpy()
    for of_class, probs in zip((np.ones(3), np.array(WEIGHTS)), averaged, strict=True):
        weights = of_class[labels[image]] / n_trained_on[image]
        expected = np.empty_like(probs)
        for fold in range(3):
            train = images["fold"].to_numpy()[image] != fold
            head = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000)
            head.fit(scaler.transform(every[train]), labels[image[train]], weights[train])
            head = make_pipeline(scaler, head)
            left_out = images["fold"] == fold
            each = [head.predict_proba(view[left_out]) for view in views[:2]]
            expected[left_out] = np.mean(each, axis=0)
        np.testing.assert_allclose(probs, expected, atol=2e-3)
    assert np.abs(averaged[0] - averaged[1]).max() > 0.05


def test_networks_alone_on_several_views_of_the_last_layer_keep_the_baselines_of_view_0(tmp_path):
    images, features = images_of(60)
    file = write_features(tmp_path / "noisy.h5", images, [features, features + 1])
    sweep = Sweep("accuracy", ("a", "b", "c"), (None,), kinds=("mlp",), views=True)
    with Bottlenecks(file) as bottlenecks:
        fitting = ModuleFitting(bottlenecks, images, sweep)
        alone = ModuleFitting(bottlenecks, images, replace(sweep, kinds=("softmax",), views=False))
    np.testing.assert_array_equal(fitting.nearest()["nearest"], alone.nearest()["nearest"])
    assert fitting.hints() == alone.hints()
