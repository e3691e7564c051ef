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
