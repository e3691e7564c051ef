"""Saliency against closed forms, and the sanity checks of the papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.stats import spearmanr

from hubretrain.cli import main
from hubretrain.errors import ModuleError
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.heads.heads import Head, ModuleHeads
from hubretrain.report.saliency.explain import explain_images
from hubretrain.report.saliency.gradients import (
    METHODS,
    Differentiable,
    grad_cam,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from hubretrain.report.saliency.overlay import eight_bits, overlaid
from hubretrain.runs import ModuleRecord, Run
from hubretrain.tensorflow import tf
from tests.samples import fit_record, write_digits, write_pooled
from tests.tolerances import assert_same_features

SIZE = 16
N_DELETIONS = 20


def red_square(row: int, column: int, seed: int = 0) -> np.ndarray:
    """A grey, noisy image with a red square of 5 x 5 pixels."""
    random = np.random.default_rng(seed)
    image = (0.45 + 0.1 * random.random((SIZE, SIZE, 1))).repeat(3, axis=2).astype(np.float32)
    image[row : row + 5, column : column + 5] = (0.9, 0.1, 0.1)
    return image


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
    image, models = red_square(4, 8), [random_model(seed) for seed in (0, 0, 1, 2, 3)]
    for method in METHODS:
        same, again, *others = (saliency(model, image, 0, method) for model in models)
        np.testing.assert_array_equal(same, again)
        ranks = [spearmanr(same.ravel(), other.ravel()).statistic for other in others]
        assert np.mean(np.nan_to_num(ranks)) < 0.6, method


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


def test_an_overlay_is_bright_where_the_map_is() -> None:
    levels = eight_bits(np.eye(SIZE, dtype=np.float32), "gradcam")
    assert levels.dtype == np.uint8
    assert set(np.unique(levels)) == {0, 255}
    picture = np.asarray(overlaid(np.full((SIZE, SIZE, 3), 100, np.uint8), levels), float)
    diagonal = picture.mean(axis=-1)[np.eye(SIZE, dtype=bool)]
    assert diagonal.min() > picture.mean(axis=-1)[~np.eye(SIZE, dtype=bool)].max()
    assert eight_bits(np.zeros((4, 4), np.float32), "gradcam").max() == 0


def write_flat(folder: Path) -> Path:
    """A module without a feature map: a matrix product of the pixels."""
    flat = tf.Module()
    matrix = np.random.default_rng(0).normal(0, 0.1, (SIZE * SIZE * 3, 20))
    flat.matrix = tf.Variable(matrix, dtype=tf.float32)
    spec = tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32)
    flat.__call__ = tf.function(
        lambda images: tf.reshape(images, (-1, SIZE * SIZE * 3)) @ flat.matrix,
        input_signature=[spec],
    )
    tf.saved_model.save(flat, str(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_of(write_pooled(tmp_path / "pooled", SIZE), tmp_path)


def run_of(folder: Path, place: Path) -> Run:
    """A run whose one module has a head, as far as explain reads it."""
    from hubretrain.modules import resolve
    from hubretrain.modules.backbone import Backbone

    stored = Backbone(resolve(str(folder))).stored
    run = Run(place / "run")
    random = np.random.default_rng(0)
    rule, weight = DecisionRule(0.0, (0.5, 0.5)), random.normal(0, 3, (20, 2))
    head = Head("softmax", weight, np.zeros(2), rule, np.ones(2))
    ModuleHeads(head, head, head, ("a", "b")).save(run.heads_file(folder.name), {})
    module = {"handle": str(folder), "image_size": SIZE, "value_range": "[0, 1]"}
    module |= {"module": folder.name, "module_sha256": stored.sha256}
    modules = {folder.name: ModuleRecord.of(module)}
    run.write_fit(fit_record(class_names=("a", "b"), shortlist=(folder.name,), modules=modules))
    return run


def test_the_command_draws_every_method_and_goes_on_past_a_broken_image(
    run: Run, tmp_path: Path
) -> None:
    images = sorted(write_digits(tmp_path / "digits", 2).rglob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    out = tmp_path / "out"
    ran = CliRunner().invoke(
        main, ["explain", str(run.folder), *map(str, images), str(broken), "--out", str(out)]
    )
    assert ran.exit_code == 1
    assert f"hubretrain: {broken}: no image of a known type" in ran.stderr
    for image in images:
        assert f"{image}: " in ran.stdout
        for method in METHODS:
            assert Image.open(out / f"{image.stem}_{method}.png").size == (SIZE, SIZE)
    first = (out / f"{images[0].stem}_saliency.png").read_bytes()
    again = ["explain", str(run.folder), str(images[0]), "--out", str(tmp_path / "again")]
    assert CliRunner().invoke(main, again).exit_code == 0
    assert (tmp_path / "again" / f"{images[0].stem}_saliency.png").read_bytes() == first
    only = [*again[:-1], str(tmp_path / "only"), "--method", "integrated", "--class", "b"]
    ran = CliRunner().invoke(main, only)
    assert f"{images[0]}: b " in ran.stdout
    assert not (tmp_path / "only" / f"{images[0].stem}_gradcam.png").exists()


def test_what_cannot_be_explained_is_said(run: Run, tmp_path: Path) -> None:
    image = next(write_digits(tmp_path / "digits", 1).rglob("*.png"))
    for place, options, why in (
        (tmp_path / "none", [], "holds no finished fit; run `hubretrain fit` first"),
        (run.folder, ["--class", "c"], "--class is 'c'; expected one of a, b."),
        (run.folder, ["--head", "other"], "other was not fitted in this run (there are: pooled)"),
    ):
        ran = CliRunner().invoke(main, ["explain", str(place), str(image), *options])
        assert ran.exit_code == 1
        assert why in ran.stderr


def test_grad_cam_that_is_asked_for_is_never_left_out_unsaid(tmp_path: Path) -> None:
    flat = run_of(write_flat(tmp_path / "flat"), tmp_path)
    image = next(write_digits(tmp_path / "digits", 1).rglob("*.png"))
    out = tmp_path / "out"
    usual = ["explain", str(flat.folder), str(image), "--out", str(out)]
    ran = CliRunner().invoke(main, [*usual, "--method", "smoothgrad", "--method", "gradcam"])
    assert ran.exit_code == 1
    assert "flat has no feature map for Grad-CAM; use smoothgrad or integrated." in ran.stderr
    assert CliRunner().invoke(main, usual).exit_code == 0
    assert {path.name.rpartition("_")[2] for path in out.iterdir()} == {
        "smoothgrad.png",
        "integrated.png",
        "saliency.png",
    }
    ran = CliRunner().invoke(main, [*usual, "--seed", "-1"])
    assert ran.exit_code == 2
    assert "-1 is not in the range x>=0" in ran.stderr


def test_no_two_images_write_the_same_file(run: Run, tmp_path: Path) -> None:
    first, second, third = sorted(write_digits(tmp_path / "digits", 3).rglob("*.png"))
    images = [tmp_path / "a.png", tmp_path / "b" / "a.png", tmp_path / "a_2.png"]
    images[1].parent.mkdir()
    for image, source in zip(images, (first, second, third), strict=True):
        image.write_bytes(source.read_bytes())
    found = explain_images(run.folder, images, tmp_path / "out", methods=["smoothgrad"])
    assert [one.pictures[0].name for one in found] == [
        "a_smoothgrad.png",
        "a_2_smoothgrad.png",
        "a_2_2_smoothgrad.png",
    ]
