"""The candidates of one module, which of them are best, and the predictions of the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, Float32Array, FloatArray
from hubretrain.evaluation import (
    METRICS,
    UNCALIBRATED,
    Calibration,
    Choice,
    calibrate,
    candidate_values,
    choice_parts,
    choose,
    crossfitted,
)
from hubretrain.heads import Head, ModuleHeads
from hubretrain.runs import VALIDATION_FOLD
from hubretrain.screening.candidates import Candidates
from hubretrain.screening.fitting import ModuleFitting
from hubretrain.screening.sweep import EFFECTS

SHOWN = ("accuracy", "balanced_accuracy", "log_loss")


class Selection:
    """The candidates of one module, and which of them are best.

    Args:
        fitting: The fitted heads.

    Attributes:
        candidates: The heads with every decision rule.
        by_metric: Best candidate by the metric of choice.
        by_log_loss: Best candidate by log loss.
        calibration: Temperature of the deployed head.
    """

    def __init__(self, fitting: ModuleFitting) -> None:
        sweep = fitting.sweep
        self._fitting, self._metric = fitting, sweep.metric
        self._labels = fitting.labels[fitting.validated]
        groups = fitting.groups[fitting.validated]
        self._parts = choice_parts(self._labels, groups)
        is_of_decision = METRICS[sweep.metric].is_of_decision
        strengths = sweep.strengths if is_of_decision else (0.0,)
        self.candidates = Candidates(
            fitting.paths, fitting.validated, fitting.priors, strengths, fitting.averaged
        )
        names = dict.fromkeys((sweep.metric, *SHOWN))
        self._values = {name: self._values_of(name) for name in names}
        self.by_metric = self._choose(None)
        self.by_log_loss = choose(self._values["log_loss"], "log_loss")
        deployed = self.candidates.unadjusted(self.by_metric.best)
        self.calibration = calibrate(deployed, self._labels, groups)

    def _values_of(self, metric: str) -> AnyArray:
        is_of_decision = METRICS[metric].is_of_decision
        probs = self.candidates.adjusted if is_of_decision else self.candidates.unadjusted
        every = (probs(n) for n in range(len(self.candidates)))
        return candidate_values(metric, every, self._labels, self._parts)

    def _choose(self, among: pd.Series[bool] | None) -> Choice:
        mask = None if among is None else among.to_numpy(dtype=bool)
        return choose(self._values[self._metric], self._metric, mask)

    def predictions(self) -> dict[str, Float32Array]:
        """Return out-of-fold probabilities by name; see `hubretrain.screening.screen`."""
        candidates, table = self.candidates, self.candidates.table
        kept = {
            "deployed": candidates.unadjusted(self.by_metric.best),
            "ensemble_member": candidates.unadjusted(self.by_log_loss.best),
        }
        choices: dict[str, tuple[Choice, Callable[[int], AnyArray]]] = {
            "unadjusted": (self.by_metric, candidates.unadjusted),
            "adjusted": (self.by_metric, candidates.adjusted),
            "member": (self.by_log_loss, candidates.unadjusted),
        }
        if self._fitting.n_views_averaged > 1:
            choices |= {
                "averaged_unadjusted": (self.by_metric, candidates.averaged_unadjusted),
                "averaged_adjusted": (self.by_metric, candidates.averaged_adjusted),
                "member_averaged": (self.by_log_loss, candidates.averaged_unadjusted),
            }
        for name, effect in EFFECTS.items():
            with_it, without_it = effect.with_it(table), effect.without_it(table)
            if with_it.any() and without_it.any() and not with_it.equals(without_it):
                choices[f"with_{name}"] = (self._choose(with_it), candidates.adjusted)
                choices[f"without_{name}"] = (self._choose(without_it), candidates.adjusted)
        return kept | {
            name: crossfitted(choice, self._parts, probs)
            for name, (choice, probs) in choices.items()
        }

    def chosen_by(self) -> dict[str, FloatArray]:
        """Return the values that the two choices were made by; see `ScreenResult`."""
        of = {
            "chosen": (self._metric, self.by_metric),
            "ensemble_member": ("log_loss", self.by_log_loss),
        }
        return {
            name: np.diagonal(self._values[metric][:, [choice.best, *choice.without]])
            for name, (metric, choice) in of.items()
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
