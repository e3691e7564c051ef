"""Fine-tuning that starts from a head on features of inner layers, or from a hidden layer."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from hubretrain.modules import Backbone, Classifier, resolve
from hubretrain.runs import Run
from tests.finetuning.heads import KINDS, give_head, pixels_of
from tests.finetuning.runs import copied, tune, write_run
from tests.samples import at_temperature, write_digits, write_residual

SIZE = 16


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A fitted module with a shortcut and BatchNorm; no test writes there."""
    folder = tmp_path_factory.mktemp("fitted")
    write_digits(folder / "digits", 120)
    write_run(folder, write_residual(folder / "residual", SIZE))
    return folder


@pytest.fixture(scope="module")
def stored(fitted):
    return resolve(str(fitted / "residual"))


@pytest.fixture(scope="module")
def folds(fitted):
    return pd.read_csv(Run(fitted / "run").folds_file, dtype=str)


@pytest.fixture(scope="module")
def pixels(fitted, folds):
    return pixels_of(fitted, folds["path"], SIZE)


@pytest.fixture
def run_with(fitted, tmp_path, stored, pixels):
    """A function that gives a copy of the run, and the head that fine-tuning starts from there."""

    def make(kind, has_layers=True, name="run"):
        run = copied(fitted, tmp_path, name)
        return run, give_head(run, stored, pixels, kind, has_layers=has_layers)

    return make


@pytest.mark.parametrize(("kind", "has_layers"), KINDS)
def test_epoch_0_is_the_head_on_cached_features(
    fitted, run_with, stored, folds, pixels, kind, has_layers
):
    run, head = run_with(kind, has_layers)
    result = tune(fitted, run, epochs=1)
    features = Backbone(stored, head.layers)(pixels).numpy()
    probs = head.probabilities(features)
    labels = folds["label"].astype(int).to_numpy()
    is_validation = (folds["fold"] == "0").to_numpy()
    weights = head.weight_of_class[labels]
    if kind == "logistic":  # a yes-no decision for each class
        scores = 1 / (1 + np.exp(-head.logits(features)))
        is_label = np.arange(3) == labels[:, None]
        losses = -np.log(np.where(is_label, scores, 1 - scores)).sum(axis=1)
    else:
        calibrated = at_temperature(probs, head.calibration.temperature)
        losses = -np.log(calibrated[np.arange(len(labels)), labels])
    epoch = result.history.iloc[0]
    expected = np.average(losses[is_validation], weights=weights[is_validation])
    assert epoch["validation_loss"] == pytest.approx(expected, rel=1e-4)
    hits = probs.argmax(axis=1) == labels
    assert epoch["validation_accuracy"] == pytest.approx(hits[is_validation].mean(), abs=1e-6)
    assert result.head_test["unadjusted_accuracy"][0] == pytest.approx(
        hits[(folds["fold"] == "test").to_numpy()].mean(), abs=1e-6
    )


def of_inner_layers_alone(stored, kind="softmax"):
    """A classifier that the module's own output has no influence on, and its images."""
    points = [point.name for point in stored.layer_points]
    backbone = Backbone(stored, points[:2])  # of the stem and of the block, below the head
    random = np.random.default_rng(1)
    weight = random.normal(size=(backbone.n_features, 3)).astype(np.float32)
    weight[: stored.n_features] = 0
    if kind == "mlp":
        arrays = (random.normal(size=(3, 3)), np.zeros(3), weight, np.ones(3, np.float32))
    else:
        arrays = (weight, np.zeros(3))
    return Classifier(backbone, kind, *(np.asarray(a, np.float32) for a in arrays))


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_gradients_reach_what_feeds_only_inner_layers(stored, pixels, kind):
    from hubretrain.tensorflow import tf

    classifier = of_inner_layers_alone(stored, kind)
    labels, weights = np.arange(8) % 3, np.full(8, 1 / 8, np.float32)
    variables = {v.name: v for v in classifier.backbone.trainable_variables}

    def loss():
        return classifier.loss(classifier.logits(pixels[:8]), labels, weights)

    with tf.GradientTape() as tape:
        value = loss()
    gradients = dict(zip(variables, tape.gradient(value, [*variables.values()]), strict=True))
    assert all(np.isfinite(g).all() for g in gradients.values() if g is not None)
    for name, gradient in gradients.items():
        if "head_conv" in name or "block_project" in name:  # above the two layers
            assert gradient is None or not np.any(gradient), name
        else:
            assert np.any(gradient), name
    (name,) = (n for n in variables if n.startswith("stem_conv"))
    variable, start = variables[name], variables[name].numpy()
    direction = np.sign(gradients[name].numpy())
    step = 1e-3
    ends = []
    for sign in (1, -1):
        variable.assign(start + sign * step * direction)
        ends.append(float(loss()))
    variable.assign(start)
    slope = (ends[0] - ends[1]) / (2 * step)
    assert slope == pytest.approx(float(np.abs(gradients[name]).sum()), rel=2e-2)


def test_gradients_of_a_constant_layer_are_finite(stored):
    from hubretrain.tensorflow import tf

    classifier = of_inner_layers_alone(stored)
    grey = np.full((2, SIZE, SIZE, 3), 0.5, np.float32)
    with tf.GradientTape() as tape:
        loss = classifier.loss(classifier.logits(grey), np.array([0, 1]), np.ones(2, np.float32))
    gradients = tape.gradient(loss, classifier.backbone.trainable_variables)
    assert all(np.isfinite(g).all() for g in gradients if g is not None)


def test_layers_are_counted_as_without_features_of_inner_ones(stored):
    names = [point.name for point in stored.layer_points]
    with_layers, without = Backbone(stored, names).layers(), Backbone(stored).layers()
    assert [name for name, _ in with_layers] == [name for name, _ in without]


def test_batchnorm_that_is_trained_follows_the_batches(fitted, run_with):
    from hubretrain.tensorflow import tf

    def moving_mean(path):
        reader = tf.train.load_checkpoint(str(path))
        values = [
            reader.get_tensor(name)
            for name, shape in reader.get_variable_to_shape_map().items()
            if shape == [6] and "variables/" in name and "optimizer" not in name
        ]
        return np.sort(np.concatenate(values))

    run, _ = run_with("softmax")
    ends = []
    for trained in (False, True):
        result = tune(
            fitted, run, epochs=1, train_batchnorm=trained, learning_rate=1e-12, restart=True
        )
        assert np.isfinite(result.history["validation_loss"]).all()
        (last,) = (run.finetune_folder("residual") / "checkpoint").glob("at_*.index")
        ends.append(moving_mean(last.with_suffix("")))
    # Nothing is learned at this rate, so statistics of BatchNorm are all that can differ.
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_training_lowers_the_loss_and_changes_the_whole_head(fitted, run_with, kind):
    from hubretrain.tensorflow import tf

    run, head = run_with(kind)
    history = tune(fitted, run, epochs=3, l2_sp=0.01, depth_decay=0.3).history
    assert history["loss"].iloc[-1] < history["loss"].iloc[1]
    (last,) = (run.finetune_folder("residual") / "checkpoint").glob("at_*.index")
    reader = tf.train.load_checkpoint(str(last.with_suffix("")))
    shapes = reader.get_variable_to_shape_map()
    arrays = [a for a in (head.hidden_weight, head.weight) if a is not None]
    for array in arrays:
        trained = [
            reader.get_tensor(name)
            for name, shape in shapes.items()
            if name.startswith("variables/") and shape == [*array.shape]
        ]
        assert len(trained) == 1
        assert not np.any(np.all(trained[0] == array, axis=1))  # no row is as it was


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "unfreeze_last"),
    [
        ("mlp", 0),
        ("softmax", 3),
        pytest.param("softmax", 0, marks=SLOW),
        pytest.param("mlp", 1, marks=SLOW),
    ],
)
def test_epochs_on_cached_activations_and_layers_are_those_on_pixels(
    fitted, run_with, kind, unfreeze_last
):
    histories = []
    for views in (0, 3):
        run, head = run_with(kind, name=f"run{views}")
        result = tune(
            fitted, run, unfreeze_last=unfreeze_last, trunk_views=views, learning_rate=3e-4
        )
        assert [note.startswith("The frozen part's act") for note in result.notes] == [True][:views]
        histories.append(result.history)
    # Below: all layers; stem and block (6 and 8 channels); none, as the stem itself is the cut.
    n_below = {0: head.n_features - 10, 1: 2 * (6 + 8), 3: 0}[unfreeze_last]
    names = ["validation", "view_001", "view_002", "view_003"]
    layers = [f"{name}_layers" for name in names if n_below]
    with h5py.File(run.finetune_folder("residual") / "trunk.h5") as file:
        assert sorted(file) == sorted([*names, *layers])
        assert {file[name].dtype for name in names} == {np.dtype(np.float16)}
        assert {(file[name].dtype, file[name].shape[1]) for name in layers} <= {
            (np.dtype(np.float32), n_below)
        }
        assert all(np.isfinite(dataset[:]).all() for dataset in file.values())
    for name in ("loss", "validation_loss"):
        one, other = (h[name].to_numpy() for h in histories)
        assert np.allclose(one, other, rtol=1e-2, equal_nan=True), (name, one, other)


def test_what_is_left_of_layers_is_computed(fitted, run_with):
    run, _ = run_with("softmax")
    tune(fitted, run, epochs=1, unfreeze_last=1, trunk_views=2)
    path = run.finetune_folder("residual") / "trunk.h5"
    with h5py.File(path, "r+") as file:
        whole = file["view_001_layers"][:]
        file["view_001_layers"][3] = np.nan  # as a kill leaves it
    tune(fitted, run, resume=True, more_epochs=2)
    with h5py.File(path, "r") as file:
        assert np.array_equal(file["view_001_layers"][:], whole)


def test_a_training_does_not_go_on_from_another_head(fitted, run_with, stored, pixels):
    from hubretrain.errors import RunError

    run, _ = run_with("softmax")
    tune(fitted, run, epochs=1)
    give_head(run, stored, pixels, "logistic", has_layers=True)
    with pytest.raises(RunError, match=r"on other data or another module: its head was"):
        tune(fitted, run, resume=True)


def test_the_export_gives_what_the_trained_model_gave(fitted, run_with):
    from hubretrain.export import Export, predict_images

    run, _ = run_with("mlp")
    assert tune(fitted, run, epochs=2, export="fine-tuned").kept_epoch > 0
    table = pd.read_csv(run.finetune_folder("residual") / "predictions.csv")
    probs = table[[f"p({name})" for name in "012"]].to_numpy()
    manifest = Export.open(run.export_folder).manifest
    assert manifest["temperature"] >= 1  # the fold has chosen the epoch
    labels = table["label"].astype(str)
    assert manifest["test"]["log_loss"][0] == pytest.approx(
        log_loss(labels, probs / probs.sum(axis=1, keepdims=True)), abs=1e-4
    )
    paths = [fitted / "digits" / path for path in table["path"]]
    exported = [
        [dict(prediction.classes)[name] for name in "012"]
        for prediction in predict_images(run.export_folder, paths)
    ]
    # Probabilities in the file have six digits.
    assert np.allclose(exported, probs, atol=1e-4)
