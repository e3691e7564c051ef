"""Evaluates a model on the test split and on the validation fold."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from hubretrain.arrays import AnyArray
from hubretrain.errors import DataError
from hubretrain.evaluation import (
    Calibration,
    Evaluator,
    Predictions,
    Rule,
    at_temperature,
    metric_named,
)
from hubretrain.finetuning.results.criterion import Criterion
from hubretrain.finetuning.results.result import rounded_metrics
from hubretrain.runs import Figures

VALIDATION = "validation"  # the part that epochs and thresholds are chosen on


@dataclass(frozen=True, eq=False)
class PartEvaluator:
    """The images of the parts `test` and `validation`, without their pixels.

    Attributes:
        labels: Part to the labels of its images, see `TrainingImages`.
        groups: Part to the group of each image, (n_images,).
        metric: Metric of choice.
        seed: Random seed of the resamples.
    """

    labels: Mapping[str, AnyArray]
    groups: Mapping[str, AnyArray]
    metric: str
    seed: int

    def predictions(
        self,
        probs: Mapping[str, AnyArray],
        epoch: int,
        criterion: Criterion,
        rule: Rule,
        calibration: Calibration,
    ) -> dict[str, Predictions]:
        """Return the predictions of a model, at its temperature.

        Args:
            probs: Part to probabilities without it, (n_images, n_classes).
            epoch: Epoch of the model; 0 is the head.
            criterion: Decides about the images of the validation fold.
            rule: Decision rule of these probabilities, for other images.
            calibration: The temperature.
        """
        predictions = {}
        for part, of_part in probs.items():
            scores = (
                criterion.scores(of_part, epoch) if part == VALIDATION else rule.adjust(of_part)
            )
            multi_label = self.labels[part].ndim > 1
            calibrated = at_temperature(of_part, calibration.temperature, multi_label)
            predictions[part] = Predictions(calibrated, scores)
        return predictions

    def log_losses(self, probs: Mapping[str, AnyArray]) -> dict[str, float]:
        """Return the log loss of each part with images, nats."""
        log_loss = metric_named("log_loss").function
        return {
            part: float(log_loss(of_part, self.labels[part], None))
            for part, of_part in probs.items()
            if len(of_part)
        }

    def metrics(self, predictions: Mapping[str, Predictions]) -> dict[str, Figures]:
        """Return the metrics of each part; {} where it has too few images."""
        return {
            part: rounded_metrics(of_part, self.labels[part], self.groups[part], self.seed)
            for part, of_part in predictions.items()
        }

    def differences(
        self, predictions: Mapping[str, Predictions], others: Mapping[str, Predictions]
    ) -> Figures:
        """Return the metric of choice minus that of others, by part, with its paired interval."""
        differences = {}
        for part in [name for name in predictions if name in others]:
            evaluator = Evaluator.if_grouped(self.labels[part], self.groups[part], self.seed)
            if evaluator is None:
                continue
            first, second = (of[part].of(self.metric) for of in (predictions, others))
            with contextlib.suppress(DataError):  # such as ROC AUC without images of a class
                change = evaluator.effect([(first, second)], self.metric)
                ends = (change.estimate, change.low, change.high)
                differences[part] = (round(ends[0], 6), round(ends[1], 6), round(ends[2], 6))
        return differences
