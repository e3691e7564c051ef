"""The fine-tuning stage: shortlisted backbones of a run, trained, judged once, exported."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.batches import TrainingImages
from hubretrain.classifier import Classifier
from hubretrain.contents import usable_images
from hubretrain.dataset import ImageDataset
from hubretrain.errors import RunError
from hubretrain.export import export_saved_model
from hubretrain.finetuned import FineTuned, Rule, judged, keep_predictions, order_of
from hubretrain.fitted import module_of
from hubretrain.folds import TEST, previous_parts, read_folds
from hubretrain.heads import Heads
from hubretrain.locks import only_writer
from hubretrain.metrics import METRICS
from hubretrain.modules.backbone import Backbone
from hubretrain.runs import Run
from hubretrain.strategy import Devices, devices
from hubretrain.temperature import fit_temperature
from hubretrain.training import SECONDS_BETWEEN_CHECKPOINTS, FineTuning
from hubretrain.tuning import OPTIONS, Tuning, saved_tuning

VALIDATION_FOLD = 0


def finetune_module(
    dataset: ImageDataset,
    run: Run,
    *,
    cache: Path = Path("cache"),
    module: str | None = None,
    tuning: Tuning | None = None,
    resume: bool = False,
    more_epochs: int | None = None,
    restart: bool = False,
    seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
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
        tuning: How; by default as the data's size asks for.
        resume: Take the options of the fine-tuning that is there instead of ``tuning``.
        more_epochs: Epochs to add to a finished fine-tuning.
        restart: Forget an earlier fine-tuning of this module in this run.
        seconds_between_checkpoints: How much a kill within an epoch may cost.
        quiet: Show no progress.

    Raises:
        RunError: The run is not fitted, or holds another fine-tuning, or training cannot go on.
        ModuleError: The module cannot be loaded or trained.
    """
    name = module or _fitted(run, dataset)["shortlist"][0]
    (found,) = finetune_modules(
        dataset,
        run,
        [name],
        cache=cache,
        tuning=tuning,
        resume=resume,
        more_epochs=more_epochs,
        restart=restart,
        seconds_between_checkpoints=seconds_between_checkpoints,
        quiet=quiet,
    )
    return found


def best_modules(run: Run, n: int) -> list[str]:
    """The first modules of a run's leaderboard: the shortlist, then the others by rank.

    Raises:
        RunError: The run is not fitted, or compares fewer modules.
    """
    facts = run.facts().get("fit")
    if facts is None:
        raise RunError(f"{run.folder} holds no finished fit; run first: hubretrain fit")
    ranked = list(_screening_scores(run, facts))
    names = [*facts["shortlist"], *(m for m in ranked if m not in facts["shortlist"])]
    if len(names) < n:
        raise RunError(
            f"--top is {n} and {run.folder} compares {len(names)} modules ({', '.join(names)}); "
            "ask for fewer, or cache more and fit again."
        )
    return names[:n]


def latest_finetuning(run: Run) -> str:
    """The module of the run that was fine-tuned last.

    Raises:
        RunError: There is none.
    """
    found = list((run.folder / "finetune").glob(f"*/{OPTIONS}"))
    if not found:
        raise RunError(f"{run.folder} holds no fine-tuning to resume; begin one without --resume.")
    states = [(path.parent / "checkpoint" / "state.json", path) for path in found]
    newest = max(
        states, key=lambda pair: (pair[0] if pair[0].exists() else pair[1]).stat().st_mtime_ns
    )
    return newest[1].parent.name


def finetune_modules(
    dataset: ImageDataset,
    run: Run,
    modules: Sequence[str],
    *,
    cache: Path = Path("cache"),
    tuning: Tuning | None = None,
    resume: bool = False,
    more_epochs: int | None = None,
    restart: bool = False,
    seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
    quiet: bool = False,
) -> list[FineTuned]:
    """Fine-tunes modules in turn and exports the one that is best on the validation fold.

    With more than one, ``run.json`` says whether the screening order held. The same call again
    goes on where it stopped. For the arguments see :func:`finetune_module`.
    """
    facts = _fitted(run, dataset)
    tuning = tuning or Tuning()
    where = devices(mixed_precision=tuning.mixed_precision)
    together = facts.get("duplicates_kept_together", True)
    images = usable_images(dataset, cache, near_duplicates=together, quiet=quiet)
    images = _with_folds(images, run)
    done: list[FineTuned] = []
    records: dict[str, Any] = dict(run.facts().get("finetune", {}).get("modules") or {})
    for name in modules:
        folder = run.finetune_folder(name)
        if restart and where.is_chief:
            shutil.rmtree(folder, ignore_errors=True)
        asked = saved_tuning(folder) if resume else tuning
        if not quiet and len(modules) > 1 and where.is_chief:
            print(f"{name}:", flush=True)
        with _lock(folder, where):
            if where.is_chief and not resume:
                _remember(asked, folder)
            one = _Job(dataset, run, images, name, facts, where)
            found, record = one.run_with(
                asked, more_epochs, seconds_between_checkpoints, quiet or not where.is_chief
            )
        records[name] = record
        is_best = not done or _score(found, facts["metric"]) > max(
            _score(other, facts["metric"]) for other in done
        )
        done.append(found)
        if is_best and where.is_chief:
            one.export(found)
        if where.is_chief:
            chosen = max(done, key=lambda f: _score(f, facts["metric"])).module
            order = _order(run, facts, done) if len(done) > 1 else None
            run.record("finetune", {"modules": records, "chosen": chosen, "order": order})
    return done


class _Job:
    """One module: its images, its model, its training, its figures."""

    def __init__(
        self,
        dataset: ImageDataset,
        run: Run,
        images: pd.DataFrame,
        name: str,
        facts: dict[str, Any],
        where: Devices,
    ) -> None:
        self.dataset, self.run, self.name, self.where = dataset, run, name, where
        self.folder = run.finetune_folder(name)
        heads = Heads.load(run.heads_file(name))
        backbone = Backbone(module_of(name, facts))
        which = heads.facts["fold"].tolist().index(VALIDATION_FOLD)
        self.classifier = Classifier(
            backbone, heads.kind, heads.weight[:, which], heads.bias[which]
        )
        self.weight_of_class = heads.facts["weight_of_class"][which].astype(np.float32)
        self.rule = Rule(float(heads.facts["adjust"][which]), heads.facts["priors"][which])
        self.train = images[~images["fold"].isin([TEST, VALIDATION_FOLD])]
        self.validation = images[images["fold"] == VALIDATION_FOLD]
        self.test = images[images["fold"] == TEST]
        self._check_classes()

    def _check_classes(self) -> None:
        """Raises where a class would never be seen, or nothing could tell when to stop."""
        present = set(self.train["class_index"].tolist())
        missing = [n for c, n in enumerate(self.dataset.class_names) if c not in present]
        if missing:
            raise RunError(
                f"the training folds hold no image of the class {', '.join(missing)} (its images "
                f"are in the test split or in fold {VALIDATION_FOLD}); add images or groups of it "
                "and fit again, or leave the class out."
            )
        if not len(self.validation):
            raise RunError(
                f"fold {VALIDATION_FOLD} of {self.run.folds_file} holds no image to validate on; "
                "fit again with another split."
            )

    def run_with(
        self, tuning: Tuning, more_epochs: int | None, seconds: float, quiet: bool
    ) -> tuple[FineTuned, dict[str, Any]]:
        """Trains and judges; what was found, and the record of it for ``run.json``."""
        self.augmentation = tuning.augmentation
        plain = np.ones_like(self.weight_of_class)
        weights = plain if tuning.balanced_sampling else self.weight_of_class
        # Where each class is drawn alike, its rarity is made up for and needs no adjustment.
        self.rule = replace(self.rule, strength=0.0) if tuning.balanced_sampling else self.rule
        train = _training_images(self.dataset, self.train, weights)
        validation = _training_images(self.dataset, self.validation, self.weight_of_class)
        parts = {"test": self.test, "validation": self.validation}
        images = {
            part: _training_images(self.dataset, table, plain) for part, table in parts.items()
        }
        training = FineTuning(
            self.classifier,
            self.folder,
            tuning,
            self.where,
            identity={"n_train": len(train), "n_validation": len(validation)},
            seconds_between_checkpoints=seconds,
            quiet=quiet,
        )
        heads = {
            part: self._figures(
                training.probabilities(images[part], what=f"{part}, head"), table, tuning.seed
            )
            for part, table in parts.items()
        }
        history = training.fit(train, validation, more_epochs=more_epochs)
        found = {}
        for part, table in parts.items():
            said = training.probabilities(images[part], what=part)
            found[part] = self._figures(said, table, tuning.seed)
            if part == "validation":
                self.temperature = fit_temperature(said, images[part].labels)
            if self.where.is_chief and len(table):
                name = "predictions.csv" if part == "test" else "validation.csv"
                keep_predictions(self.folder / name, table, said, self.dataset.class_names)
        result = FineTuned(
            self.name,
            history,
            found["test"],
            heads["test"],
            found["validation"],
            heads["validation"],
            self.run.export_folder,
            tuple(training.notes),
            f"{self.name}: {training.diverged}" if training.diverged else None,
        )
        record = {
            "test": found["test"],
            "head_test": heads["test"],
            "validation": found["validation"],
            "head_validation": heads["validation"],
            "adjust": self.rule.strength,
            "identity": training.identity,
            "kept_epoch": result.kept_epoch,
        }
        return result, record

    def _figures(
        self, said: npt.NDArray[np.float32], table: pd.DataFrame, seed: int
    ) -> dict[str, tuple[float, float, float]]:
        labels, groups = table["class_index"].to_numpy(), table["cluster"].to_numpy()
        return judged(said, labels, groups, seed, self.rule)

    def export(self, found: FineTuned) -> None:
        """Writes ``export/``."""
        facts = {
            "run": self.run.name,
            "fine_tuned": True,
            "test": found.test,
            "adjust": self.rule.strength,
            "priors": self.rule.priors.tolist(),
            "augmentation": asdict(self.augmentation),
        }
        export_saved_model(
            self.classifier,
            self.dataset.class_names,
            self.run.export_folder,
            facts,
            temperature=self.temperature,
        )


def _remember(asked: Tuning, folder: Path) -> None:
    """Keeps the options of a new fine-tuning; one that is there keeps its own."""
    if not (folder / "checkpoint" / "state.json").exists():
        asked.save(folder)


def _lock(folder: Path, where: Devices) -> contextlib.AbstractContextManager[None]:
    return only_writer(folder / "checkpoint") if where.is_chief else contextlib.nullcontext()


def _score(found: FineTuned, metric: str) -> float:
    """The metric on the validation fold, higher being better; least where it is undefined."""
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    return sign * found.validation[metric][0] if metric in found.validation else -np.inf


def _screening_scores(run: Run, facts: dict[str, Any]) -> dict[str, float]:
    """The metric of each module on the leaderboard, best first."""
    board = pd.read_csv(run.leaderboard_file)
    board = board[board["module"].isin(facts["modules"])]
    return dict(zip(board["module"], board[facts["metric"]].astype(float), strict=True))


def _order(run: Run, facts: dict[str, Any], done: Sequence[FineTuned]) -> dict[str, Any] | None:
    metric = facts["metric"]
    scores = _screening_scores(run, facts)
    if any(metric not in f.validation or f.module not in scores for f in done):
        return None
    screening = {f.module: scores[f.module] for f in done}
    return order_of(screening, {f.module: f.validation[metric][0] for f in done}, metric)


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
