from __future__ import annotations

import numpy as np
import pytest

from tests.finetuning.runs import copied, tune


def test_tensorboard_gets_every_epoch(fitted, tmp_path):
    from hubretrain.tensorflow import tf

    run = copied(fitted, tmp_path)
    history = tune(fitted, run, epochs=2).history
    logged = {}
    for path in sorted((run.finetune_folder("small") / "tensorboard").iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                logged[value.tag, event.step] = value.simple_value
    for epoch in range(3):
        expected = history["validation_loss"][epoch]
        assert logged["epoch/validation_loss", epoch] == pytest.approx(expected, rel=1e-6)
    assert ("epoch/loss", 0) not in logged


def test_a_history_whose_last_row_a_kill_took_is_whole_again(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    tune(fitted, run, epochs=2)
    path = run.finetune_folder("small") / "history.csv"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    tune(fitted, run, resume=True)
    assert path.read_bytes() == whole


def test_a_warm_up_of_the_head_takes_no_patience_from_the_training(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    options = {"epochs": 2, "warmup_head": 4, "learning_rate": 3.0, "unfreeze_last": 0}
    history = tune(fitted, run, **options).history
    assert np.argmin(history["validation_loss"][:5]) == 0  # nothing was better for 4 epochs
    assert history["phase"].tolist() == ["head"] * 5 + ["all"] * 2
