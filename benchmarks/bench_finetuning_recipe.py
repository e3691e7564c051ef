"""What each ingredient of fine-tuning brings: an ablation with paired intervals.

    python benchmarks/bench_finetuning_recipe.py DATA --cache CACHE --run RUN --output FOLDER
        [--module NAME] [--epochs 6] [--seeds 2] [--only ema ...]

A fitted run is copied once for each ingredient and seed, and fine-tuned with that one option
changed. All start from the same head and have the same images, folds and number of epochs; the seed
is that of the order and of the augmentation. Differences from the default are means over the seeds,
on the test split, with 95 % intervals from the same resamples of its groups (they say nothing about
other heads or data sets). The command resumes: what FOLDER holds already is not trained again, so
ingredients can be added later. The table is printed as Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.data import ImageDataset, reopen_dataset
from hubretrain.evaluation import METRICS, DecisionRule, Evaluator, Predictions
from hubretrain.files import read_record, write_record
from hubretrain.finetuning import FineTuneOptions, finetune_module
from hubretrain.heads import ModuleHeads
from hubretrain.runs import PREDICTIONS, TEST_PREDICTIONS, Run

DEFAULT, HEAD = "default", "its head, of all folds"
MEAN = "mean of the default and its head"
INGREDIENTS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "no-interpolate": {"interpolate": False},
    "depth-decay 0.1": {"depth_decay": 0.1},
    "label-smoothing 0.1": {"label_smoothing": 0.1},
    "ema 0.99": {"ema": 0.99},
    "l2-sp 0.01": {"l2_sp": 0.01},
    "warmup-head 1": {"warmup_head": 1},
    "small-first": {"small_first": True},
}
LOG_LOSS, SECONDS = "log_loss", "seconds.json"


def trained(
    run: Run, folder: Path, dataset: ImageDataset, cache: Path, module: str, **options: Any
) -> Run:
    """Return a copy of a run whose module is fine-tuned; one that is finished is left alone.

    Args:
        run: A fitted run.
        folder: Folder of the copy; `seconds.json` there holds how long training took.
        dataset: The data set of the run.
        cache: Its cache folder.
        module: Name of the module.
        options: Those of `FineTuneOptions`.
    """
    copy = Run(folder)
    if not (folder / SECONDS).exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("finetune", "export*"))
        started = time.monotonic()
        finetune_module(
            dataset, copy, module=module, cache=cache, options=FineTuneOptions(**options)
        )
        write_record(folder / SECONDS, {"seconds": time.monotonic() - started})
    return copy


def predictions_of(run: Run, module: str) -> Predictions:
    """Return what a fine-tuned module says of the test split, before and after its rule."""
    record = run.finetune.modules[module]
    table = PREDICTIONS.read(run.finetune_folder(module))
    probs = table.filter(regex=r"^p\(").to_numpy(np.float64)
    probs /= probs.sum(axis=1, keepdims=True)  # the file holds six digits
    rule = DecisionRule(record.adjust, record.priors).at_temperature(record.temperature)
    return Predictions(probs, rule.adjust(probs))


def with_head(run: Run, module: str, paths: pd.Index) -> dict[str, list[Predictions]]:
    """Return what the head that is fitted on all folds says, and its mean with the fine-tuned."""
    table = TEST_PREDICTIONS.read(run.folder)
    rows = table[table["module"] == module].set_index("path").reindex(paths)
    probs = rows.filter(regex=r"^p\(").to_numpy(np.float64)
    if np.isnan(probs).any():  # the heads of the shortlist alone are in this table
        return {}
    head = ModuleHeads.load(run.checked_heads(module)).deployed
    rule = head.rule.at_temperature(head.calibration.temperature)
    of_head = Predictions(probs, rule.adjust(probs))
    tuned = predictions_of(run, module)
    mean = Predictions(
        (of_head.unadjusted + tuned.unadjusted) / 2, (of_head.adjusted + tuned.adjusted) / 2
    )
    return {HEAD: [of_head], MEAN: [mean]}


def test_images(run: Run, dataset: ImageDataset, cache: Path, module: str) -> pd.DataFrame:
    """Return the images of the test split in the order of a module's predictions."""
    fit = run.fit
    images = dataset.usable_images(cache, near_duplicates=fit.duplicates_kept_together)
    paths = PREDICTIONS.read(run.finetune_folder(module))["path"]
    return images.set_index("path").loc[paths]


def ablation(
    runs: Mapping[str, Sequence[Run]], module: str, images: pd.DataFrame
) -> tuple[list[list[str]], list[str]]:
    """Return the rows of the table, and a sentence for each default against its head.

    Args:
        runs: Ingredient to a fine-tuned run of each seed.
        module: Name of the module.
        images: The test split.
    """
    metric = runs[DEFAULT][0].fit.metric
    evaluator = Evaluator(images["class_index"].to_numpy(), images["cluster"].to_numpy(), 0)
    predictions = {k: [predictions_of(run, module) for run in v] for k, v in runs.items()}
    labels, rows = images["class_index"].to_numpy(), []
    for run in runs[DEFAULT]:
        for name, of_seed in with_head(run, module, images.index).items():
            predictions.setdefault(name, []).extend(of_seed)
    for name, of_seeds in predictions.items():
        row = [f"`--{name}`" if name in runs and name != DEFAULT else f"**{name}**"]
        for chosen in dict.fromkeys([metric, LOG_LOSS]):
            values = [METRICS[chosen].function(p.of(chosen), labels, None) for p in of_seeds]
            row.append(shown(float(np.mean(values)), chosen))
            pairs = [
                (p.of(chosen), q.of(chosen))
                for p, q in zip(of_seeds, predictions[DEFAULT], strict=True)
            ]
            change = evaluator.effect(pairs, chosen)
            row.append("" if name == DEFAULT else interval(change[1:4], chosen))
        seconds = [read_record(run.folder / SECONDS)["seconds"] for run in runs.get(name, ())]
        rows.append([*row, f"{np.mean(seconds) / 60:.1f}" if seconds else ""])
    heads = [run.finetune.modules[module].over_head.get("test") for run in runs[DEFAULT]]
    sentences = [
        f"The default against its head, seed {seed}: {interval(ends, metric)}."
        for seed, ends in enumerate(heads)
        if ends is not None
    ]
    return rows, sentences


def interval(ends: Sequence[float], metric: str) -> str:
    """Return a difference and the ends of its interval as tables show them."""
    value, low, high = (shown(end, metric, sign="+") for end in ends)
    return f"{value} ({low} to {high})"


def shown(value: float, metric: str, sign: str = "") -> str:
    """Return a value as tables show it: shares in points."""
    is_share = METRICS[metric].is_share
    digits = 1 if is_share else 3
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(value * (100 if is_share else 1), digits) + 0.0:{sign}.{digits}f}"


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--module", help="by default the first of the shortlist")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(INGREDIENTS), default=list(INGREDIENTS))
    chosen = parser.parse_args()
    run = Run(chosen.run)
    fit = run.fit
    dataset = reopen_dataset(chosen.data, fit.data_options)
    module = chosen.module or fit.shortlist[0]
    runs: dict[str, list[Run]] = {}
    for seed in range(chosen.seeds):
        for name in dict.fromkeys([DEFAULT, *chosen.only]):
            folder = chosen.output / f"{name.replace(' ', '-')}-seed-{seed}"
            options = {"epochs": chosen.epochs, "seed": seed, **INGREDIENTS[name]}
            copy = trained(run, folder, dataset, chosen.cache, module, **options)
            runs.setdefault(name, []).append(copy)
    images = test_images(runs[DEFAULT][0], dataset, chosen.cache, module)
    rows, sentences = ablation(runs, module, images)
    metric = fit.metric.replace("_", " ")
    header = ["", metric, "change", "log loss", "change", "minutes"]
    if fit.metric == LOG_LOSS:
        header = ["", metric, "change", "minutes"]
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    print("\n" + "\n".join(sentences))


if __name__ == "__main__":
    main()
