"""A greedy ensemble of the modules' heads, and its file: `ensemble.json`.

Caruana, Niculescu-Mizil, Crew and Ksikes (2004), Ensemble selection from libraries of models,
ICML, https://doi.org/10.1145/1015330.1015432: starting from nothing, the member that helps the
mean of the probabilities most is added, again and again, any member as often as it helps. What
it helps is the log loss, which rewards every improvement, where few images of a rare class move a
balanced accuracy only by jumps; the decision rule is then chosen for the metric.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray
from hubretrain.errors import HeadError
from hubretrain.evaluation import METRICS, adjusted, class_priors
from hubretrain.files import write_json
from hubretrain.heads.heads import Heads

if TYPE_CHECKING:
    from hubretrain.runs import Run

FORMAT = "hubretrain ensemble"
ENSEMBLE_NAME = "ensemble"  # among the modules of a run
MOST_STEPS = 25
LIKELIEST = 2  # which of a module's kept heads is the member


@dataclass(frozen=True)
class Ensemble:
    """A weighted mean of the probabilities of several modules' heads.

    Attributes:
        weights: Module name to its weight; they sum to 1.
        adjust: Strength of the logit adjustment after the mean.
        priors: Of the classes, for the adjustment.
    """

    weights: Mapping[str, float]
    adjust: float
    priors: tuple[float, ...]

    def plain(self, said: Mapping[str, AnyArray]) -> AnyArray:
        """The mean of the members' probabilities, each (n_images, n_classes)."""
        return np.asarray(sum(weight * said[name] for name, weight in self.weights.items()))

    def decided(self, said: Mapping[str, AnyArray]) -> AnyArray:
        """The same after the decision rule: the largest is the decision."""
        return adjusted(self.plain(said), np.array(self.priors), self.adjust)

    def probabilities(self, run: Run, features: Mapping[str, AnyArray]) -> AnyArray:
        """The mean for new images, from each member's bottlenecks (n_images, n_features).

        Raises:
            HeadError: A member's head file is missing or damaged.
        """
        said = {}
        for name in self.weights:
            head = Heads.load(run.heads_file(name)).select([LIKELIEST])
            said[name] = head.probabilities(features[name])[:, 0]
        return self.plain(said)

    def save(self, path: Path, class_names: Sequence[str]) -> None:
        """Writes the file, whole or not at all.

        Raises:
            WriteError: It cannot be written.
        """
        write_json(path, {"format": FORMAT, "class_names": list(class_names), **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Ensemble:
        """Reads the file.

        Raises:
            HeadError: It is missing, or no ensemble.
        """
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise KeyError("format")
            return cls(facts["weights"], float(facts["adjust"]), tuple(facts["priors"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HeadError(
                f"{path} holds no ensemble ({error}); fit two modules or more with: hubretrain fit"
            ) from error


def greedy_ensemble(
    said: Mapping[str, AnyArray], labels: AnyArray, metric: str, strengths: Sequence[float]
) -> Ensemble:
    """Chooses members, weights and decision rule on these images.

    Args:
        said: Module name to out-of-fold probabilities (n_images, n_classes).
        labels: int (n_images,).
        metric: A name in `METRICS`; the rule is chosen for it.
        strengths: Of logit adjustment, to choose from.
    """
    names, image = list(said), np.arange(len(labels))
    of_label = np.stack([said[name][image, labels] for name in names]).astype(np.float64)
    counts, total = np.zeros(len(names)), np.zeros(len(labels))
    best, best_loss = counts, np.inf
    for step in range(1, MOST_STEPS + 1):
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
    priors = tuple(class_priors(labels, next(iter(said.values())).shape[1]).tolist())
    function, higher = METRICS[metric].function, METRICS[metric].higher_is_better
    rules = strengths if METRICS[metric].is_of_decision else (0.0,)
    candidates = [Ensemble(weights, strength, priors) for strength in rules]
    values = [float(function(one.decided(said), labels, None)) for one in candidates]
    return candidates[int(np.argmax(values) if higher else np.argmin(values))]


def crossfitted_ensemble(
    said: Mapping[str, AnyArray],
    labels: AnyArray,
    parts: npt.NDArray[np.int64],
    metric: str,
    strengths: Sequence[float],
    judged: Mapping[str, AnyArray] | None = None,
) -> tuple[AnyArray, AnyArray]:
    """What ensembles say of each image that was not there when they were chosen.

    Args:
        said: As `greedy_ensemble` takes it.
        labels: int (n_images,).
        parts: int (n_images,), of `choosing.choice_parts`.
        metric: A name in `METRICS`.
        strengths: Of logit adjustment.
        judged: Other probabilities of the same members, such as averaged over views, to take the
            mean of instead.

    Returns:
        Probabilities, and the same after the decision rule; both (n_images, n_classes).
    """
    judged = said if judged is None else judged
    shape = next(iter(said.values())).shape
    plain, decided = np.zeros(shape), np.zeros(shape)
    for part in np.unique(parts):
        here = parts == part
        others = {name: one[~here] for name, one in said.items()}
        ensemble = greedy_ensemble(others, labels[~here], metric, strengths)
        mine = {name: one[here] for name, one in judged.items()}
        plain[here], decided[here] = ensemble.plain(mine), ensemble.decided(mine)
    return plain, decided
