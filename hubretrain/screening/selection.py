"""The candidates of one module, which of them are best, and the predictions of the best.

The figures of one module are cross-fitted: its candidate is chosen by the scores out of fold of
the other half. Where modules compete, for the best and in an ensemble, this is not enough: the
heads that score one half out of fold were trained on the labels of the other, so a module that
looks better than it is in the one does so in the other. So there the choice is made by heads that
were fitted outside of the part, too. Candidates of one module share features, so err alike.
Cawley and Talbot (2010), On over-fitting in model selection, JMLR 11:2079,
https://jmlr.org/papers/v11/cawley10a.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, BoolArray, Float32Array, FloatArray, IntArray
from hubretrain.bottlenecks import Bottlenecks
from hubretrain.evaluation import (
    N_PARTS,
    UNCALIBRATED,
    Calibration,
    Choice,
    Predictions,
    calibrate,
    candidate_values,
    choice_parts,
    choose,
    crossfitted,
    metric_named,
    value_at_best,
)
from hubretrain.heads import Head, ModuleHeads
from hubretrain.runs import VALIDATION_FOLD
from hubretrain.screening.candidates import Candidates, Source
from hubretrain.screening.fitting import ModuleFitting
from hubretrain.screening.sweep import EFFECTS, Sweep

SHOWN = ("accuracy", "balanced_accuracy", "log_loss")
SHOWN_OF_LABELS = ("mean_average_precision", "macro_f1", "log_loss")
SETTINGS = ["layers", "trained_on", "head", "class_weight", "l2", "adjust"]
TRAINED_ON = -1  # the fold of images that every fold trains on


@dataclass(frozen=True)
class Outside:
    """What the images outside of one part say of the candidates, with no help from that part.

    Attributes:
        metrics: Metric to its value by the settings of each candidate.
        member: Probabilities of the best by log loss, float32 (n_scored, n_classes).
        scored: bool (n_validated,), the images that have such probabilities.
        reach: Smallest and largest l2 that was fitted, (2, n_class_weights) of each source.
    """

    metrics: Mapping[str, Mapping[tuple[Any, ...], float]]
    member: Float32Array
    scored: BoolArray
    reach: Mapping[Source, FloatArray]

    @classmethod
    def of_part(
        cls, bottlenecks: Bottlenecks, images: pd.DataFrame, sweep: Sweep, part: int
    ) -> Outside:
        """Fit every head to the images outside of a part, in folds of their own, and score it.

        Args:
            bottlenecks: As `ModuleFitting` takes them.
            images: As `ModuleFitting` takes them.
            sweep: What to compare.
            part: Number of the part.
        """
        validated = images[images["fold"] >= 0]
        inside = outside_of(images, part, sweep)
        scored = validated.index.isin(inside.index[inside["fold"] >= 0])
        if not scored.any():
            return cls({}, np.zeros((0, len(sweep.class_names)), np.float32), scored, {})
        fitting = ModuleFitting(bottlenecks, inside, sweep)
        fitting.fit(f"choosing for {bottlenecks.path.stem}, part {part + 1}")
        candidates = _candidates(fitting)
        labels = fitting.labels[fitting.validated]
        settings = list(candidates.table[SETTINGS].itertuples(index=False, name=None))
        values = {}
        for metric in (sweep.metric, "log_loss"):
            probs = candidates.to_choose(metric)
            of_each = (value_at_best(metric, probs(n), labels) for n in range(len(candidates)))
            values[metric] = dict(zip(settings, of_each, strict=True))
        losses = np.array(list(values["log_loss"].values()))
        best = choose(losses[None], "log_loss").best
        reach = {}
        for source, path in fitting.paths.items():
            is_fitted = ~path.stopped_early.any(axis=1)
            smallest = np.where(is_fitted, path.l2, np.inf).min(axis=1)
            largest = np.where(is_fitted, path.l2, -np.inf).max(axis=1)
            reach[source] = np.stack([smallest, largest])
        return cls(values, candidates.unadjusted(best), scored, reach)


def outside_of(images: pd.DataFrame, part: int, sweep: Sweep | None = None) -> pd.DataFrame:
    """Return the images outside of a part, divided into as many folds of their own.

    A class all of whose images are in one of these folds is trained on in all, with its groups; of
    one that has no image left outside of the part, the images inside are trained on. Where an image
    may have several labels, as `sweep` says, neither is so: heads need no image of each.
    """
    n_folds = images.loc[images["fold"] >= 0, "fold"].nunique()
    validated = images["fold"].to_numpy() >= 0
    is_inside = np.zeros(len(images), bool)
    is_inside[validated] = _parts_of(images[validated], sweep) == part
    kept = images[~is_inside].astype({"fold": np.int64})
    scored = kept["fold"] >= 0
    n_groups = kept.loc[scored, "cluster"].nunique()
    fold = _parts_of(kept[scored], sweep, n_parts=n_folds) if n_groups > 1 else TRAINED_ON
    kept.loc[scored, "fold"] = fold
    if sweep is not None and sweep.multi_label:
        return kept
    folds = kept.groupby("class_index")["fold"]
    in_one = kept["class_index"].map((folds.min() == folds.max()) & (folds.min() >= 0))
    of_such = kept.loc[in_one, "cluster"]
    kept.loc[kept["cluster"].isin(of_such), "fold"] = TRAINED_ON
    lacking = images[is_inside & ~images["class_index"].isin(kept["class_index"])]
    return pd.concat([kept, lacking.assign(fold=TRAINED_ON)])


def reach_of(outside: Sequence[Outside]) -> Mapping[Source, FloatArray]:
    """Return the l2 that a path covers in any case: all that were fitted without a part.

    Where it ended is known from the labels of all images, so nothing is to depend on it.
    """
    reach: dict[Source, FloatArray] = {}
    for of_part in outside:
        for source, l2 in of_part.reach.items():
            smallest, largest = reach.get(source, l2)
            reach[source] = np.stack([np.minimum(smallest, l2[0]), np.maximum(largest, l2[1])])
    return reach


def _parts_of(images: pd.DataFrame, sweep: Sweep | None, n_parts: int = N_PARTS) -> IntArray:
    labels = images["class_index"].to_numpy() if sweep is None else sweep.targets(images)
    return choice_parts(labels, images["cluster"].to_numpy(), n_parts=n_parts)


def _candidates(fitting: ModuleFitting, parts: IntArray | None = None) -> Candidates:
    sweep = fitting.sweep
    strengths = sweep.strengths if metric_named(sweep.metric).is_of_decision else (0.0,)
    labels = fitting.labels[fitting.validated] if sweep.multi_label else None
    return Candidates(
        fitting.paths,
        fitting.validated,
        fitting.priors,
        strengths,
        fitting.averaged,
        labels,
        parts,
    )


class Selection:
    """The candidates of one module, and which of them are best.

    Args:
        fitting: The fitted heads.
        outside: Of each part, what the images outside of it say. None where all images are
            validated by one fold: its heads were fitted on neither part.

    Attributes:
        candidates: The heads with every decision rule.
        by_metric: Best candidate by the metric of choice; without a part by scores out of fold.
        nested: The same, but without a part by heads that were fitted without it.
        by_log_loss: Best candidate by log loss, likewise.
        calibration: Temperature of the deployed head.
    """

    def __init__(self, fitting: ModuleFitting, outside: Sequence[Outside] | None = None) -> None:
        sweep = fitting.sweep
        self._fitting, self._metric, self._outside = fitting, sweep.metric, outside
        self._labels = fitting.labels[fitting.validated]
        groups = fitting.groups[fitting.validated]
        self._parts = choice_parts(self._labels, groups)
        self.candidates = _candidates(fitting, self._parts)
        shown = SHOWN_OF_LABELS if sweep.multi_label else SHOWN
        names = dict.fromkeys((sweep.metric, *shown))
        self._values = {name: self._values_of(name) for name in names}
        self._nested_values = {n: self._values_outside(n) for n in (sweep.metric, "log_loss")}
        self.by_metric = self._choose(None)
        self.nested = choose(self._nested_values[sweep.metric], sweep.metric)
        self.by_log_loss = choose(self._nested_values["log_loss"], "log_loss")
        deployed = self.candidates.unadjusted(self.by_metric.best)
        self.calibration = calibrate(deployed, self._labels, groups)

    def _values_of(self, metric: str) -> AnyArray:
        probs = self.candidates.to_choose(metric)
        every = (probs(n) for n in range(len(self.candidates)))
        return candidate_values(metric, every, self._labels, self._parts)

    def _values_outside(self, metric: str) -> AnyArray:
        """Return the values of `candidate_values`, without a part by heads fitted without it."""
        values = self._values[metric].copy()
        settings = list(self.candidates.table[SETTINGS].itertuples(index=False, name=None))
        for part, outside in enumerate(self._outside or ()):
            of = outside.metrics.get(metric, {})
            values[1 + part] = [of.get(each, np.nan) for each in settings]
        return values

    def _member_within(self) -> Float32Array:
        """Return the probabilities that ensembles are chosen by; see `screen`."""
        shape = len(self._labels), self._fitting.n_classes
        probs = np.full(shape, np.nan, np.float32)
        for part, candidate in enumerate(self.by_log_loss.without):
            if self._outside is None:
                outside = self._parts != part
                probs[outside] = self.candidates.unadjusted(int(candidate))[outside]
            else:
                probs[self._outside[part].scored] = self._outside[part].member
        return probs

    def _choose(self, among: pd.Series[bool] | None) -> Choice:
        mask = None if among is None else among.to_numpy(dtype=bool)
        return choose(self._values[self._metric], self._metric, mask)

    def predictions(self) -> dict[str, Float32Array]:
        """Return out-of-fold probabilities by name; see `hubretrain.screening.screen`."""
        candidates, table = self.candidates, self.candidates.table
        best, most_likely = self.by_metric.best, self.by_log_loss.best
        kept = {
            "deployed": candidates.unadjusted(best),
            "deployed_adjusted": candidates.deployed_adjusted(best),
            "ensemble_member": candidates.unadjusted(most_likely),
            "member_within": self._member_within(),
        }
        choices: dict[str, tuple[Choice, Callable[[int], AnyArray]]] = {
            "unadjusted": (self.by_metric, candidates.unadjusted),
            "adjusted": (self.by_metric, candidates.adjusted),
            "nested_unadjusted": (self.nested, candidates.unadjusted),
            "nested_adjusted": (self.nested, candidates.adjusted),
            "member": (self.by_log_loss, candidates.unadjusted),
        }
        if self._fitting.n_views_averaged > 1:
            kept |= {
                "deployed_averaged": candidates.averaged_unadjusted(best),
                "deployed_averaged_adjusted": candidates.deployed_averaged_adjusted(best),
                "ensemble_member_averaged": candidates.averaged_unadjusted(most_likely),
            }
            choices |= {
                "averaged_unadjusted": (self.by_metric, candidates.averaged_unadjusted),
                "averaged_adjusted": (self.by_metric, candidates.averaged_adjusted),
                "member_averaged": (self.by_log_loss, candidates.averaged_unadjusted),
            }
        for name, effect in EFFECTS.items():
            with_it, without_it = effect.with_it(table), effect.without_it(table)
            if with_it.any() and without_it.any() and not with_it.equals(without_it):
                evaluated = candidates.of(self._metric)
                choices[f"with_{name}"] = (self._choose(with_it), evaluated)
                choices[f"without_{name}"] = (self._choose(without_it), evaluated)
        return kept | {
            name: crossfitted(choice, self._parts, probs)
            for name, (choice, probs) in choices.items()
        }

    def chosen(self) -> Predictions:
        """Return the predictions `unadjusted` and `adjusted` alone."""
        candidates = self.candidates
        return Predictions(
            crossfitted(self.by_metric, self._parts, candidates.unadjusted),
            crossfitted(self.by_metric, self._parts, candidates.adjusted),
        )

    def chosen_by(self) -> dict[str, FloatArray]:
        """Return the values that the choices were made by; see `ScreenResult`."""
        of = {
            "chosen": (self._values[self._metric], self.by_metric),
            "nested": (self._nested_values[self._metric], self.nested),
            "ensemble_member": (self._nested_values["log_loss"], self.by_log_loss),
        }
        return {
            name: np.diagonal(values[:, [choice.best, *choice.without]])
            for name, (values, choice) in of.items()
        }

    def heads(self) -> ModuleHeads:
        """Return the heads that are kept."""
        best, most_likely = self.by_metric.best, self.by_log_loss.best
        return ModuleHeads(
            deployed=self._head(best, self._metric, self.calibration),
            warm_start=self._head(best, self._metric, self.calibration, VALIDATION_FOLD),
            ensemble_member=self._head(most_likely, "log_loss"),
            class_names=self._fitting.sweep.class_names,
        )

    def _head(
        self,
        candidate: int,
        aim: str,
        calibration: Calibration = UNCALIBRATED,
        without_fold: int | None = None,
    ) -> Head:
        """Return the head of a candidate, fitted on all folds or without one."""
        settings = self.settings(candidate)
        return self._fitting.head(
            self.candidates.position(candidate),
            without_fold,
            rule=self.candidates.rule(candidate),
            trained_on=settings["trained_on"],
            class_weight=settings["class_weight"],
            l2=settings["l2"],
            aim=aim,
            calibration=calibration,
        )

    def settings(self, candidate: int) -> dict[str, Any]:
        """Return the settings of a candidate, as JSON takes them."""
        row = self.candidates.table.iloc[candidate]
        return {
            "layers": str(row["layers"]),
            "trained_on": str(row["trained_on"]),
            "head": str(row["head"]),
            "class_weight": str(row["class_weight"]),
            "l2": float(row["l2"]),
            "adjust": float(row["adjust"]),
        }

    def about(self) -> dict[str, Any]:
        """Return the settings of the best candidates; temperature and metric of the first."""
        return {
            "chosen": self.settings(self.by_metric.best),
            "ensemble_member": self.settings(self.by_log_loss.best),
            "calibration": asdict(self.calibration),
            "uncorrected": float(self._values[self._metric][0, self.by_metric.best]),
        }

    def table(self) -> pd.DataFrame:
        """Return one row per candidate with its metrics, before any correction."""
        return self.candidates.table.assign(
            **{name: values[0] for name, values in self._values.items()}
        )
