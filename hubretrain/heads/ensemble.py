"""A greedy ensemble of the modules' heads, and its file: `ensemble.json`.

Caruana, Niculescu-Mizil, Crew and Ksikes (2004), Ensemble selection from libraries of models,
ICML, https://doi.org/10.1145/1015330.1015432: starting from nothing, the member that helps the
mean of the probabilities most is added, again and again, any member as often as it helps. What
it helps is the log loss, which rewards every improvement; a balanced accuracy only jumps, by few
images of a rare class. The decision rule is then chosen for the metric; where an image may have
several labels, it is a threshold for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hubretrain.arrays import AnyArray, IntArray
from hubretrain.errors import HeadError
from hubretrain.evaluation import (
    METRICS,
    UNCALIBRATED,
    UNCHOSEN,
    Calibration,
    DecisionRule,
    LabelThresholds,
    Rule,
    best_thresholds,
    class_priors,
)
from hubretrain.files import read_json, write_record

FORMAT = "hubretrain ensemble 2"
ENSEMBLE_NAME = "ensemble"  # among the modules of a run
MAX_STEPS = 25
_TOP_1 = DecisionRule(0.0, ())


@dataclass(frozen=True)
class Ensemble:
    """A weighted mean of the probabilities of several modules' heads.

    Attributes:
        weights: Module name to its weight; the weights sum to 1.
        rule: Decision rule after the mean.
        calibration: Temperature of the mean when it is used, fitted on the mean of the members'
            out-of-fold probabilities; `mean` is without it.
    """

    weights: Mapping[str, float]
    rule: Rule
    calibration: Calibration = UNCALIBRATED

    def mean(self, probs: Mapping[str, AnyArray]) -> AnyArray:
        """Return the mean of the members' probabilities, each (n_images, n_classes)."""
        return np.asarray(sum(weight * probs[name] for name, weight in self.weights.items()))

    def adjusted(self, probs: Mapping[str, AnyArray]) -> AnyArray:
        """Return the mean after logit adjustment: the largest is the decision."""
        return self.rule.adjust(self.mean(probs))

    def save(self, path: Path, class_names: Sequence[str]) -> None:
        """Write the file, whole or not at all.

        Raises:
            WriteError: The file cannot be written.
        """
        record: dict[str, Any] = {
            "format": FORMAT,
            "class_names": list(class_names),
            "weights": self.weights,
        }
        if isinstance(self.rule, LabelThresholds):
            record |= {"multi_label": True, "thresholds": list(self.rule.values)}
        else:
            record |= {"adjust": self.rule.strength, "priors": list(self.rule.priors)}
        record |= {"calibration": asdict(self.calibration)}
        write_record(path, record)

    @classmethod
    def load(cls, path: Path) -> Ensemble:
        """Read the file.

        Raises:
            HeadError: It is missing, or no ensemble.
        """
        remedy = "run `hubretrain fit` again, on two modules or more"
        try:
            record = read_json(path, _EnsembleRecord, HeadError, remedy)
        except FileNotFoundError:
            raise HeadError(f"{path} is missing; {remedy}.") from None
        if record.format != FORMAT:
            raise HeadError(f"{path} is of format {record.format}, not {FORMAT}; {remedy}.")
        rule: Rule
        if record.multi_label:
            rule = LabelThresholds(record.thresholds)
        elif record.adjust is None or record.priors is None:
            raise HeadError(f"{path} has no decision rule; {remedy}.")
        else:
            rule = DecisionRule(record.adjust, record.priors)
        return cls(record.weights, rule, record.calibration)


@dataclass(frozen=True)
class _EnsembleRecord:
    """What `ensemble.json` holds."""

    format: str
    weights: dict[str, float]
    calibration: Calibration
    adjust: float | None = None
    priors: tuple[float, ...] | None = None
    multi_label: bool = False
    thresholds: tuple[float, ...] = ()


def greedy_ensemble(
    probs: Mapping[str, AnyArray], labels: AnyArray, metric: str, strengths: Sequence[float]
) -> Ensemble:
    """Return the ensemble whose members, weights and decision rule are chosen on these images.

    Args:
        probs: Module name to out-of-fold probabilities (n_images, n_classes).
        labels: int (n_images,); or bool (n_images, n_classes), where an image may have several.
        metric: Name of the metric that the decision rule is chosen for.
        strengths: Strengths of logit adjustment to choose from.
    """
    names = list(probs)
    of_label = np.stack([_of_labels(probs[name], labels) for name in names]).astype(np.float64)
    counts, total = np.zeros(len(names)), np.zeros(of_label.shape[1])
    best, best_loss = counts, np.inf
    for step in range(1, MAX_STEPS + 1):
        likely = np.maximum((total + of_label) / step, 1e-12)
        losses = -np.log(likely).mean(axis=1)
        added = int(losses.argmin())
        counts = counts + np.eye(len(names))[added]
        total += of_label[added]
        if losses[added] < best_loss - 1e-9:
            best, best_loss = counts, float(losses[added])
    weights = {
        name: float(count / best.sum()) for name, count in zip(names, best, strict=True) if count
    }
    if labels.ndim == 2:
        return Ensemble(weights, best_thresholds(Ensemble(weights, _TOP_1).mean(probs), labels))
    priors = tuple(class_priors(labels, next(iter(probs.values())).shape[1]).tolist())
    function, higher = METRICS[metric].function, METRICS[metric].higher_is_better
    rules = strengths if METRICS[metric].is_of_decision else (0.0,)
    candidates = [Ensemble(weights, DecisionRule(strength, priors)) for strength in rules]
    values = [float(function(each.adjusted(probs), labels, None)) for each in candidates]
    return candidates[int(np.argmax(values) if higher else np.argmin(values))]


def _of_labels(probs: AnyArray, labels: AnyArray) -> AnyArray:
    """Return the probability of what each image is, (n_images,), or of each label, flat."""
    if labels.ndim == 2:
        return np.where(labels, probs, 1 - probs).ravel()
    return probs[np.arange(len(labels)), labels]


def crossfitted_ensemble(
    within: Mapping[str, AnyArray],
    evaluated: Mapping[str, AnyArray],
    labels: AnyArray,
    parts: IntArray,
    metric: str,
    strengths: Sequence[float],
) -> tuple[AnyArray, AnyArray]:
    """Return predictions of each image by the ensemble that was chosen without its part.

    Args:
        within: Module name to probabilities that members are chosen by, (n_images, n_classes):
            each image's of a head that was neither fitted nor chosen on an image of another part
            than its own, for an ensemble is evaluated on the other. NaN for an image that has none.
        evaluated: The same members' probabilities that the mean is taken of, out of fold.
        labels: As `greedy_ensemble` takes them.
        parts: int (n_images,) of two parts, from `choice_parts`.
        metric: Name of the metric that the decision rule is chosen for.
        strengths: Strengths of logit adjustment to choose from.

    Returns:
        Probabilities, unadjusted and adjusted; both (n_images, n_classes).
    """
    shape = next(iter(evaluated.values())).shape
    unadjusted, adjusted = np.zeros(shape), np.zeros(shape)
    scored = np.isfinite(np.stack([probs[:, 0] for probs in within.values()])).all(axis=0)
    for part in np.unique(parts):
        here = parts == part
        chosen_on = ~here & scored
        if chosen_on.any():
            others = {name: probs[chosen_on] for name, probs in within.items()}
            ensemble = greedy_ensemble(others, labels[chosen_on], metric, strengths)
        else:  # of so few images that nothing can be chosen, all are members
            rule = LabelThresholds((UNCHOSEN,) * shape[1]) if labels.ndim == 2 else _TOP_1
            ensemble = Ensemble(dict.fromkeys(within, 1 / len(within)), rule)
        held_out = {name: probs[here] for name, probs in evaluated.items()}
        unadjusted[here], adjusted[here] = ensemble.mean(held_out), ensemble.adjusted(held_out)
    return unadjusted, adjusted
