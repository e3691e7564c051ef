from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from hubretrain.errors import RunError
from tests.samples import REPOSITORY


def made(folder, shape=(3,), identity=None, value=0.0):
    from hubretrain.finetuning.checkpoints import Checkpoints
    from hubretrain.finetuning.optimizers import Optimizer
    from hubretrain.tensorflow import tf

    variable = tf.Variable(np.full(shape, value, np.float32))
    optimizer = Optimizer([([variable], 1.0)])
    return variable, Checkpoints(folder, [variable], [optimizer], identity or {"seed": 0})


def test_counters_are_those_of_the_callbacks_of_keras():
    import tf_keras

    from hubretrain.finetuning.checkpoints import State

    losses = [1.0, 0.9, 0.95, 0.96, 0.8, 0.85, 0.86, 0.87, 0.88, 0.89, 0.9]
    model = tf_keras.Sequential([tf_keras.layers.Dense(1)])
    model.compile(tf_keras.optimizers.SGD(1.0))
    plateau = tf_keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=0)
    stopping = tf_keras.callbacks.EarlyStopping("loss", patience=5)
    state = State(base_epochs=20, epochs=20)
    for callback in (plateau, stopping):
        callback.set_model(model)
        callback.on_train_begin()
    model.stop_training = False
    for epoch, loss in enumerate(losses):
        state.epoch = epoch
        state.choose(-loss, loss)
        state.count(loss, patience=5, reduce_after=2, factor=0.5)
        for callback in (plateau, stopping):
            callback.on_epoch_end(epoch, {"loss": loss})
        assert state.scale == float(model.optimizer.learning_rate)
        assert state.stopped == model.stop_training
        if state.stopped:
            break
    assert (state.best_epoch, epoch) == (4, 9)


def test_of_epochs_with_equal_scores_the_one_of_the_least_loss_is_kept():
    from hubretrain.finetuning.checkpoints import State

    state = State(9, 9)
    for epoch, score, loss in ((0, 0.5, 1.0), (1, 0.6, 2.0), (2, 0.6, 1.9), (3, 0.55, 0.1)):
        state.epoch = epoch
        assert state.choose(score, loss) == (epoch < 3)
    assert (state.best_epoch, state.best_score, state.loss_of_best) == (2, 0.6, 1.9)


def test_without_patience_nothing_ends_early():
    from hubretrain.finetuning.checkpoints import State

    state = State(90, 90)
    for loss in range(90):
        state.count(float(loss), patience=None, reduce_after=2, factor=0.5)
    assert not state.stopped


def test_what_was_saved_is_restored_with_its_counters(tmp_path):
    from hubretrain.finetuning.checkpoints import State

    variable, checkpoints = made(tmp_path, value=1.5)
    state = State(5, 7, epoch=2, batch=3, loss_sum=0.1 + 0.2, step=23, best_epoch=1, least_loss=0.3)
    state.history = [{"epoch": 0, "loss": float("nan")}]
    checkpoints.save(state, is_best=True)
    variable.assign([9, 9, 9])
    other, again = made(tmp_path)
    restored = again.restore()
    assert np.array_equal(other, [1.5] * 3)
    assert np.isnan(restored.history[0].pop("loss"))
    state.history[0].pop("loss")
    assert restored == state
    other.assign([0, 0, 0])
    again.read_best(restored)
    assert np.array_equal(other, [1.5] * 3)


def test_only_the_last_checkpoint_and_the_best_stay(tmp_path):
    from hubretrain.finetuning.checkpoints import State

    _, checkpoints = made(tmp_path)
    for epoch in range(4):
        state = State(5, 5, epoch=epoch, best_epoch=min(epoch, 2))
        checkpoints.save(state, is_best=epoch < 3)
    names = {p.name.split(".")[0] for p in (tmp_path / "checkpoint").iterdir()}
    assert names == {"state", "at_0003_000000", "best_0002"}


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    from hubretrain.finetuning.checkpoints import State

    made(tmp_path)[1].save(State(1, 1, best_epoch=0), is_best=True)
    with pytest.raises(RunError, match=r"at_0000_000000 does not fit this model .*`restart=True`"):
        made(tmp_path, shape=(4,))[1].restore()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    from hubretrain.finetuning.checkpoints import State

    _, checkpoints = made(tmp_path)
    checkpoints.save(State(1, 1, best_epoch=0), is_best=True)
    (data,) = (tmp_path / "checkpoint").glob("at_*.data*")
    data.write_bytes(b"")
    with pytest.raises(RunError, match=r"at_0000_000000 does not fit this model"):
        checkpoints.restore()
    (tmp_path / "checkpoint" / "state.json").write_text("{}")
    with pytest.raises(RunError, match=r"state.json is damaged .*start again with `restart"):
        checkpoints.restore()


def test_a_checkpoint_of_other_options_is_refused(tmp_path):
    from hubretrain.finetuning.checkpoints import State

    made(tmp_path)[1].save(State(1, 1, best_epoch=0), is_best=True)
    expected = r"holds a fine-tuning with seed = 0, but `seed` is 1; continue it with `resume=True`"
    with pytest.raises(RunError, match=expected):
        made(tmp_path, identity={"seed": 1})[1].restore()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.finetuning.test_checkpoints import made
from hubretrain.finetuning.checkpoints import State
from hubretrain.errors import RunError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
variable, checkpoints = made(Path(sys.argv[2]), shape=(100_000,), value=1.0)
checkpoints.save(State(3, 3, epoch=1, best_epoch=1), is_best=True)
variable.assign(2 * variable)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(State(3, 3, epoch=2, best_epoch=2), is_best=True)
except RunError as error:
    print(error)
"""


def test_on_a_full_disk_the_last_good_checkpoint_survives(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(REPOSITORY), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "checkpoint/ cannot be written (" in ran.stdout
    assert "free disk space and rerun the command" in ran.stdout
    variable, checkpoints = made(tmp_path, shape=(100_000,))
    state = checkpoints.restore()
    assert state.epoch == 1
    assert np.array_equal(variable, np.ones(100_000))
    checkpoints.read_best(state)
    json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    checkpoints.save(state, is_best=True)  # and what the failure left is cleared away
    names = {p.name.split(".")[0] for p in (tmp_path / "checkpoint").iterdir()}
    assert names == {"state", "at_0001_000000", "best_0001"}
