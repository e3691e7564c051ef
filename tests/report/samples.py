"""A fitted run whose names are hostile, and predictions that are mostly right."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from hubretrain.data import SplitOptions
from hubretrain.data.dataset import open_dataset
from hubretrain.data.splitting.folds import TEST
from hubretrain.files import file_sha256
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.report.run_data import gather
from hubretrain.runs import HISTORY, FineTunedModuleRecord, FineTuneRecord, OrderRecord, Run
from hubretrain.screening import ScreenOptions
from hubretrain.screening.fit import screen_modules
from tests.samples import write_digits
from tests.screening.test_fit import write_cache

SCRIPT = "<script>alert(1)</script>"


QUOTES = '0/it\'s "quoted" & <b>bold.png'


NAMES = {"0": SCRIPT, "1": 'one\'s "own" & </script>', "2": "NA"}


L2 = (1.0, 100.0)


def write_run(place: Path, n_images: int = 240) -> Run:
    """A fitted run on digits with hostile class and file names, and a fine-tuned module."""
    data = write_digits(place / "data", n_images)
    table = [(p.relative_to(data).as_posix(), NAMES[p.parent.name]) for p in data.rglob("*.png")]
    first = next(path for path, label in table if label == SCRIPT)
    (data / first).rename(data / QUOTES)
    table = [(QUOTES if p == first else p, label) for p, label in table]
    labels = place / "labels.csv"
    pd.DataFrame(sorted(table), columns=["path", "label"]).to_csv(labels, index=False)
    for module, columns in (("pixels", slice(None)), ("half", slice(5))):
        write_cache(
            data, place / "cache", module, columns=columns, n_views=2, facts={"gflops": 1.0}
        )
    dataset = open_dataset(data, labels=labels)
    run = Run(place / "runs" / "digits")
    with threadpool_limits(1):
        options = ScreenOptions(l2=L2, split=SplitOptions(n_folds=3), heads=("softmax", "logistic"))
        screen_modules(dataset, run, options, cache=place / "cache")
    return run


def write_fine_tuned(run: Run, module: str = "pixels") -> None:
    """What fine-tuning leaves in a run: its files, of predictions that are mostly right."""
    gathered = gather(run)
    random = np.random.default_rng(0)
    folder = run.finetune_folder(module)
    folder.mkdir(parents=True)
    for file, fold in (("predictions.csv", TEST), ("validation.csv", 0)):
        images = gathered.images[gathered.images["fold"] == fold]
        scores = random.normal(0, 1, (len(images), 3))
        scores[np.arange(len(images)), images["class_index"]] += 2
        said = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        table = images[["path", "sha256", "label"]].copy()
        for c, name in enumerate(gathered.class_names):
            table[f"p({name})"] = said[:, c].round(6)
        table.to_csv(folder / file, index=False)
    history = {"epoch": [0, 1, 2], "phase": ["head", "head", "all"]}
    history |= {"learning_rate": [0.0, 1e-3, 5e-4], "loss": [np.nan, 0.5, 0.2]}
    history |= {"validation_loss": [0.9, 0.6, 0.7], "validation_accuracy": [0.8, 0.9, 0.88]}
    HISTORY.write(folder, pd.DataFrame(history | {"kept": [False, True, False]}))
    figures = {"accuracy": (0.9, 0.8, 0.95)}
    tuning = FineTuneOptions(unfreeze_last=23, epochs=2, balanced_sampling=True, l2_sp=0.01)
    tuning.save(folder)
    files = {file: file_sha256(folder / file) for file in ("predictions.csv", "validation.csv")}
    record = FineTunedModuleRecord(
        figures, figures, {}, {}, 0.0, (0.4, 0.3, 0.3), tuning.identity(), 1, 1.0, {}, files=files
    )
    order = OrderRecord(("pixels", "half"), ("half", "pixels"), -1.0, 0.02, "accuracy")
    run.write_finetune(FineTuneRecord({module: record}, module, order))


def record_files_as_they_are(run: Run) -> None:
    """Record the digests that the files of the fit have now, as if the fit had written them."""
    files = {name: file_sha256(run.folder / name) for name in run.fit.files}
    run.write_fit(replace(run.fit, files=files))


def copied(run: Run, place: Path) -> Run:
    """A copy of a run without its page."""
    shutil.copytree(run.folder, place, ignore=shutil.ignore_patterns("report", "report.html"))
    return Run(place)


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)[1])


def predictions(
    n: int = 500, n_classes: int = 4, seed: int = 0, margin: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, n_classes, n)
    scores = random.normal(0, 1, (n, n_classes))
    scores[np.arange(n), labels] += margin
    said = np.exp(scores)
    return (said / said.sum(axis=1, keepdims=True)).round(6), labels
