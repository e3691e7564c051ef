"""Fine-tuning of one module of a run: trained on all folds but the first, evaluated, exported."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import Float32Array, IntArray
from hubretrain.data import ImageDataset
from hubretrain.data.splitting import TEST
from hubretrain.errors import RunError
from hubretrain.evaluation import METRICS, Calibration, at_temperature, calibrate
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
    """One module: its images, its model, its training, its metrics.

    Args:
        dataset: The data set.
        run: A run that was fitted on it.
        images: Every image that takes part, with its `fold`.
        name: Name of the module.
        fit: What the fit recorded.
        devices: Where to train.

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
        devices: Devices,
    ) -> None:
        self.dataset, self.run, self.name, self.devices = dataset, run, name, devices
        self.folder = run.finetune_folder(name)
        head = ModuleHeads.load(run.heads_file(name)).warm_start
        backbone = Backbone(restore_module(name, fit.module(name)), head.layers)
        arrays = (head.weight, head.bias, head.hidden_weight, head.hidden_bias)
        self.classifier = Classifier(backbone, head.kind, *arrays)
        self._head = _digest(
            " ".join((head.kind, *head.layers)).encode(), *(a for a in arrays if a is not None)
        )
        self.weight_of_class = head.weight_of_class.astype(np.float32)
        self.rule, self._head_calibration = head.rule, head.calibration
        self.train = images[~images["fold"].isin([TEST, VALIDATION_FOLD])]
        self.parts = {
            "test": images[images["fold"] == TEST],
            "validation": images[images["fold"] == VALIDATION_FOLD],
        }
        self._check_classes()

    def _check_classes(self) -> None:
        """Raise where a class would never be trained on, or nothing could decide when to stop."""
        present = set(self.train["class_index"].tolist())
        missing = [n for c, n in enumerate(self.dataset.class_names) if c not in present]
        if missing:
            raise RunError(
                f"the training folds hold no image of the class {', '.join(missing)} (its images "
                f"are in the test split or in fold {VALIDATION_FOLD}); add images or groups of it "
                "and fit again, or leave the class out."
            )
        if not len(self.parts["validation"]):
            raise RunError(
                f"fold {VALIDATION_FOLD} of {self.run.folds_file} holds no image to validate on; "
                "fit again with another split."
            )

    def prepare(self, options: FineTuneOptions, seconds_between_checkpoints: float) -> None:
        """Set up the training; nothing is written or deleted yet.

        Args:
            options: How to train.
            seconds_between_checkpoints: At most this much training within an epoch is lost by a
                kill.

        Raises:
            ModuleError: The module cannot be trained as the options say.
        """
        equal = np.ones_like(self.weight_of_class)
        weights = equal if options.balanced_sampling else self.weight_of_class
        self._training = self._images(self.train, weights)
        self._validation = self._images(self.parts["validation"], self.weight_of_class)
        self.trainer = Trainer(
            self.classifier,
            self.folder,
            options,
            self.devices,
            identity={
                "n_train": len(self._training),
                "n_validation": len(self._validation),
                "images": _digest(self._training.digest(), self._validation.digest()),
                "head": self._head,
                "class_weights": _digest(weights, self.weight_of_class),
            },
            seconds_between_checkpoints=seconds_between_checkpoints,
        )

    def fine_tune(self, more_epochs: int | None) -> tuple[FineTuneResult, FineTunedModuleRecord]:
        """Train and evaluate the module, as `prepare` set it up.

        Args:
            more_epochs: Epochs to add to a finished training.

        Returns:
            The result, and the record of it for `run.json`.

        Raises:
            RunError: Training cannot be continued as asked, or an image cannot be read.
        """
        options = self.trainer.options
        of_head = self._probabilities("{}, head")
        head = self._metrics(of_head, self._head_calibration.temperature)
        history = self.trainer.fit(self._training, self._validation, more_epochs=more_epochs)
        if options.balanced_sampling and self.trainer.state.best_epoch > 0:
            # The model saw each class equally often, so its logits need no adjustment by priors.
            self.rule = replace(self.rule, strength=0.0)
        probs = self._probabilities("{}")
        self.calibration = self._calibration(probs["validation"])
        uncalibrated = {
            part: float(METRICS["log_loss"].function(probs[part], labels, None))
            for part in self.parts
            if len(labels := self._labels(part))
        }
        temperature = self.calibration.temperature
        self._write_predictions(probs, temperature)
        return self._results(history, self._metrics(probs, temperature), head, uncalibrated)

    def _calibration(self, probs: Float32Array) -> Calibration:
        """Return the temperature of the weights that are kept, by their validation fold.

        That fold chose the epoch, so it flatters the model, which it may only soften. The head
        that training started from has the temperature of its out-of-fold probabilities.
        """
        if self.trainer.state.best_epoch == 0:
            return self._head_calibration
        groups = self.parts["validation"]["cluster"].to_numpy()
        return calibrate(probs, self._labels("validation"), groups, may_sharpen=False)

    def _labels(self, part: str) -> IntArray:
        return np.asarray(self.parts[part]["class_index"], dtype=np.int64)

    def _results(
        self,
        history: pd.DataFrame,
        metrics: dict[str, Figures],
        head: dict[str, Figures],
        uncalibrated: dict[str, float],
    ) -> tuple[FineTuneResult, FineTunedModuleRecord]:
        """Return the result and its record; `metrics` and those of the head by part."""
        trainer, temperature = self.trainer, self.calibration.temperature
        result = FineTuneResult(
            module=self.name,
            history=history,
            test=metrics["test"],
            head_test=head["test"],
            validation=metrics["validation"],
            head_validation=head["validation"],
            export=self.run.export_folder,
            notes=tuple(trainer.notes),
            temperature=temperature,
            uncalibrated_log_loss=uncalibrated,
            diverged=f"{self.name}: {trainer.diverged}" if trainer.diverged else None,
        )
        record = FineTunedModuleRecord(
            test=result.test,
            head_test=result.head_test,
            validation=result.validation,
            head_validation=result.head_validation,
            adjust=self.rule.strength,
            priors=self.rule.priors,
            identity=trainer.identity,
            kept_epoch=result.kept_epoch,
            temperature=temperature,
            uncalibrated_log_loss=uncalibrated,
        )
        return result, record

    def _probabilities(self, title: str) -> dict[str, Float32Array]:
        """Return the model's probabilities of test split and validation fold."""
        equal = np.ones_like(self.weight_of_class)
        return {
            part: self.trainer.probabilities(self._images(table, equal), what=title.format(part))
            for part, table in self.parts.items()
        }

    def _metrics(self, probs: dict[str, Float32Array], temperature: float) -> dict[str, Figures]:
        """Return the metrics of test split and validation fold, at a temperature."""
        metrics, seed = {}, self.trainer.options.seed
        rule = self.rule.at_temperature(temperature)
        for part, table in self.parts.items():
            labels, groups = table["class_index"].to_numpy(), table["cluster"].to_numpy()
            calibrated = at_temperature(probs[part], temperature)
            metrics[part] = rounded_metrics(calibrated, labels, groups, seed, rule)
        return metrics

    def _write_predictions(self, probs: dict[str, Float32Array], temperature: float) -> None:
        files = {"test": PREDICTIONS, "validation": VALIDATION_PREDICTIONS}
        for part, table in self.parts.items():
            if self.devices.is_chief and len(table):
                calibrated = at_temperature(probs[part], temperature)
                predictions = predictions_table(table, calibrated, self.dataset.class_names)
                files[part].write(self.folder, predictions)

    def export(self, result: FineTuneResult) -> None:
        """Write the fine-tuned model to `export/`."""
        manifest = {
            "run": self.run.name,
            "fine_tuned": True,
            "test": result.test,
            "adjust": self.rule.strength,
            "priors": list(self.rule.priors),
            "calibration": {
                "images": "on the validation fold" if result.kept_epoch else "out of fold",
                "log_loss_before": self.calibration.log_loss_before,
                "log_loss_after": self.calibration.log_loss_after,
            },
            "augmentation": asdict(self.trainer.options.augmentation),
        }
        write_export(
            [Member(self.classifier)],
            self.dataset.class_names,
            self.run.export_folder,
            manifest,
            temperature=self.calibration.temperature,
        )

    def _images(self, table: pd.DataFrame, weight_of_class: Float32Array) -> TrainingImages:
        """Return images that weigh in the loss as their class does."""
        labels = table["class_index"].to_numpy(dtype=np.int64)
        return TrainingImages(
            self.dataset.root,
            table["path"].tolist(),
            table["sha256"].tolist(),
            labels,
            weight_of_class[labels],
        )


def _digest(*parts: Any) -> str:
    return hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest()
