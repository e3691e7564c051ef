"""One module of a run, fine-tuned: trained on all folds but the first, judged, exported."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.data import ImageDataset
from hubretrain.data.splitting import TEST
from hubretrain.errors import RunError
from hubretrain.evaluation import fit_temperature
from hubretrain.export import Member, write_export
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.input_pipeline import TrainingImages
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.result import FineTuneResult, predictions_table, rounded_metrics
from hubretrain.finetuning.trainer import Trainer
from hubretrain.heads import ModuleHeads
from hubretrain.modules import Backbone, Classifier, restore_module
from hubretrain.run_tables import PREDICTIONS, VALIDATION_PREDICTIONS
from hubretrain.runs import VALIDATION_FOLD, Figures, FineTunedModuleRecord, FitRecord, Run


class ModuleFineTuning:
    """One module: its images, its model, its training, its figures.

    Args:
        dataset: The data set.
        run: A run that was fitted on it.
        images: Every image that takes part, with its `fold`.
        name: The module.
        fit: What the fit recorded.
        where: On which devices.

    Raises:
        RunError: The run has no such module, or its folds cannot be trained on.
        HeadError: The module's heads cannot be read.
        ModuleError: The module cannot be loaded.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        run: Run,
        images: pd.DataFrame,
        name: str,
        fit: FitRecord,
        where: Devices,
    ) -> None:
        self.dataset, self.run, self.name, self.where = dataset, run, name, where
        self.folder = run.finetune_folder(name)
        head = ModuleHeads.load(run.heads_file(name)).warm_start
        backbone = Backbone(restore_module(name, fit.module(name)))
        self.classifier = Classifier(backbone, head.kind, head.weight, head.bias)
        self.weight_of_class = head.weight_of_class.astype(np.float32)
        self.rule = head.rule
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
        self, tuning: FineTuneOptions, more_epochs: int | None, seconds: float
    ) -> tuple[FineTuneResult, FineTunedModuleRecord]:
        """Trains and judges; what was found, and the record of it for `run.json`."""
        plain = np.ones_like(self.weight_of_class)
        weights = plain if tuning.balanced_sampling else self.weight_of_class
        train = _training_images(self.dataset, self.train, weights)
        validation = _training_images(self.dataset, self.validation, self.weight_of_class)
        parts = {"test": self.test, "validation": self.validation}
        images = {
            part: _training_images(self.dataset, table, plain) for part, table in parts.items()
        }
        self.training = training = Trainer(
            self.classifier,
            self.folder,
            tuning,
            self.where,
            identity={
                "n_train": len(train),
                "n_validation": len(validation),
                "images": _digest(train.digest(), validation.digest()),
                "class_weights": _digest(weights, self.weight_of_class),
            },
            seconds_between_checkpoints=seconds,
        )
        heads = {
            part: self._figures(
                training.probabilities(images[part], what=f"{part}, head"), table, tuning.seed
            )
            for part, table in parts.items()
        }
        history = training.fit(train, validation, more_epochs=more_epochs)
        if tuning.balanced_sampling and training.state.best_epoch > 0:
            # Each class was drawn alike, so its rarity is made up for and needs no adjustment.
            self.rule = replace(self.rule, strength=0.0)
        found = {}
        for part, table in parts.items():
            said = training.probabilities(images[part], what=part)
            found[part] = self._figures(said, table, tuning.seed)
            if part == "validation":
                self.temperature = fit_temperature(said, images[part].labels)
            if self.where.is_chief and len(table):
                file = PREDICTIONS if part == "test" else VALIDATION_PREDICTIONS
                file.write(self.folder, predictions_table(table, said, self.dataset.class_names))
        result = FineTuneResult(
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
        record = FineTunedModuleRecord(
            test=found["test"],
            head_test=heads["test"],
            validation=found["validation"],
            head_validation=heads["validation"],
            adjust=self.rule.strength,
            priors=self.rule.priors,
            identity=training.identity,
            kept_epoch=result.kept_epoch,
        )
        return result, record

    def _figures(self, said: npt.NDArray[np.float32], table: pd.DataFrame, seed: int) -> Figures:
        labels, groups = table["class_index"].to_numpy(), table["cluster"].to_numpy()
        return rounded_metrics(said, labels, groups, seed, self.rule)

    def export(self, found: FineTuneResult) -> None:
        """Writes `export/`."""
        facts = {
            "run": self.run.name,
            "fine_tuned": True,
            "test": found.test,
            "adjust": self.rule.strength,
            "priors": list(self.rule.priors),
            "augmentation": asdict(self.training.options.augmentation),
        }
        write_export(
            [Member(self.classifier)],
            self.dataset.class_names,
            self.run.export_folder,
            facts,
            temperature=self.temperature,
        )


def _training_images(
    dataset: ImageDataset, images: pd.DataFrame, class_weight: npt.NDArray[np.float32]
) -> TrainingImages:
    """Images that weigh what an image of their class weighed when the head was fitted."""
    labels = images["class_index"].to_numpy(dtype=np.int64)
    paths, sha256s = images["path"].tolist(), images["sha256"].tolist()
    return TrainingImages(dataset.root, paths, sha256s, labels, class_weight[labels])


def _digest(*parts: Any) -> str:
    return hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest()
