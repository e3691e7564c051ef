"""The fine-tuning stage: the shortlisted backbone of a run, trained, judged once, exported."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain import intervals
from hubretrain.augmentation import Augmentation
from hubretrain.classifier import Classifier
from hubretrain.contents import usable_images
from hubretrain.dataset import ImageDataset
from hubretrain.decisions import adjusted
from hubretrain.errors import DataError, RunError
from hubretrain.export import export_saved_model
from hubretrain.files import write_table
from hubretrain.fitted import module_of
from hubretrain.folds import TEST, previous_parts, read_folds
from hubretrain.heads import Heads
from hubretrain.metrics import METRICS
from hubretrain.modules.backbone import Backbone
from hubretrain.runs import Run
from hubretrain.schedule import schedule_for
from hubretrain.temperature import fit_temperature
from hubretrain.training import FineTuning, TrainingImages

N_RESAMPLES = 1000
VALIDATION_FOLD = 0


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning one module came to.

    Attributes:
        module: The module's name.
        history: One row an epoch.
        test: Metric name to (estimate, low, high) on the test split; {} without one.
        head_test: The same for the head that training started from.
        export: The exported model.
    """

    module: str
    history: pd.DataFrame
    test: dict[str, tuple[float, float, float]]
    head_test: dict[str, tuple[float, float, float]]
    export: Path


@dataclass(frozen=True)
class _Rule:
    """How probabilities become decisions: logit adjustment by the priors."""

    strength: float
    priors: npt.NDArray[np.float64]


def finetune_module(
    dataset: ImageDataset,
    run: Run,
    *,
    cache: Path = Path("cache"),
    module: str | None = None,
    unfreeze_last: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    train_batchnorm: bool = False,
    augmentation: Augmentation | None = None,
    restart: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> FineTuned:
    """Fine-tunes the best shortlisted module of a run and exports the result.

    It trains on all folds but the first, stops by the first, and is judged once on the test
    split. The same call again goes on where it stopped.

    Args:
        dataset: The data set that the run was fitted on.
        run: A fitted run.
        cache: Where the data set's digests are.
        module: Which module instead of the shortlist's first.
        unfreeze_last: Layers of the backbone to train; None for all, 0 for the head alone.
        epochs: Instead of the schedule's own.
        batch_size: Images a step, instead of the schedule's own.
        learning_rate: The peak, instead of the schedule's own.
        train_batchnorm: Let BatchNorm use and update the statistics of the batches.
        augmentation: How each epoch's view of an image differs from it.
        restart: Forget an earlier fine-tuning of this module in this run.
        seed: Of order and augmentation.
        quiet: Show no progress.

    Raises:
        RunError: The run is not fitted, or holds another fine-tuning.
        ModuleError: The module cannot be loaded or trained.
    """
    facts = _fitted(run, dataset)
    name = module or facts["shortlist"][0]
    heads = Heads.load(run.heads_file(name))
    backbone = Backbone(module_of(name, facts))
    together = facts.get("duplicates_kept_together", True)
    images = usable_images(dataset, cache, near_duplicates=together, quiet=quiet)
    images = _with_folds(images, run)
    folder = run.finetune_folder(name)
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    which = heads.facts["fold"].tolist().index(VALIDATION_FOLD)
    class_weight = heads.facts["weight_of_class"][which].astype(np.float32)
    rule = _Rule(float(heads.facts["adjust"][which]), heads.facts["priors"][which])
    classifier = Classifier(backbone, heads.kind, heads.weight[:, which], heads.bias[which])
    train = _training_images(
        dataset, images[~images["fold"].isin([TEST, VALIDATION_FOLD])], class_weight
    )
    validation = _training_images(dataset, images[images["fold"] == VALIDATION_FOLD], class_weight)
    test_images = images[images["fold"] == TEST]
    test = _training_images(dataset, test_images, np.ones_like(class_weight))
    schedule = schedule_for(
        len(train), epochs=epochs, batch_size=batch_size, learning_rate=learning_rate
    )
    tuning = FineTuning(
        classifier,
        folder,
        schedule,
        augmentation=augmentation or Augmentation(),
        unfreeze_last=unfreeze_last,
        seed=seed,
        train_batchnorm=train_batchnorm,
        identity={"n_train": len(train), "n_validation": len(validation)},
    )
    groups = test_images["cluster"].to_numpy()
    head_test = {}
    if len(test):
        head_test = _judged(
            tuning.probabilities(test, what="testing the head", quiet=quiet),
            test.labels,
            groups,
            seed,
            rule,
        )
    history = tuning.fit(train, validation, quiet=quiet)
    found = {}
    if len(test):
        probabilities = tuning.probabilities(test, what="testing", quiet=quiet)
        found = _judged(probabilities, test.labels, groups, seed, rule)
        _keep_predictions(folder, test_images, probabilities, dataset.class_names)
    export_saved_model(
        classifier,
        dataset.class_names,
        run.export_folder,
        {
            "run": run.name,
            "fine_tuned": True,
            "test": found,
            "adjust": rule.strength,
            "priors": rule.priors.tolist(),
            "augmentation": asdict(augmentation or Augmentation()),
        },
        temperature=_temperature(tuning, validation, quiet=quiet),
    )
    record: dict[str, Any] = {
        "module": name,
        "test": found,
        "head_test": head_test,
        "adjust": rule.strength,
        "identity": tuning.identity,
    }
    run.record("finetune", record)
    return FineTuned(name, history, found, head_test, run.export_folder)


def _fitted(run: Run, dataset: ImageDataset) -> dict[str, Any]:
    facts = run.facts().get("fit")
    if facts is None:
        raise RunError(f"{run.folder} holds no finished fit; run first: hubretrain fit")
    if facts["class_names"] != list(dataset.class_names):
        raise RunError(
            f"{run.folder} was fitted on the classes {', '.join(facts['class_names'])}, the data "
            f"set has {', '.join(dataset.class_names)}; fit again, or name the run's data set."
        )
    return facts


def _with_folds(images: pd.DataFrame, run: Run) -> pd.DataFrame:
    parts = previous_parts(
        read_folds(run.folds_file), images["path"].tolist(), images["sha256"].tolist()
    )
    return images.assign(fold=parts)[parts >= TEST].reset_index(drop=True)


def _training_images(
    dataset: ImageDataset, images: pd.DataFrame, class_weight: npt.NDArray[np.float32]
) -> TrainingImages:
    """Images that weigh what an image of their class weighed when the head was fitted."""
    labels = images["class_index"].to_numpy(dtype=np.int64)
    paths, sha256s = images["path"].tolist(), images["sha256"].tolist()
    return TrainingImages(dataset.root, paths, sha256s, labels, class_weight[labels])


def _judged(
    probabilities: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[Any],
    seed: int,
    rule: _Rule,
) -> dict[str, tuple[float, float, float]]:
    """Every metric on the test split, with its interval; one that is undefined there is absent.

    Metrics of decisions are those of the head's decision rule, as on the leaderboard;
    ``plain_accuracy`` is that of the likeliest class.
    """
    if len(set(groups.tolist())) < 2:
        return {}
    weights = intervals.group_resamples(groups, n_resamples=N_RESAMPLES, seed=seed)
    decided = adjusted(probabilities, rule.priors, rule.strength)
    said = {name: decided if METRICS[name].is_of_decision else probabilities for name in METRICS}
    found = {}
    for name, model in {**said, "plain_accuracy": probabilities}.items():
        try:
            metric = name.removeprefix("plain_")
            result = intervals.resample(metric, model, labels, groups, weights)
        except DataError:  # such as ROC AUC of a test split with one class
            continue
        estimate, low, high = intervals.interval(result)
        found[name] = (round(estimate, 6), round(low, 6), round(high, 6))
    return found


def _temperature(tuning: FineTuning, validation: TrainingImages, *, quiet: bool) -> float:
    said = tuning.probabilities(validation, what="calibrating", quiet=quiet)
    return fit_temperature(said, validation.labels)


def _keep_predictions(
    folder: Path,
    images: pd.DataFrame,
    probabilities: npt.NDArray[np.float32],
    class_names: Sequence[str],
) -> None:
    table = images[["path", "sha256", "label"]].copy()
    for c, name in enumerate(class_names):
        table[f"p({name})"] = probabilities[:, c].round(6)
    write_table(folder / "predictions.csv", table)
