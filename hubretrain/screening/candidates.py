"""Out-of-fold predictions of every fitted head of one module, with every decision rule.

A candidate is a fitted head (on which layers and views it was trained, its kind, class weight and
l2) with a decision rule, the strength of its logit adjustment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, BoolArray, Float32Array
from hubretrain.evaluation import DecisionRule
from hubretrain.heads import HeadPath, Kind, probabilities

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


class Candidates:
    """The heads on some paths, with every strength of adjustment, the simplest first.

    Args:
        paths: Fitted paths; heads whose path was stopped early are no candidates.
        validated: bool (n_images,), the images whose out-of-fold predictions count.
        priors: Share of each class, for the adjustment.
        strengths: Strengths of adjustment; (0,) for none.
        averaged: Function from a position to its probabilities averaged over views,
            float32 (n_validated, n_classes).

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
    ) -> None:
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

    def rule(self, candidate: int) -> DecisionRule:
        """Return the decision rule of a candidate."""
        return self._rules[candidate % len(self._rules)]

    def unadjusted(self, candidate: int) -> Float32Array:
        """Return its probabilities on view 0, float32 (n_validated, n_classes)."""
        return self._probs(self.position(candidate))

    def adjusted(self, candidate: int) -> Float32Array:
        """Return the same after its logit adjustment: the largest is the decision."""
        return self.rule(candidate).adjust(self.unadjusted(candidate))

    def averaged_unadjusted(self, candidate: int) -> Float32Array:
        """Return its probabilities averaged over views, float32 (n_validated, n_classes)."""
        return self._averaged(self.position(candidate))

    def averaged_adjusted(self, candidate: int) -> Float32Array:
        """Return the same after its logit adjustment."""
        return self.rule(candidate).adjust(self.averaged_unadjusted(candidate))

    def _probs_of(self, position: Position) -> Float32Array:
        path = self._paths[position.source]
        chosen = path.out_of_fold[self._validated, position.class_weight, position.l2]
        return probabilities(chosen, path.kind)
