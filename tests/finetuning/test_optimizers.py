from __future__ import annotations

import numpy as np
import pytest


def variables(n, value=1.0):
    from hubretrain.tensorflow import tf

    return [tf.Variable([value, value]) for _ in range(n)]


def test_at_one_rate_it_is_the_adam_of_keras():
    import tf_keras

    from hubretrain.finetuning.optimizers import Optimizer, depth_groups

    mine, theirs = variables(3), variables(3)
    optimizer = Optimizer(depth_groups([[v] for v in mine], 1.0))
    adam = tf_keras.optimizers.Adam(jit_compile=False)
    random = np.random.default_rng(0)
    for step in range(5):
        gradients = [random.normal(size=2).astype(np.float32) for _ in mine]
        optimizer.set_rate(0.1 / (step + 1))
        adam.learning_rate.assign(0.1 / (step + 1))
        optimizer.apply(gradients)
        adam.apply_gradients(zip(map(np.asarray, gradients), theirs, strict=True))
    for one, other in zip(mine, theirs, strict=True):
        assert np.array_equal(one, other)


def test_rates_grow_geometrically_with_depth():
    from hubretrain.finetuning.optimizers import N_RATES, Optimizer, depth_groups

    layers = [[v] for v in variables(40)]
    optimizer = Optimizer(depth_groups(layers, 0.01))
    assert len(optimizer.shares) == N_RATES
    assert (optimizer.shares[0], optimizer.shares[-1]) == (0.01, 1.0)
    assert np.allclose(np.diff(np.log(optimizer.shares)), np.log(100) / (N_RATES - 1))
    assert [id(v) for v in optimizer.trained] == [id(layer[0]) for layer in layers]
    optimizer.set_rate(1e-3)
    optimizer.apply([np.ones(2, np.float32)] * 40)
    moved = [1 - float(layer[0][0]) for layer in layers]  # Adam's first step is the rate itself
    assert moved[0] == pytest.approx(1e-5, rel=0.05)
    assert moved[-1] == pytest.approx(1e-3, rel=0.01)
    assert moved == sorted(moved)


def gradients_of(optimizer, random):
    return [random.normal(size=v.shape).astype(np.float32) for v in optimizer.trained]


def test_a_share_by_row_trains_as_on_inputs_of_that_scale():
    import tf_keras

    from hubretrain.finetuning.optimizers import Optimizer
    from hubretrain.tensorflow import tf

    random = np.random.default_rng(0)
    start, share = random.normal(size=(3, 2)), np.array([[0.25], [1.0], [8.0]])
    weight = tf.Variable(start, dtype=tf.float32)
    scaled = tf.Variable(start / share, dtype=tf.float32)  # weights of inputs times the share
    optimizer = Optimizer([([weight], 1.0)], {id(weight): tf.Variable(share, dtype=tf.float32)})
    adam = tf_keras.optimizers.Adam(jit_compile=False)
    for step in range(5):
        (gradient,) = gradients_of(optimizer, random)
        gradient += np.sign(gradient)  # away from Adam's epsilon of 1e-7, which is not scaled
        for one in (optimizer.adams[0], adam):
            one.learning_rate.assign(0.1 / (step + 1))
        optimizer.apply([gradient])
        adam.apply_gradients([(gradient * share.astype(np.float32), scaled)])
    np.testing.assert_allclose(weight, scaled * share, atol=1e-5)


def test_an_average_over_the_steps_is_the_one_of_tensorflow():
    from hubretrain.finetuning.optimizers import Optimizer
    from hubretrain.tensorflow import tf

    random = np.random.default_rng(0)
    optimizer = Optimizer([(variables(2), 1.0)], momentum=0.3)
    optimizer.set_rate(0.1)
    expected = tf.Variable(optimizer.trained[0])
    for step in range(8):
        optimizer.apply(gradients_of(optimizer, random))
        momentum = min(0.3, (1 + step) / (10 + step))  # ExponentialMovingAverage(num_updates=step)
        expected.assign(momentum * expected + (1 - momentum) * optimizer.trained[0])
    raw = [v.numpy() for v in optimizer.trained]
    with optimizer.averaged():
        np.testing.assert_allclose(optimizer.trained[0], expected, rtol=1e-6)
        assert not np.array_equal(optimizer.trained[0], raw[0])
    assert all(np.array_equal(v, old) for v, old in zip(optimizer.trained, raw, strict=True))


def test_gradients_that_overflow_are_skipped_as_keras_does(monkeypatch):
    import tf_keras

    from hubretrain.finetuning import optimizers

    monkeypatch.setattr(optimizers, "STEPS_TO_DOUBLE", 3)
    mine, theirs = variables(2), variables(2)
    optimizer = optimizers.Optimizer([([mine[0]], 1.0), ([mine[1]], 1.0)], is_scaled=True)
    adam = tf_keras.optimizers.Adam(jit_compile=False)
    keras = tf_keras.mixed_precision.LossScaleOptimizer(adam, dynamic_growth_steps=3)
    optimizer.set_rate(0.1)
    adam.learning_rate.assign(0.1)
    random, scales = np.random.default_rng(0), []
    for step in range(12):
        gradients = gradients_of(optimizer, random)
        if step in (0, 1, 6):
            gradients[step % 2][0] = (np.inf, np.nan)[step % 2]  # of one variable only
        scale = np.float32(optimizer.loss_scale)
        assert scale == np.float32(keras.loss_scale)
        scales.append(float(scale))
        optimizer.apply([g * scale for g in gradients])
        unscaled = keras.get_unscaled_gradients([np.asarray(g * scale) for g in gradients])
        keras.apply_gradients(zip(unscaled, theirs, strict=True))
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    assert scales[:4] == [2.0**15, 2.0**14, 2.0**13, 2.0**13]
    assert max(scales[3:]) > min(scales)  # and it has risen again


def test_the_head_is_trained_as_on_standardised_inputs_and_not_too_many():
    from hubretrain.finetuning.steps import N_INPUTS, shares_of_inputs

    random = np.random.default_rng(0)
    scale = np.array([1e-3, 1, 1, 64, 1000], np.float32)
    rows = random.normal(size=(200, 5)).astype(np.float32) * scale
    shares = shares_of_inputs(rows)
    assert np.all(np.abs(np.log2(shares * scale)) <= 0.6)  # rounded to powers of 2
    np.testing.assert_array_equal(shares_of_inputs(rows * 4), shares / 4)
    many = np.tile(rows, (1, 16 * N_INPUTS // 5 + 1))[:, : 16 * N_INPUTS]
    np.testing.assert_array_equal(shares_of_inputs(many)[:5], shares / 16)
    dead = np.concatenate([rows[:, :3], np.zeros((200, 1), np.float32)], axis=1)
    assert np.isfinite(shares_of_inputs(dead)).all()
