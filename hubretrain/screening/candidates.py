"""Out-of-fold predictions of every fitted head of one module, with every decision rule.

A candidate is a fitted head (on which layers and views it was trained, its kind, class weight and
l2) with a decision rule, the strength of its logit adjustment. Where an image may have several
labels, it has one rule: the thresholds of its best F1 on the images that choose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, BoolArray, Float32Array, IntArray
from hubretrain.evaluation import (
    DecisionRule,
    Rule,
    best_thresholds,
    metric_named,
    value_at_best,
)
from hubretrain.heads import Criterion, HeadPath, Kind, probabilities

LAST_LAYER, ALL_LAYERS = "last", "all"
VIEW_0, ALL_VIEWS = "view 0", "all views"


class Source(NamedTuple):
    """The paths that candidates come from.

    Attributes:
        layers: Layers whose features they take, `last` or `all`.
        trained_on: Views that they are trained on, `view 0` or `all views`.
        kind: Kind of the heads.
    """

    layers: str
    trained_on: str
    kind: Kind


class Position(NamedTuple):
    """Where a candidate was fitted.

    Attributes:
        source: Its path.
        class_weight: Index of its class weight on the path.
        l2: Index of its l2 on the path.
    """

    source: Source
    class_weight: int
    l2: int


def stopping_criterion(
    metric: str, labels: AnyArray, priors: AnyArray, strengths: Sequence[float]
) -> Criterion | None:
    """Return what the paths of heads may not end before the best of, besides the log loss.

    It is the metric of choice with the best of the strengths of adjustment. A gain counts from half
    a standard error of a share of 1 / 2 on, so that chance does not prolong the paths, of as many
    images as the metric rests on: all, or K^2 / sum_c 1 / n_c of a mean over K classes.

    Args:
        metric: Name of the metric of choice.
        labels: int (n_validated,); bool (n_validated, n_classes) of several labels, whose decisions
            are those at the best thresholds.
        priors: Share of each class, for the adjustment.
        strengths: Strengths of adjustment; (0,) for none.
    """
    of = metric_named(metric)
    if not of.is_share:
        return None
    rules = [DecisionRule(float(s), tuple(priors.tolist())) for s in strengths]
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    n_per_class, n = counts[counts > 0], len(labels)
    if of.is_mean_over_classes:
        n = len(n_per_class) ** 2 / (1 / n_per_class).sum()
    scale = (-4 if of.higher_is_better else 4) * np.sqrt(n)

    def criterion(probs: AnyArray) -> float:
        if labels.ndim == 2:
            return scale * value_at_best(metric, probs, labels)
        return min(scale * float(of.function(rule.adjust(probs), labels, None)) for rule in rules)

    return criterion


class Candidates:
    """The heads on some paths, with every strength of adjustment, the simplest first.

    Args:
        paths: Fitted paths; heads whose path was stopped early are no candidates.
        validated: bool (n_images,), the images whose out-of-fold predictions count.
        priors: Share of each class, for the adjustment.
        strengths: Strengths of adjustment; (0,) for none.
        averaged: Function from a position to its probabilities averaged over views,
            float32 (n_validated, n_classes).
        labels: Where an image may have several labels, those of the validated images, bool
            (n_validated, n_classes), and
        parts: their parts, from `choice_parts`: thresholds of one are chosen on the others.

    Attributes:
        table: One row per candidate: layers, trained_on, head, class_weight, l2, adjust, passes,
            converged.
    """

    def __init__(
        self,
        paths: Mapping[Source, HeadPath],
        validated: BoolArray,
        priors: AnyArray,
        strengths: Sequence[float],
        averaged: Callable[[Position], Float32Array],
        labels: BoolArray | None = None,
        parts: IntArray | None = None,
    ) -> None:
        self._labels, self._parts = labels, parts
        self._paths, self._validated = paths, validated
        self._rules = [DecisionRule(float(s), tuple(priors.tolist())) for s in strengths]
        self._positions = [
            Position(source, int(w), int(i))
            for source, path in paths.items()
            for w in range(len(path.class_weights))
            for i in np.argsort(-path.l2, kind="stable")
            if not path.stopped_early[w, :, i].any()
        ]
        self.table = pd.DataFrame(
            [
                self._row(position, rule.strength)
                for position in self._positions
                for rule in self._rules
            ]
        )
        # The rules of a head follow one another and share its probabilities.
        self._probs = lru_cache(maxsize=1)(self._probs_of)
        self._averaged = lru_cache(maxsize=None)(averaged)  # asked for the few that are chosen

    def _row(self, position: Position, strength: float) -> dict[str, object]:
        source, w, i = position
        path = self._paths[source]
        return {
            "layers": source.layers,
            "trained_on": source.trained_on,
            "head": source.kind,
            "class_weight": path.class_weights[w],
            "l2": float(path.l2[i]),
            "adjust": strength,
            "passes": int(path.iterations[w, :, i].max()),
            "converged": bool(path.converged[w, :, i].all()),
        }

    def __len__(self) -> int:
        return len(self.table)

    def position(self, candidate: int) -> Position:
        """Return where a candidate was fitted."""
        return self._positions[candidate // len(self._rules)]

    def rule(self, candidate: int) -> Rule:
        """Return the decision rule of a candidate, that of several labels as all images choose."""
        if self._labels is not None:
            return best_thresholds(self.unadjusted(candidate), self._labels)
        return self._rules[candidate % len(self._rules)]

    def unadjusted(self, candidate: int) -> Float32Array:
        """Return its probabilities on view 0, float32 (n_validated, n_classes)."""
        return self._probs(self.position(candidate))

    def adjusted(self, candidate: int) -> Float32Array:
        """Return the same after its decision rule, which no image chooses for itself."""
        return self._adjusted(candidate, self.unadjusted(candidate))

    def _adjusted(self, candidate: int, probs: Float32Array) -> Float32Array:
        if self._labels is None or self._parts is None:
            return self.rule(candidate).adjust(probs)
        of_view_0, adjusted = self.unadjusted(candidate), np.empty_like(probs)
        for part in np.unique(self._parts):
            inside = self._parts == part
            rule = best_thresholds(of_view_0[~inside], self._labels[~inside])
            adjusted[inside] = rule.adjust(probs[inside])
        return adjusted

    def deployed_adjusted(self, candidate: int) -> Float32Array:
        """Return its probabilities after the decision rule that all images choose."""
        return self.rule(candidate).adjust(self.unadjusted(candidate))

    def of(self, metric: str) -> Callable[[int], Float32Array]:
        """Return the function to what a metric evaluates of a candidate."""
        return self.adjusted if metric_named(metric).is_of_decision else self.unadjusted

    def to_choose(self, metric: str) -> Callable[[int], Float32Array]:
        """Return the function to what `candidate_values` takes of a candidate."""
        return self.unadjusted if self._labels is not None else self.of(metric)

    def averaged_unadjusted(self, candidate: int) -> Float32Array:
        """Return its probabilities averaged over views, float32 (n_validated, n_classes)."""
        return self._averaged(self.position(candidate))

    def averaged_adjusted(self, candidate: int) -> Float32Array:
        """Return the same after its decision rule, as `adjusted`."""
        return self._adjusted(candidate, self.averaged_unadjusted(candidate))

    def deployed_averaged_adjusted(self, candidate: int) -> Float32Array:
        """Return the same after the decision rule that all images choose."""
        return self.rule(candidate).adjust(self.averaged_unadjusted(candidate))

    def _probs_of(self, position: Position) -> Float32Array:
        path = self._paths[position.source]
        chosen = path.out_of_fold[self._validated, position.class_weight, position.l2]
        return probabilities(chosen, path.kind, self._labels is not None)
