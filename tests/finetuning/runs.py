"""Fitted runs of small modules, copies of them, and fine-tunings of the copies."""

from __future__ import annotations

import shutil
from dataclasses import fields

import numpy as np

from hubretrain.data.dataset import open_dataset
from hubretrain.data.images.decoding import decode
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.finetuning.finetune import Resumption, finetune_module
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.modules import resolve
from hubretrain.runs import Run
from hubretrain.screening import ScreenOptions
from hubretrain.screening.fit import screen_modules
from tests.samples import write_digits, write_module


def write_run(folder, *modules):
    """A run of the data set `digits` in the folder, fitted on modules' folders."""
    dataset = open_dataset(folder / "digits")
    stored = [resolve(str(module)) for module in modules]
    cache_bottlenecks(dataset, stored, CacheOptions(n_views=1), cache=folder / "cache")
    options = ScreenOptions(heads=("softmax", "logistic"))
    screen_modules(dataset, Run(folder / "run"), options, cache=folder / "cache")


def write_run_of_two(folder):
    """A run of the digits in the folder, fitted on `small5` and `small6`."""
    write_digits(folder / "digits", 150)
    seeds = {"small5": 5, "small6": 6}
    write_run(folder, *(write_module(folder / n, n_features=12, seed=s) for n, s in seeds.items()))


def write_labelled(folder):
    """Digits that also are bright or not, one in 15 without any label: `digits` and a table."""
    write_digits(folder / "digits", 150)
    rows = ["path,labels"]
    for i, path in enumerate(sorted((folder / "digits").rglob("*.png"))):
        is_bright = np.asarray(decode(path.read_bytes())).mean() > 85
        labels = [path.parent.name, *["bright"] * bool(is_bright)] if i % 15 else []
        rows.append(f"{path.relative_to(folder / 'digits').as_posix()},{'|'.join(labels)}")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")


def copied(fitted, tmp_path, name="run"):
    """A copy of a fitted run that a test may change."""
    shutil.copytree(fitted / "run", tmp_path / name)
    return Run(tmp_path / name)


def tune(fitted, run, module=None, **options):
    """Fine-tune; the options are those of `FineTuneOptions` and of `Resumption`."""
    options = {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, **options}
    names = [field.name for field in fields(Resumption) if field.name in options]
    resumption = Resumption(**{name: options.pop(name) for name in names})
    return finetune_module(
        open_dataset(fitted / "digits"),
        run,
        module=module,
        cache=fitted / "cache",
        options=FineTuneOptions(**options),
        resumption=resumption,
    )


def weights_of(run):
    """The bytes of every variable and counter of the last checkpoint and of the best."""
    from hubretrain.tensorflow import tf

    values = {}
    for index in sorted((run.finetune_folder("small") / "checkpoint").glob("*.index")):
        reader = tf.train.load_checkpoint(str(index.with_suffix("")))
        for name in reader.get_variable_to_shape_map():
            if name != "_CHECKPOINTABLE_OBJECT_GRAPH":
                values[index.name, name] = np.asarray(reader.get_tensor(name)).tobytes()
    assert len(values) > 8
    return values
