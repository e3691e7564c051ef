"""The temperature of heads that are kept, on images that they never saw."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.evaluation import METRICS, at_temperature, calibrate
from hubretrain.screening.screen import screen
from hubretrain.screening.sweep import Sweep
from tests.screening.samples import SHARES, images_of, write_features

CLASSES = ("a", "b", "c")
SWEEP = Sweep(
    "balanced_accuracy", CLASSES, (None, "balanced"), (0.1, 1.0, 10.0, 100.0), (0.0, 0.5, 1.0)
)


def screened(tmp_path, seed, n_images=90, group_size=1):
    images, features = images_of(n_images, seed=seed, group_size=group_size)
    file = write_features(tmp_path / f"noisy{seed}.h5", images, [features])
    return (images, features, *screen(file, images, SWEEP))


def test_the_temperature_is_of_the_candidate_that_is_kept_not_of_a_mixture(tmp_path):
    images, features, result, heads = screened(tmp_path, seed=1, group_size=2)
    own, mixture = result.predictions["deployed"], result.predictions["unadjusted"]
    assert not np.allclose(own, mixture, atol=0.01)  # a half has chosen another candidate
    fold_0 = images["fold"].to_numpy() == 0
    of_fold = heads.warm_start.probabilities(features[fold_0])
    np.testing.assert_allclose(own[fold_0], of_fold, atol=1e-4)
    labels, groups = images["class_index"].to_numpy(), images["cluster"].to_numpy()
    calibration = calibrate(own, labels, groups)
    assert calibration.temperature != pytest.approx(calibrate(own, labels).temperature, rel=1e-3)
    assert heads.deployed.calibration == result.calibration == calibration
    assert heads.warm_start.calibration == calibration
    assert heads.ensemble_member.calibration.temperature == 1  # the ensemble has its own
    assert heads.deployed.rule.priors == pytest.approx(np.bincount(labels) / len(labels))


@pytest.mark.slow
def test_new_images_cost_less_log_loss_at_the_temperature_than_at_that_of_a_mixture(tmp_path):
    random = np.random.default_rng(99)
    labels = random.choice(3, 20_000, p=SHARES)
    features = (random.normal(size=(20_000, 6)) + np.eye(6)[labels]).astype(np.float32)

    def loss(probs, temperature):
        return float(METRICS["log_loss"].function(at_temperature(probs, temperature), labels, None))

    losses = []
    for seed in range(40):
        images, _, result, heads = screened(tmp_path, seed, 60)
        probs = heads.deployed.probabilities(features).astype(np.float64)
        mixture = calibrate(result.predictions["unadjusted"], images["class_index"].to_numpy())
        temperatures = 1.0, mixture.temperature, heads.deployed.calibration.temperature
        losses.append([loss(probs, temperature) for temperature in temperatures])
    plain, of_mixture, own = np.array(losses).T
    print(f"log loss of new images: T = 1 {plain.mean():.3f}, of the mixture "
          f"{of_mixture.mean():.3f}, own {own.mean():.3f}")  # fmt: skip
    for other in (plain, of_mixture):
        gain = other - own
        assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))
