"""Fine-tuning of one module of a run: trained on all folds but the first, evaluated, exported."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, Float32Array
from hubretrain.data import ImageDataset
from hubretrain.data.images import MAX_BITS, MOST_PIXELS
from hubretrain.data.splitting import TEST
from hubretrain.errors import RunError
from hubretrain.evaluation import (
    Calibration,
    DecisionRule,
    Predictions,
    Rule,
)
from hubretrain.export import Member, rule_entries, run_entries, write_export
from hubretrain.files import file_sha256
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.input_pipeline import TrainingImages, label_weights, loss_weights
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.results import (
    SHARE,
    Criterion,
    EnsembleMean,
    ExportCandidate,
    FineTuneResult,
    PartEvaluator,
    labels_of,
    mean_with_ensemble,
    predictions_table,
    recorded,
)
from hubretrain.finetuning.schedule import Speed
from hubretrain.finetuning.trainer import Trainer
from hubretrain.heads import Head, ModuleHeads
from hubretrain.modules import Backbone, Classifier, restore_module
from hubretrain.runs import (
    EXPORTED_VALIDATION,
    FINE_TUNED,
    LEADERBOARD,
    PREDICTIONS,
    VALIDATION_FOLD,
    VALIDATION_PREDICTIONS,
    Figures,
    FineTunedModuleRecord,
    FitRecord,
    Run,
)

_log = logging.getLogger(__name__)

TABLES = {"test": PREDICTIONS, "validation": VALIDATION_PREDICTIONS}


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
        heads = ModuleHeads.load(run.checked_heads(name))
        # Heads of a large penalty give nearly equal probabilities: training would first scale them.
        self.head, self._head_of_all = heads.warm_start.calibrated(), heads.deployed.calibrated()
        self.metric = fit.metric
        self._module_of = fit.module
        self.classifier = self._classifier(self.head)
        self.train = images[~images["fold"].isin([TEST, VALIDATION_FOLD])]
        self.parts = {
            "test": images[images["fold"] == TEST],
            "validation": images[images["fold"] == VALIDATION_FOLD],
        }
        self._check_classes()

    def _classifier(self, head: Head, module: str = "") -> Classifier:
        """Return an untrained module with a head, by default that which is trained."""
        name = module or self.name
        backbone = Backbone(restore_module(name, self._module_of(name)), head.layers)
        arrays = (head.weight, head.bias, head.hidden_weight, head.hidden_bias)
        return Classifier(backbone, head.kind, *arrays, multi_label=head.multi_label)

    def _check_classes(self) -> None:
        """Raise where a class would never be trained on, or nothing could decide when to stop."""
        labels, names = self._labels(self.train), self.dataset.class_names
        present = np.flatnonzero(labels.any(axis=0)) if labels.ndim > 1 else np.unique(labels)
        missing = [name for c, name in enumerate(names) if c not in present]
        if missing and labels.ndim > 1:
            _log.warning(
                "the training folds hold no image with the label %s, so %s learns to say no to it",
                *(", ".join(missing), self.name),
            )
        elif missing:
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
        rule, validation = self.head.rule, self.parts["validation"]
        if options.balanced_sampling and not isinstance(rule, DecisionRule):
            raise RunError(
                "`balanced_sampling` draws each class equally often, which images with several "
                "labels do not allow; leave it out: with the class weight `balanced`, images with "
                "and without a label weigh alike."
            )
        self._seconds_between_checkpoints = seconds_between_checkpoints
        self._training = self._to_train_on(self.train, options)
        # Sampling weighs as balanced weights do; there is no sampling on the validation fold.
        weights = self._weights(validation, self.train, is_balanced=options.balanced_sampling)
        self._validation = self._images(validation, weights)
        if options.balanced_sampling and isinstance(rule, DecisionRule):
            # Trained on each class equally often, its logits need no adjustment by priors.
            rule = replace(rule, strength=0.0)
        self.criterion = Criterion(
            self.metric,
            self._labels(validation),
            validation["cluster"].to_numpy(),
            self.head.rule,
            rule,
            self.head.calibration,
        )
        self.evaluator = PartEvaluator(
            {part: self._labels(table) for part, table in self.parts.items()},
            {part: table["cluster"].to_numpy() for part, table in self.parts.items()},
            self.metric,
            options.seed,
        )
        self.trainer = Trainer(
            self.classifier,
            self.folder,
            options,
            self.devices,
            identity={
                "n_train": len(self._training),
                "n_validation": len(self._validation),
                "images": _digest(self._training.digest(), self._validation.digest()),
                "head": _digest_of(self.head),
                "class_weights": _digest(self._training.weights, self._validation.weights),
                "metric": self.metric,
            },
            criterion=self.criterion,
            seconds_between_checkpoints=seconds_between_checkpoints,
        )

    def speed(self) -> Speed:
        """Return how long an image takes; the model is not to be used after."""
        return self.trainer.speed(self._training)

    def check(self, more_epochs: int | None) -> None:
        """Refuse a training that cannot be continued as asked, before anything is computed.

        Raises:
            RunError: The folder holds another training, or none to add epochs to.
        """
        state = self.trainer.check(more_epochs)
        if state is not None and state.is_finished and more_epochs is None:
            _log.info(
                "%s: training was finished after epoch %d; it is evaluated and exported again",
                *(self.name, state.epoch),
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
        started = time.monotonic()
        of_head = self._probabilities("{}, head")
        n_evaluated = sum(len(table) for table in self.parts.values())
        self._seconds_per_image = (time.monotonic() - started) / n_evaluated
        sizes = len(self._training), len(self._validation)
        more = self._what_more_buys if more_epochs is None else None
        self._say_duration("training", self.trainer.passes_left(*sizes, more_epochs), more)
        before = self._predictions(of_head, 0, self.head.rule, self.head.calibration)
        history = self.trainer.fit(self._training, self._validation, more_epochs=more_epochs)
        kept, probs = self.trainer.state.best_epoch, self._probabilities("{}")
        self.rule = self.criterion.rule_of(probs["validation"], kept)
        self.calibration = self.criterion.calibration_of(probs["validation"], kept)
        of_all = self._train_on_all_folds() if kept and self.trainer.options.all_folds else None
        self.all_folds = of_all is not None
        if of_all is not None:
            before["test"], probs["test"] = of_all
        uncalibrated = self.evaluator.log_losses(probs)
        predictions = self._predictions(probs, kept, self.rule, self.calibration)
        name = f"{self.name}, {FINE_TUNED}"
        self.candidate = ExportCandidate(FINE_TUNED, self.name, name, predictions["validation"])
        self._write_predictions(predictions)
        self._over_head = self.evaluator.differences(predictions, before)
        self.mean = None
        if kept:
            of_module = self.run, self.parts, self.name, probs, kept
            judges = self.criterion, self.evaluator
            self.mean = mean_with_ensemble(*of_module, *judges, predictions, before)
        figures = self.evaluator.metrics(predictions), self.evaluator.metrics(before)
        return self._results(history, *figures, uncalibrated)

    def _train_on_all_folds(self) -> tuple[Predictions, Float32Array] | None:
        """Train the head of all folds and its backbone for as many epochs as were best.

        They take the place of the model that chose these epochs: it knows a fold less. Its strength
        of the interpolation, its decision rule and its temperature are kept.

        Returns:
            Of the test split, the predictions of the head, and the probabilities after training;
            None where the loss became infinite or NaN.
        """
        chose, head = self.trainer, self._head_of_all
        policy, state, test = chose.schedule, chose.state, self.parts["test"]
        images = self._to_train_on(pd.concat([self.train, self.parts["validation"]]), chose.options)
        options = replace(
            chose.options,
            epochs=state.base_epochs,
            batch_size=policy.batch_size,
            learning_rate=policy.learning_rate,
        )
        identity = {
            "images": _digest(images.digest()),
            "head": _digest_of(head),
            "class_weights": _digest(images.weights),
        }
        folder = self.folder / "all_folds"
        classifier = self._classifier(head)
        trainer = Trainer(
            classifier,
            folder,
            options,
            self.devices,
            identity=identity,
            seconds_between_checkpoints=self._seconds_between_checkpoints,
        )
        try:
            trainer.check()
        except RunError:  # of other epochs or images, or damaged: what can be computed anew
            if self.devices.is_chief:
                shutil.rmtree(folder)
        passes = trainer.passes_until(state.best_epoch, len(images))
        self._say_duration("training on all folds", passes)
        of_head = self._probabilities_of(trainer, test, "test, head of all folds")
        trainer.fit_without_validation(images, state)
        if trainer.state.diverged is not None:
            chose.notes.append(
                f"On all folds the loss became {trainer.state.diverged}, so the model is the one "
                "that was trained without the validation fold."
            )
            return None
        self.classifier = classifier
        before = self._predictions({"test": of_head}, 0, head.rule, head.calibration)["test"]
        return before, self._probabilities_of(trainer, test, "test, all folds")

    def _say_duration(
        self, what: str, passes: float, more: Callable[[float], str] | None = None
    ) -> None:
        """Say about how long training takes, where it takes minutes.

        Args:
            what: What takes so long.
            passes: Images that the backbone is evaluated on in that time, at the speed of the head.
            more: What else there is to say of so many hours.
        """
        minutes = self._seconds_per_image * passes / 60
        if minutes < 2 or not self.devices.is_chief:
            return
        hours = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"
        advice = "it may be interrupted, and resumes"
        if minutes > 60 and self.trainer.options.unfreeze_last is None:
            advice = (
                "to train the last layers alone, whose inputs are computed once, takes a fraction "
                "of it: `unfreeze_last=20`"
            )
        other = more(minutes / 60) if more is not None else ""
        _log.info("%s: %s takes about %s; %s%s", self.name, what, hours, advice, other)

    def _what_more_buys(self, hours: float) -> str:
        """Return what more time than that of the training policy would be used for.

        It is by the operations of the networks; `hours` plans by timed steps.
        """
        options = self.trainer.options
        if options.hours or options.epochs or options.unfreeze_last is not None:
            return ""
        board = LEADERBOARD.read(self.run.folder).drop_duplicates("module").set_index("module")
        gflops = board["gflops"].reindex(self.run.fit.shortlist).dropna()
        if len(gflops) and self.name in gflops and gflops.idxmax() != self.name:
            ratio = float(gflops.max() / gflops[self.name])
            return f". With `hours={hours * ratio:.2g}` it would be {gflops.idxmax()} instead"
        return f". With `hours={2 * hours:.2g}` it would be for about twice as many epochs"

    def _labels(self, images: pd.DataFrame) -> AnyArray:
        return labels_of(images, self.dataset.class_names)

    def _to_train_on(self, images: pd.DataFrame, options: FineTuneOptions) -> TrainingImages:
        """Return images with their weights in the training loss."""
        weights = self._weights(images, images, is_balanced=options.balanced_sampling)
        return self._images(images, np.ones_like(weights) if options.balanced_sampling else weights)

    def _weights(
        self, images: pd.DataFrame, trained: pd.DataFrame, *, is_balanced: bool
    ) -> Float32Array:
        """Return the weights of images in the loss, as `TrainingImages` has them.

        Args:
            images: The images.
            trained: The images that are trained on, which say how frequent a class is.
            is_balanced: Whether all classes weigh alike.
        """
        counted, labels = self._labels(trained), self._labels(images)
        if labels.ndim > 1:
            without, with_it = label_weights(self.head, counted)
            return np.where(labels, with_it, without)
        of_class = loss_weights(self.head, counted, is_balanced=is_balanced)
        return np.ascontiguousarray(of_class[:, labels].T)

    def _results(
        self,
        history: pd.DataFrame,
        metrics: dict[str, Figures],
        head: dict[str, Figures],
        uncalibrated: dict[str, float],
    ) -> tuple[FineTuneResult, FineTunedModuleRecord]:
        """Return the result and its record; `metrics` and those of the head by part."""
        trainer, temperature = self.trainer, self.calibration.temperature
        with_ensemble = self.mean.record if self.mean is not None else None
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
            over_head=self._over_head,
            diverged=f"{self.name}: {trainer.diverged}" if trainer.diverged else None,
            all_folds=self.all_folds,
            with_ensemble=with_ensemble,
        )
        record = FineTunedModuleRecord(
            test=result.test,
            head_test=result.head_test,
            validation=result.validation,
            head_validation=result.head_validation,
            **recorded(self.rule),
            identity=trainer.identity,
            kept_epoch=result.kept_epoch,
            temperature=temperature,
            uncalibrated_log_loss=uncalibrated,
            over_head=self._over_head,
            files={
                path.name: file_sha256(path)
                for table in TABLES.values()
                if (path := table.path(self.folder)).exists()
            },
            all_folds=self.all_folds,
            with_ensemble=with_ensemble,
        )
        return result, record

    def _probabilities(self, title: str) -> dict[str, Float32Array]:
        """Return the model's probabilities of test split and validation fold."""
        return {
            part: self._probabilities_of(self.trainer, table, title.format(part))
            for part, table in self.parts.items()
        }

    def _probabilities_of(self, trainer: Trainer, table: pd.DataFrame, title: str) -> Float32Array:
        images = self._images(table, np.ones((len(table), 1), np.float32))
        return trainer.probabilities(images, what=title)

    def _predictions(
        self, probs: dict[str, Float32Array], epoch: int, rule: Rule, calibration: Calibration
    ) -> dict[str, Predictions]:
        return self.evaluator.predictions(probs, epoch, self.criterion, rule, calibration)

    def _write_predictions(self, predictions: dict[str, Predictions]) -> None:
        for part, table in self.parts.items():
            if self.devices.is_chief and len(table):
                probs = predictions[part].unadjusted
                rows = predictions_table(table, probs, self.dataset.class_names)
                TABLES[part].write(self.folder, rows)

    def export(self, result: FineTuneResult) -> None:
        """Write the fine-tuned model to `export/`, and its predictions of the validation fold."""
        members, is_tuned = [Member(self.classifier)], bool(result.kept_epoch)
        self._export(members, self.candidate, self.rule, self.calibration, result.test, is_tuned)

    def export_mean(self, mean: EnsembleMean) -> None:
        """Write the mean of the fine-tuned model and the ensemble to `export/`, as `export`."""
        members = [Member(self.classifier, SHARE)]
        for name, weight in mean.ensemble.weights.items():
            head = ModuleHeads.load(self.run.checked_heads(name)).ensemble_member
            classifier = self._classifier(head, name)
            members.append(Member(classifier, (1 - SHARE) * weight))
        figures = mean.record.test
        self._export(members, mean.candidate, mean.rule, mean.calibration, figures, is_tuned=True)

    def _export(
        self,
        members: Sequence[Member],
        candidate: ExportCandidate,
        rule: Rule,
        calibration: Calibration,
        test: Figures,
        is_tuned: bool,
    ) -> None:
        folder = self.run.folder / "finetune"
        probs = candidate.predictions.unadjusted
        rows = predictions_table(self.parts["validation"], probs, self.dataset.class_names)
        EXPORTED_VALIDATION.write(folder, rows)
        manifest = {
            "run": self.run.name,
            "fine_tuned": True,
            "fine_tuned_module": self.name,
            **run_entries(self.run),
            "test": test,
            **rule_entries(rule),
            "calibration": {
                "images": "on the validation fold" if is_tuned else "out of fold",
                "log_loss_before": calibration.log_loss_before,
                "log_loss_after": calibration.log_loss_after,
            },
            "augmentation": asdict(self.trainer.options.augmentation),
            **({"bits": bits} if (bits := self.dataset.reading.bits) < MAX_BITS else {}),
            "validation_sha256": file_sha256(EXPORTED_VALIDATION.path(folder)),
        }
        write_export(
            members,
            self.dataset.class_names,
            self.run.export_folder,
            manifest,
            temperature=calibration.temperature,
        )

    def _images(self, table: pd.DataFrame, weights: Float32Array) -> TrainingImages:
        return TrainingImages(
            self.dataset.root,
            table["path"].tolist(),
            table["sha256"].tolist(),
            self._labels(table),
            weights,
            replace(self.dataset.reading, max_pixels=MOST_PIXELS),
        )


def _digest_of(head: Head) -> str:
    settings = (head.kind, head.layers, asdict(head.rule), asdict(head.calibration))
    arrays = (head.weight, head.bias, head.hidden_weight, head.hidden_bias)
    return _digest(repr(settings).encode(), *(array for array in arrays if array is not None))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest()
