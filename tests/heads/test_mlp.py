"""Networks: gradients, steps, temperature, and what does not change them."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

from hubretrain.errors import HeadError
from hubretrain.evaluation import calibrate, softmax
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.heads import Head
from hubretrain.heads.inputs import TRAIN_ONLY, FitInputs
from hubretrain.heads.mlp import Adam, MLPFitter, MLPOptions, Network, averaged, differentiate
from hubretrain.heads.projection import Projection
from tests.heads.samples import blobs, digits, fitted

RULE = DecisionRule(0.0, (0.1,) * 10)
SMALL = MLPOptions(n_hidden=16, n_seeds=2, n_epochs=3, n_steps=30, batch_size=32)


def network(random, n_features=5, n_hidden=4, n_classes=3):
    shapes = (n_features, n_hidden), (n_hidden,), (n_hidden, n_classes), (n_classes,)
    return Network(*(random.normal(size=shape) for shape in shapes))


def fitter(
    features, labels, n_classes, options=SMALL, class_weights=(None,), memory=1 << 30, **given
):
    inputs = FitInputs.checked(features, labels, n_classes, **given)
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=True, memory=memory)
    return MLPFitter(inputs, rows, class_weights, options)


def ring(n_images=400, seed=0):
    """Two classes that no linear head tells apart: inside and outside of a ring."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n_images, 2))
    labels = (np.hypot(*features.T) > 1.2).astype(int)
    return features.astype(np.float32), labels, np.arange(n_images) % 3


def test_gradients_are_differences_of_the_loss():
    random = np.random.default_rng(0)
    net, rows = network(random), random.normal(size=(7, 5))
    targets, weight = np.eye(3)[random.integers(0, 3, 7)], random.uniform(0.5, 2, 7)
    kept = 2.0 * random.integers(0, 2, (7, 4))
    _, gradients = differentiate(net, rows, targets, weight, kept)
    step = 1e-6
    for values, gradient in zip(net, gradients, strict=True):
        for at in np.ndindex(values.shape):
            losses = []
            for sign in (1, -1):
                values[at] += sign * step
                losses.append(differentiate(net, rows, targets, weight, kept)[0])
                values[at] -= sign * step
            assert gradient[at] == pytest.approx((losses[0] - losses[1]) / 2 / step, abs=1e-6)


def test_a_step_without_decay_is_that_of_adam_in_scikit_learn_and_decay_shrinks_the_weights():
    random = np.random.default_rng(1)
    ours, decayed = network(random), network(random)
    for values, others in zip(ours, decayed, strict=True):
        others[:] = values
    theirs = [values.copy() for values in ours]
    oracle = AdamOptimizer(theirs, 0.01)
    adam, with_decay = Adam(ours, 0.0), Adam(decayed, 3.0)
    for _ in range(5):
        gradients = network(random)
        oracle.update_params(theirs, [gradient.copy() for gradient in gradients])
        with_decay.step(Network(*(gradient.copy() for gradient in gradients)), 0.01)
        adam.step(gradients, 0.01)
    for values, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-6)
    np.testing.assert_allclose(decayed.bias, ours.bias)
    before, moved = network(np.random.default_rng(1)).weight, ours.weight
    # Each step takes 3 % off what there is, then adds the same step: a weighted sum of the steps.
    assert np.abs(decayed.weight - before * 0.97**5).max() < np.abs(moved - before).max() + 1e-9


def test_the_mean_of_networks_is_one_network_with_more_hidden_units():
    random = np.random.default_rng(2)
    nets, rows = [network(random) for _ in range(3)], random.normal(size=(6, 5))
    expected = np.mean([net.logits(rows) for net in nets], axis=0)
    np.testing.assert_allclose(averaged(nets).logits(rows), expected, atol=1e-12)


def test_networks_tell_apart_what_linear_heads_cannot():
    features, labels, folds = ring()
    path = fitter(
        features,
        labels,
        2,
        MLPOptions(n_hidden=64, dropout=0, input_dropout=0, learning_rate=0.02),
        folds=folds,
    ).fit_folds(0.1)
    linear = fitted(features, labels, kind="softmax", n_classes=2, l2=[1.0], folds=folds)
    right = path.out_of_fold[:, 0, 0].argmax(axis=1) == labels
    assert right.mean() > 0.93
    assert path.validation_loss.mean() < linear.validation_loss.mean() / 2


def test_networks_fitted_together_on_any_number_of_threads_are_those_fitted_alone(monkeypatch):
    features, labels, folds = digits(300)
    weights = [None, "balanced"]
    together = fitter(features, labels, 10, class_weights=weights, folds=folds)
    path = together.fit_folds([0.1, 1.0], mean_over_views=True)
    assert path.objective.shape == (2, 3, 2)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for w, weight in enumerate(weights):
        alone = fitter(features, labels, 10, class_weights=[weight], folds=folds)
        for i, decay in enumerate((0.1, 1.0)):
            one = alone.fit_folds(decay)
            np.testing.assert_array_equal(path.out_of_fold[:, w, i], one.out_of_fold[:, 0, 0])
            np.testing.assert_array_equal(
                path.validation_loss[w, :, i], one.validation_loss[0, :, 0]
            )


def test_out_of_fold_logits_are_those_of_the_heads_that_were_not_fitted_on_the_images():
    features, labels, folds = digits(300)
    views = [features, features + 1]
    path = fitter(views, labels, 10, folds=folds).fit_folds([0.1, 1.0], mean_over_views=True)
    settings = path.heads.settings
    logits = [path.heads.logits(view) for view in views]
    for head, (fold, decay) in enumerate(zip(settings["fold"], settings["l2"], strict=True)):
        images, i = folds == fold, [0.1, 1.0].index(decay)
        expected = [of_view[images, head] for of_view in logits]
        np.testing.assert_allclose(path.out_of_fold[images, 0, i], expected[0], atol=1e-3)
        of_mean = path.out_of_fold_mean[images, 0, i]
        np.testing.assert_allclose(of_mean, np.mean(expected, axis=0), atol=1e-3)
        arrays = path.heads.arrays(head)
        alone = Head("mlp", rule=RULE, weight_of_class=np.ones(10), **arrays)
        np.testing.assert_allclose(alone.logits(features), logits[0][:, head], atol=1e-4)


def test_temperatures_come_from_the_images_of_the_other_folds():
    features, labels, folds = digits(300)
    noisy = np.where(np.random.default_rng(0).random(300) < 0.3, (labels + 1) % 10, labels)
    path = fitter(features, noisy, 10, folds=folds).fit_folds(0.0)
    logits = path.out_of_fold[:, 0, 0].astype(np.float64)
    # Of what is calibrated already, the temperature over all is nearly 1.
    assert calibrate(softmax(logits), noisy).temperature == pytest.approx(1, abs=0.1)
    others = noisy.copy()
    others[folds == 0] = (others[folds == 0] + 1) % 10
    # Labels of fold 0 change the networks of folds 1 and 2 only, and the temperatures of those.
    changed = fitter(features, others, 10, folds=folds).fit_folds(0.0)
    before, after = (each.out_of_fold[folds == 0, 0, 0] for each in (path, changed))
    ratio = (after * before).sum() / np.square(before).sum()
    np.testing.assert_allclose(after, ratio * before, atol=1e-4)


def test_refitting_gives_networks_of_all_images():
    features, labels, folds = digits(300)
    weights = [None, "balanced"]
    of_folds = fitter(features, labels, 10, class_weights=weights, folds=folds)
    of_folds.fit_folds([0.1, 1.0])
    refitted = of_folds.refit([1.0])
    assert refitted.settings["fold"].tolist() == [-1, -1]
    assert refitted.settings["class_weight"].tolist() == ["none", "balanced"]
    alone = fitter(features, labels, 10, class_weights=weights)
    expected = alone.fit_folds([1.0])
    assert np.isnan(expected.out_of_fold).all()
    ours, theirs = refitted.logits(features), expected.heads.logits(features)
    ratio = theirs / ours  # the temperature, which there is none without folds
    assert np.ptp(ratio, axis=(0, 2)).max() < 1e-2
    with pytest.raises(HeadError, match="There are no folds to refit heads of"):
        alone.refit([1.0])


def test_balanced_weights_help_the_rare_class():
    features, labels, folds = ring(600)
    kept = (labels == 0) | (np.arange(600) % 13 == 0)
    options = MLPOptions(n_hidden=16, n_seeds=1)
    weights = [None, "balanced", {1: 9.0}]
    path = fitter(features[kept], labels[kept], 2, options, weights, folds=folds[kept]).fit_folds(
        0.1
    )
    rare = labels[kept] == 1
    recall = (path.out_of_fold[rare, :, 0].argmax(axis=2) == 1).mean(axis=0)
    assert recall[1] > recall[0]
    assert recall[2] > recall[0]


def test_an_image_of_weight_0_is_no_image():
    features, labels, folds = digits(200)
    weight = (np.arange(200) % 5 > 0).astype(float)
    weighted = fitter(features, labels, 10, folds=folds, sample_weight=weight).fit_folds(0.1)
    folds = np.where((weight == 0) & (folds > 0), folds, folds)
    assert np.isfinite(weighted.validation_loss).all()
    halved = fitter(features, labels, 10, folds=folds, sample_weight=weight / 2).fit_folds(0.1)
    np.testing.assert_allclose(halved.out_of_fold, weighted.out_of_fold, atol=1e-4)


def test_rows_on_disk_give_the_networks_of_rows_in_memory(tmp_path):
    features, labels, folds = digits(200)
    views = [features, features * 1.5]
    in_memory = fitter(views, labels, 10, folds=folds).fit_folds(0.1, mean_over_views=True)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        parts = [file.create_dataset(f"view_{v}", data=view) for v, view in enumerate(views)]
        streamed = fitter(parts, labels, 10, memory=0, folds=folds)
        path = streamed.fit_folds(0.1, mean_over_views=True)
    np.testing.assert_array_equal(path.out_of_fold_mean, in_memory.out_of_fold_mean)


def test_images_without_a_fold_take_no_part_and_train_only_images_are_not_scored():
    features, labels, folds = digits(200)
    folds = folds.copy()
    folds[:20], folds[20:40] = -1, TRAIN_ONLY
    path = fitter(features, labels, 10, folds=folds).fit_folds(0.1)
    assert np.isnan(path.out_of_fold[:40]).all()
    assert np.isfinite(path.out_of_fold[40:]).all()
    assert np.isfinite(path.validation_loss).all()


def test_one_image_per_class_trains_and_an_absent_class_is_one_sentence():
    features, labels, _ = blobs(3)
    options = MLPOptions(n_hidden=64, n_seeds=1, input_dropout=0)
    path = fitter(features, labels, 3, options).fit_folds(0.1)
    logits = path.heads.logits(features)[:, 0]
    assert (logits.argmax(axis=1) == labels).all()
    with pytest.raises(HeadError, match=r"Class number 0 has no training image when fold 0 is"):
        fitter(features, labels, 3, folds=np.arange(3)).fit_folds(0.1)


def test_progress_counts_every_head():
    features, labels, folds = ring(60)
    done = []
    fitter(features, labels, 2, folds=folds).fit_folds([0.1, 1.0], advance=done.append)
    assert sum(done) == 6


def test_a_network_on_components_becomes_one_on_features():
    random = np.random.default_rng(0)
    features, labels, folds = digits(200)
    features = (features @ random.normal(size=(features.shape[1], 900)) + 5).astype(np.float32)
    projection = Projection.fitted([features], np.arange(200), 50)
    rows = projection.project(features)
    inputs = FitInputs.checked(rows, labels, 10, folds)
    blocks = FeatureBlocks(inputs.parts, inputs.row_image, standardize=False, memory=1 << 30)
    networks = MLPFitter(inputs, blocks, options=SMALL)
    networks.fit_folds(0.1)
    heads = networks.refit(0.1)
    head = Head("mlp", rule=RULE, weight_of_class=np.ones(10), **heads.arrays(0))
    raw = projection.raw_head(head, ("block_1",))
    np.testing.assert_allclose(
        raw.probabilities(features.astype(np.float64)), head.probabilities(rows), atol=1e-4
    )
