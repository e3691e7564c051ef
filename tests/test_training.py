from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import write_digits, write_module

from hubretrain.cache import cache_bottlenecks
from hubretrain.contents import usable_images
from hubretrain.dataset import open_dataset
from hubretrain.errors import ModuleError, RunError
from hubretrain.fit import screen_modules
from hubretrain.heads import Heads
from hubretrain.modules import resolve
from hubretrain.runs import Run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A data set, its cache and a fitted run, shared by the tests; none of them writes there."""
    place = tmp_path_factory.mktemp("fitted")
    write_digits(place / "digits", 150)
    module = write_module(place / "small", n_features=12, seed=5)
    data = open_dataset(place / "digits")
    cache_bottlenecks(data, [resolve(str(module))], folder=place / "cache", n_views=1, quiet=True)
    screen_modules(data, Run(place / "run"), cache=place / "cache", quiet=True)
    return place


def copied(fitted, tmp_path, name="run"):
    import shutil

    shutil.copytree(fitted / "run", tmp_path / name)
    return Run(tmp_path / name)


def tune(fitted, run, **options):
    from hubretrain.finetune import finetune_module
    from hubretrain.tuning import Tuning

    asked = {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, **options}
    names = ("module", "resume", "more_epochs", "restart", "seconds_between_checkpoints")
    others = {name: asked.pop(name) for name in names if name in asked}
    data, tuning = open_dataset(fitted / "digits"), Tuning(**asked)
    return finetune_module(data, run, cache=fitted / "cache", tuning=tuning, quiet=True, **others)


def test_before_the_first_step_the_model_says_what_the_head_said(fitted):
    from hubretrain.bottlenecks import Bottlenecks
    from hubretrain.classifier import Classifier
    from hubretrain.images import decode, view
    from hubretrain.modules.backbone import Backbone

    heads = Heads.load(fitted / "run" / "heads" / "small.h5")
    classifier = Classifier(
        Backbone(resolve(str(fitted / "small"))), heads.kind, heads.weight[:, 1], heads.bias[1]
    )
    images = usable_images(open_dataset(fitted / "digits"), fitted / "cache", quiet=True)
    with Bottlenecks(fitted / "cache" / "digits" / "small.h5") as bottlenecks:
        expected = heads.probabilities(bottlenecks.rows(images["sha256"].tolist()))[:, 1]
    pixels = [view(decode((fitted / "digits" / p).read_bytes()), 8) for p in images["path"]]
    said = classifier.probabilities(np.stack(pixels).astype(np.float32) / 255).numpy()
    assert np.allclose(said, expected, atol=1e-5)


def test_training_lowers_the_loss_and_keeps_the_best_epoch(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    found = tune(fitted, run, epochs=6)
    history = pd.read_csv(run.finetune_folder("small") / "history.csv")
    assert history["epoch"].tolist() == list(range(7))
    assert history["loss"].iloc[-1] < history["loss"].iloc[1]
    assert (
        history.loc[history["kept"], "validation_loss"].item() == history["validation_loss"].min()
    )
    assert found.test["accuracy"][1] <= found.test["accuracy"][0] <= found.test["accuracy"][2]
    predictions = pd.read_csv(run.finetune_folder("small") / "predictions.csv")
    columns = [c for c in predictions if c.startswith("p(")]
    hits = predictions[columns].to_numpy().argmax(1) == predictions["label"].to_numpy()
    assert found.test["accuracy"][0] == pytest.approx(hits.mean(), abs=1e-6)


def test_the_test_split_and_the_validation_fold_are_never_trained_on(fitted, tmp_path):
    from hubretrain.augmentation import Augmentation

    run = copied(fitted, tmp_path)
    folds = pd.read_csv(run.folds_file, dtype=str).set_index("sha256")["fold"]
    seen = set()

    class Watching(Augmentation):  # only what is trained on is augmented
        def draw(self, sha256, view, seed):
            seen.add(folds[sha256])
            return super().draw(sha256, view, seed)

    tune(fitted, run, epochs=1, augmentation=Watching())
    assert seen == {"1", "2", "3", "4"}


def script(fitted, run):
    return (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from pathlib import Path; from test_training import *\n"
        f"tune(Path({str(fitted)!r}), Run(Path({str(run.folder)!r})), epochs=8)\n"
    )


def test_killed_at_any_moment_it_goes_on_exactly(fitted, tmp_path):
    straight, killed = copied(fitted, tmp_path, "straight"), copied(fitted, tmp_path, "killed")
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

    def start(run):
        command = [sys.executable, "-c", script(fitted, run)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)

    uninterrupted = start(straight)
    state = killed.finetune_folder("small") / "checkpoint" / "state.json"
    stamps = []
    for _ in range(2):
        process = start(killed)
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None:
            time.sleep(0.005)
            if state.exists() and state.stat().st_mtime_ns != before:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        stamps.append(json.loads(state.read_text())["epoch"])
    last = start(killed)
    assert last.wait() == 0, last.stderr.read().decode()
    assert uninterrupted.wait() == 0, uninterrupted.stderr.read().decode()
    assert 0 <= stamps[0] <= stamps[1] <= 8
    histories = [
        (run.finetune_folder("small") / "history.csv").read_bytes() for run in (straight, killed)
    ]
    assert histories[0] == histories[1]
    predictions = [
        (run.finetune_folder("small") / "predictions.csv").read_bytes()
        for run in (straight, killed)
    ]
    assert predictions[0] == predictions[1]


def test_other_options_do_not_go_on_with_an_earlier_training(fitted, tmp_path):
    run = copied(fitted, tmp_path)
    tune(fitted, run, epochs=1)
    with pytest.raises(RunError, match=r"holds a fine-tuning with batch_size = 16, .*--restart"):
        tune(fitted, run, epochs=1, batch_size=8)
    with pytest.raises(RunError, match=r"of 1 epochs, now 2 are asked for; .*--epochs \+N"):
        tune(fitted, run, epochs=2)
    tune(fitted, run, epochs=2, restart=True)


def test_layers_that_are_not_unfrozen_stay_as_they_were(fitted, tmp_path):
    from hubretrain.tensorflow_door import tf

    run = copied(fitted, tmp_path)
    tune(fitted, run, epochs=2, unfreeze_last=1)
    before = tf.train.load_checkpoint(str(fitted / "small" / "variables" / "variables"))
    (best,) = (run.finetune_folder("small") / "checkpoint").glob("best_*.index")
    after = tf.train.load_checkpoint(str(best.with_suffix("")))

    def tensors(reader):
        names = reader.get_variable_to_shape_map()
        return [reader.get_tensor(n) for n in names if len(names[n]) in (2, 4)]

    kernel = next(t for t in tensors(before) if t.ndim == 4)
    assert any(np.array_equal(kernel, t) for t in tensors(after) if t.ndim == 4)
    dense = next(t for t in tensors(before) if t.shape == (32, 12))
    history = pd.read_csv(run.finetune_folder("small") / "history.csv")
    if history.loc[history["kept"], "epoch"].item() > 0:
        assert not any(np.array_equal(dense, t) for t in tensors(after) if t.shape == (32, 12))


def test_more_layers_than_there_are_is_an_error(fitted, tmp_path):
    with pytest.raises(ModuleError, match=r"--unfreeze-last is 9 and small has 2 trainable layers"):
        tune(fitted, copied(fitted, tmp_path), unfreeze_last=9)


def test_a_module_that_cannot_be_trained_is_refused_with_a_way_on(tmp_path):
    write_digits(tmp_path / "digits", 150)
    module = write_module(tmp_path / "frozen", n_features=12, trainable=False)
    data = open_dataset(tmp_path / "digits")
    options = {"folder": tmp_path / "cache", "n_views": 1, "quiet": True}
    cache_bottlenecks(data, [resolve(str(module))], **options)
    screen_modules(data, Run(tmp_path / "run"), cache=tmp_path / "cache", quiet=True)
    with pytest.raises(ModuleError, match=r"frozen has no trainable variables.*--unfreeze-last 0"):
        tune(tmp_path, Run(tmp_path / "run"))


def test_a_loss_that_becomes_nan_stops_and_says_what_to_lower(fitted, tmp_path):
    with pytest.raises(RunError, match=r"the loss became (nan|inf).*--learning-rate below 1e\+35"):
        tune(fitted, copied(fitted, tmp_path), learning_rate=1e35, epochs=30)
