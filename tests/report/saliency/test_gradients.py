"""Saliency against closed forms, and the sanity checks of the papers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from hubretrain.errors import ModuleError
from hubretrain.report.saliency.gradients import (
    METHODS,
    Differentiable,
    grad_cam,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from hubretrain.tensorflow import tf
from tests.report.saliency.samples import SIZE, red_square
from tests.tolerances import assert_same_features

N_DELETIONS = 20


def colours(kernel: np.ndarray, dense: np.ndarray, bias: float = 0.0) -> Differentiable:
    """Convolution, ReLU, mean, dense, softmax: class 0 is red, where the weights say so."""
    kernel_variable = tf.Variable(kernel, dtype=tf.float32)
    dense_variable = tf.Variable(dense, dtype=tf.float32)

    def probabilities(images):
        x = tf.nn.relu(tf.nn.conv2d(images, kernel_variable, 1, "SAME"))
        logits = tf.reduce_mean(x, (1, 2)) @ dense_variable
        return tf.nn.softmax(logits + tf.constant([0.0, bias]))

    model = Differentiable(probabilities, SIZE, "colours")
    model.kept = (kernel_variable, dense_variable)  # type: ignore[attr-defined]
    return model


def red_model() -> Differentiable:
    """Its first channel is redness, its second greenness; redness speaks for class 0."""
    kernel = np.zeros((1, 1, 3, 2), np.float32)
    kernel[0, 0, :, 0], kernel[0, 0, :, 1] = (1, -0.5, -0.5), (-0.5, 1, -0.5)
    return colours(kernel, np.array([[40.0, -40.0], [-4.0, 4.0]]), bias=2.0)


def random_model(seed: int = 0) -> Differentiable:
    random = np.random.default_rng(seed)
    return colours(random.normal(0, 1, (3, 3, 3, 6)), random.normal(0, 3, (6, 2)))


def deletion_score(
    model: Differentiable, image: np.ndarray, of_class: int, order: np.ndarray
) -> float:
    """Mean probability of a class while pixels are greyed, the most salient first.

    The lower, the better the map shows what the model looks at. Petsiuk, Das and Saenko (2018),
    RISE, https://arxiv.org/abs/1806.07421, section 4.2.
    """
    ranks = np.argsort(np.argsort(-order.ravel(), kind="stable")).reshape(order.shape)
    shares = np.linspace(0, 1, N_DELETIONS + 1)
    is_grey = ranks[np.newaxis] < (shares * order.size)[:, None, None]
    copies = np.where(is_grey[..., np.newaxis], np.float32(image.mean()), image[np.newaxis])
    return float(model.probabilities(copies.astype(np.float32))[:, of_class].mean())


def test_grad_cam_is_the_class_activation_map_where_a_mean_is_all_that_follows() -> None:
    # Selvaraju et al., section 3.1: Grad-CAM generalises CAM, the weighted sum of the maps.
    model, image = red_model(), red_square(4, 8)
    kernel, dense = (variable.numpy() for variable in model.kept)
    maps = np.maximum(image @ kernel[0, 0], 0)
    centred = dense[:, 0] - dense.mean(axis=1)
    expected = np.maximum(maps @ centred, 0) / SIZE**2
    assert_same_features(grad_cam(model, image, 0), expected, model.kept)
    assert model.map_shape == (SIZE, SIZE, 2)


def test_grad_cam_of_a_head_on_all_layers_is_of_the_deepest_map() -> None:
    random = np.random.default_rng(1)
    shapes = ((3, 3, 3, 6), (3, 3, 6, 5), (22, 2))
    first, second, dense = (tf.constant(random.normal(0, 1, shape), tf.float32) for shape in shapes)
    tangled: list[np.ndarray] = []

    def probabilities(images):
        early = tf.nn.relu(tf.nn.conv2d(images, first, 1, "SAME"))
        deep = tf.nn.relu(tf.nn.conv2d(early, second, 2, "SAME"))
        features = []
        for maps in (tf.identity(deep), early):  # the earlier map is read last
            mean = tf.reduce_mean(maps, (1, 2), keepdims=True)
            variance = tf.reduce_mean(tf.math.squared_difference(maps, mean), (1, 2))
            features += [tf.squeeze(mean, (1, 2)), tf.sqrt(variance + 1e-4)]
        if tf.executing_eagerly():
            tangled.append(deep.numpy())
        return tf.nn.softmax(tf.concat(features, axis=1) @ dense)

    model = Differentiable(probabilities, SIZE, "layers")
    assert model.map_shape == (SIZE // 2, SIZE // 2, 5)
    image = red_square(4, 8)[np.newaxis]
    results = model.derive(image, np.array([0]))
    probabilities(tf.constant(image))
    assert np.allclose(results["map"], tangled[-1], atol=1e-5)
    assert np.abs(results["map_gradients"]).max() > 0


def test_integrated_gradients_sum_to_the_change_of_the_score() -> None:
    model, image = random_model(), red_square(2, 3)
    both = np.stack([image, np.zeros_like(image)])
    score = model.derive(both, np.array([1, 1]))["score"]
    found = integrated_gradients(model, image, 1, n_steps=200)
    assert found.sum() == pytest.approx(score[0] - score[1], rel=0.01)


def test_the_gradient_is_that_of_finite_differences() -> None:
    model, image = random_model(), red_square(2, 3)
    slope = model.derive(image[None], np.array([0]))["pixels"][0]
    for row, column, channel in ((2, 3, 0), (9, 9, 1), (15, 0, 2)):
        step = np.zeros_like(image)
        step[row, column, channel] = 2e-3
        up, down = model.derive(np.stack([image + step, image - step]), np.array([0, 0]))["score"]
        assert slope[row, column, channel] == pytest.approx((up - down) / 4e-3, rel=0.1, abs=3e-3)


@pytest.mark.parametrize("method", METHODS)
def test_maps_find_the_square_and_delete_it_better_than_chance(method: str) -> None:
    model, random = red_model(), np.random.default_rng(0)
    better = []
    for i, (row, column) in enumerate(((1, 1), (9, 4), (5, 10))):
        image = red_square(row, column, i)
        assert model.probabilities(image[None])[0, 0] > 0.5
        found = saliency(model, image, 0, method)
        assert found.shape == (SIZE, SIZE)
        assert found.min() >= 0
        inside = found[row : row + 5, column : column + 5].mean()
        outside = (found.sum() - 25 * inside) / (SIZE**2 - 25)
        if method != "smoothgrad":
            assert inside > 2 * outside
        chance = [
            deletion_score(model, image, 0, random.random((SIZE, SIZE)).astype(np.float32))
            for _ in range(5)
        ]
        better.append(deletion_score(model, image, 0, found) < np.mean(chance))
    assert all(better)


def test_a_map_changes_with_the_weights_and_with_nothing_else() -> None:
    # Adebayo et al.: a map that does not is no explanation but an edge detector.
    # The Grad-CAM of models 1 and 3 is zero everywhere, which no correlation is defined for.
    image, models = red_square(4, 8), [random_model(seed) for seed in (0, 0, 2, 4, 5)]
    for method in METHODS:
        same, again, *others = (saliency(model, image, 0, method) for model in models)
        np.testing.assert_array_equal(same, again)
        ranks = [spearmanr(same.ravel(), other.ravel()).statistic for other in others]
        assert np.mean(ranks) < 0.6, method


def test_noise_follows_the_seed() -> None:
    model, image = random_model(), red_square(4, 8)
    first = smooth_grad(model, image, 0, seed=1)
    np.testing.assert_array_equal(first, smooth_grad(model, image, 0, seed=1))
    assert not np.array_equal(first, smooth_grad(model, image, 0, seed=2))


def test_grad_cam_of_a_model_without_a_feature_map_is_refused_and_the_rest_goes_on() -> None:
    weight = tf.Variable(
        np.random.default_rng(0).normal(0, 1, (SIZE * SIZE * 3, 2)), dtype="float32"
    )
    model = Differentiable(
        lambda images: tf.nn.softmax(tf.reshape(images, (-1, SIZE * SIZE * 3)) @ weight),
        SIZE,
        "flat",
    )
    image = red_square(4, 8)
    assert model.map_shape is None
    with pytest.raises(ModuleError, match="flat has no feature map for Grad-CAM; use smoothgrad"):
        grad_cam(model, image, 0)
    centred = (weight.numpy()[:, 0] - weight.numpy().mean(axis=1)).reshape(SIZE, SIZE, 3)
    np.testing.assert_allclose(
        integrated_gradients(model, image, 0), image * centred, rtol=1e-3, atol=1e-5
    )


def test_the_score_of_a_label_is_its_own_logit_whatever_the_other_labels() -> None:
    dense = tf.constant([[3.0, -2.0], [-1.0, 4.0], [0.5, 0.5]])

    def probabilities(images):
        return tf.nn.sigmoid(tf.reduce_mean(images, (1, 2)) @ dense)

    model = Differentiable(probabilities, SIZE, "labels", multi_label=True)
    images = np.random.default_rng(0).random((3, SIZE, SIZE, 3)).astype(np.float32)
    for label in (0, 1):
        results = model.derive(images, np.full(3, label))
        logits = images.mean(axis=(1, 2)) @ dense.numpy()[:, label]
        np.testing.assert_allclose(results["score"], logits, atol=1e-4)
        expected = np.broadcast_to(dense.numpy()[:, label] / SIZE**2, images.shape)
        np.testing.assert_allclose(results["pixels"], expected, rtol=1e-3, atol=1e-7)
