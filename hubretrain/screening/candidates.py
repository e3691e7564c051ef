"""Every head of one module as a candidate: what it says of images that it never saw.

A candidate is a fitted head (which views it was trained on, its kind, class weight and l2) with a
decision rule, the strength of logit adjustment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.evaluation import DecisionRule
from hubretrain.heads import HeadPath, Kind, probabilities

VIEW_0, ALL_VIEWS = "view 0", "all views"
Probabilities = npt.NDArray[np.float32]


class Source(NamedTuple):
    """The paths that candidates come from: one kind of head, trained on some of the views."""

    trained_on: str
    kind: Kind


class Candidates:
    """The heads on some paths, with every strength of adjustment, the simplest first.

    Args:
        paths: What was fitted; heads that were stopped early are no candidates.
        validated: bool (n_images,), the images with out-of-fold scores that count.
        priors: Of the classes, for the adjustment.
        strengths: Of the adjustment; (0,) for none.

    Attributes:
        table: One row a candidate: trained_on, head, class_weight, l2, adjust, passes, converged.
    """

    def __init__(
        self,
        paths: Mapping[Source, HeadPath],
        validated: npt.NDArray[np.bool_],
        priors: AnyArray,
        strengths: Sequence[float],
    ) -> None:
        self._paths, self._validated = paths, validated
        self._priors = tuple(priors.tolist())
        self._places: list[tuple[Source, int, int]] = []
        rows = []
        for source, path in paths.items():
            fitted = np.logical_not(path.stopped_early.any(axis=1))
            for w, name in enumerate(path.class_weights):
                for i in np.argsort(-path.l2, kind="stable"):
                    if not fitted[w, i]:
                        continue
                    facts = {
                        "trained_on": source.trained_on,
                        "head": source.kind,
                        "class_weight": name,
                        "l2": float(path.l2[i]),
                    }
                    found = {
                        "passes": int(path.iterations[w, :, i].max()),
                        "converged": bool(path.converged[w, :, i].all()),
                    }
                    rows += [facts | {"adjust": float(s)} | found for s in strengths]
                    self._places += [(source, w, int(i))] * len(strengths)
        self.table = pd.DataFrame(rows)
        self._strengths = self.table["adjust"].to_numpy()
        self._plain = lru_cache(maxsize=2)(self._said)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, candidate: int) -> tuple[Source, int, int]:
        """Where a candidate was fitted: its paths, and its class weight and l2 by index."""
        return self._places[candidate]

    def rule(self, candidate: int) -> DecisionRule:
        """Return the decision rule of a candidate."""
        return DecisionRule(float(self._strengths[candidate]), self._priors)

    def plain(self, candidate: int) -> Probabilities:
        """Its probabilities on view 0, float32 (n_validated, n_classes)."""
        return self._plain(*self._places[candidate], False)

    def decided(self, candidate: int) -> Probabilities:
        """The same after its decision rule: the largest is the decision."""
        return self._ruled(self.plain(candidate), candidate)

    def averaged(self, candidate: int) -> Probabilities:
        """After its decision rule, with scores averaged over the views of each image."""
        return self._ruled(self.averaged_plain(candidate), candidate)

    def averaged_plain(self, candidate: int) -> Probabilities:
        """Probabilities from scores averaged over the views of each image."""
        return self._plain(*self._places[candidate], True)

    def _ruled(self, said: Probabilities, candidate: int) -> Probabilities:
        return self.rule(candidate).adjust(said)

    def _said(self, source: Source, w: int, i: int, averaged: bool) -> Probabilities:
        path = self._paths[source]
        scores = path.out_of_fold_mean if averaged else path.out_of_fold
        assert scores is not None
        return probabilities(scores[self._validated, w, i], path.kind)
