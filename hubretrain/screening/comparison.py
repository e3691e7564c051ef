"""Comparison of the screened modules: leaderboard, ensemble, effects, selection optimism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.evaluation import (
    Evaluator,
    Predictions,
    Resampled,
    at_temperature,
    best_thresholds,
    calibrate,
    choice_parts,
    choose,
    crossfitted,
    intervals,
    metric_named,
)
from hubretrain.heads import ENSEMBLE_NAME, Ensemble, crossfitted_ensemble, greedy_ensemble
from hubretrain.runs import EFFECTS as EFFECTS_TABLE
from hubretrain.runs import MODULE
from hubretrain.screening.baselines import majority_class, prevalences
from hubretrain.screening.candidates import ALL_LAYERS
from hubretrain.screening.formatting import COSTS, cost_words, metric_amount, metric_name
from hubretrain.screening.leaderboard import (
    baseline_rows,
    choosable,
    ensemble_row,
    is_random_control,
    known_costs,
    module_row,
    pretrained_of,
    ranked,
)
from hubretrain.screening.result import NESTED, ScreenResult
from hubretrain.screening.sweep import EFFECTS, MLP, Sweep

Pair = tuple[AnyArray, AnyArray]


class ModuleComparison:
    """All modules, evaluated on the images that some fold validates.

    Args:
        development: The images outside of the test split.
        results: Screenings of the modules; those named `*_random` are randomly initialised
            controls of others.
        sweep: What was compared on each module.
        seed: Random seed of the resamples.

    Attributes:
        results: Screenings of all modules.
        images: The images that are evaluated on.
        evaluator: Their labels, groups and resamples.
        modules: Screenings of the modules that may be chosen.
        ensemble: Ensemble of their heads; None for one module.
    """

    def __init__(
        self, development: pd.DataFrame, results: Sequence[ScreenResult], sweep: Sweep, seed: int
    ) -> None:
        self.results, self.sweep = results, sweep
        self.images = development[development["fold"] >= 0].reset_index(drop=True)
        labels, groups = sweep.targets(self.images), self.images["cluster"].to_numpy()
        self._parts = choice_parts(labels, groups)
        self.evaluator = Evaluator(labels, groups, seed, parts=self._parts)
        self._constant = self._constant_predictions(development)
        self.modules = choosable(results)
        self.ensemble: Ensemble | None = None
        self._ensemble_averaged: Predictions | None = None
        if len(self.modules) > 1:
            self._fit_ensemble()

    def _constant_predictions(self, development: pd.DataFrame) -> tuple[str, Predictions]:
        """Return the baseline that looks at no image, by name."""
        if self.sweep.multi_label:
            shares, labels = prevalences(self.evaluator.labels), self.evaluator.labels
            rule = best_thresholds(shares, labels)
            return "prevalence of each label", Predictions(shares, rule.adjust(shares))
        folds, labels = development["fold"].to_numpy(), self.sweep.targets(development)
        majority = majority_class(labels, folds, len(self.sweep.class_names))[folds >= 0]
        return "majority class", Predictions(majority, majority)

    def _fit_ensemble(self) -> None:
        labels, metric, strengths = self.evaluator.labels, self.sweep.metric, self.sweep.strengths
        members = {result.module: result.predictions["member"] for result in self.modules}
        ensemble = greedy_ensemble(members, labels, metric, strengths)
        kept = {result.module: result.predictions["ensemble_member"] for result in self.modules}
        self._ensemble_deployed = ensemble.mean(kept)
        calibration = calibrate(self._ensemble_deployed, labels, self.evaluator.groups)
        if self.sweep.multi_label:
            ensemble = replace(ensemble, rule=best_thresholds(self._ensemble_deployed, labels))
        self.ensemble = replace(ensemble, calibration=calibration)
        within = {result.module: result.predictions["member_within"] for result in self.modules}
        options = (labels, self._parts, metric, strengths)
        self._ensemble_predictions = Predictions(
            *crossfitted_ensemble(within, members, *options),
            Predictions(self._ensemble_deployed, ensemble.rule.adjust(self._ensemble_deployed)),
        )
        # Of as many views for each member, as a model that is exported takes them.
        n_views = {result.n_views_averaged for result in self.modules}
        if len(n_views) == 1 and all(result.averaged is not None for result in self.modules):
            averaged, kept_averaged = (
                {result.module: result.predictions[name] for result in self.modules}
                for name in ("member_averaged", "ensemble_member_averaged")
            )
            self._ensemble_averaged = Predictions(
                *crossfitted_ensemble(within, averaged, *options),
                Predictions(ensemble.mean(kept_averaged), ensemble.adjusted(kept_averaged)),
            )

    def leaderboard(self, top: int) -> pd.DataFrame:
        """Return all rows, ranked, with at most `top` modules on the shortlist."""
        evaluator, metric = self.evaluator, self.sweep.metric
        rows = [module_row(result, evaluator, metric) for result in self.results]
        if len(self.modules) == len(self.results):
            rows = [row | {"kind": MODULE} for row in rows]
        if self.ensemble is not None:
            rows.append(
                ensemble_row(
                    self.ensemble,
                    self._ensemble_predictions,
                    self._ensemble_deployed,
                    self._ensemble_averaged,
                    self.modules,
                    evaluator,
                    metric,
                )
            )
        rows += baseline_rows(self._constant, self.modules, evaluator)
        board = ranked(rows, (self._resampled, self._resampled_deployed), metric, top)
        return board.assign(averaged_views=board["averaged_views"].astype("Int64"))

    @cached_property
    def _resampled(self) -> dict[str, Resampled]:
        """The metric of choice of the modules that may be chosen."""
        metric = self.sweep.metric
        return {
            result.module: self.evaluator.resample(metric, result.chosen.of(metric))
            for result in self.modules
        }

    @cached_property
    def _resampled_deployed(self) -> dict[str, Resampled]:
        """The same of the heads that are deployed, on the images that chose them."""
        metric, evaluator = self.sweep.metric, self.evaluator.of_one_model
        of_module = {result.module: result.chosen.deployed for result in self.modules}
        return {
            module: evaluator.resample(metric, deployed.of(metric))
            for module, deployed in of_module.items()
            if deployed is not None
        }

    def effects(self) -> pd.DataFrame:
        """Return the ablation: what views, averaging, class weights and so on are worth.

        The intervals of all effects hold together at 95 % confidence.
        """
        rows = []
        of_effects = self._pairs()
        for name, pairs in of_effects.items():
            change = self.evaluator.effect(pairs, self.sweep.metric, len(of_effects))
            over = f" (mean of {len(pairs)} modules)" if len(pairs) > 1 else ""
            rows.append(
                {
                    "effect": name,
                    "metric": change.metric,
                    "estimate": change.estimate,
                    "low": change.low,
                    "high": change.high,
                    "p": change.p,
                    "n_modules": len(pairs),
                    "sentence": intervals.effect(name, change) + over,
                }
            )
        return pd.DataFrame(rows, columns=list(EFFECTS_TABLE.columns))

    def _pairs(self) -> dict[str, list[Pair]]:
        """Return each effect's predictions with and without it, one pair per module."""
        pairs: dict[str, list[Pair]] = {}
        names = {key: effect.name for key, effect in EFFECTS.items()}
        names[MLP] = "an mlp instead of linear heads"
        for key, name in names.items():
            of_effect = [
                (result.predictions[f"with_{key}"], result.predictions[f"without_{key}"])
                for result in self.modules
                if f"with_{key}" in result.predictions
            ]
            pairs |= {name: of_effect} if of_effect else {}
        metric = self.sweep.metric
        averaged = [
            (result.averaged.of(metric), result.chosen.of(metric))
            for result in self.modules
            if result.averaged is not None
        ]
        pairs |= {"averaging over views when scoring": averaged} if averaged else {}
        pairs |= self._pairs_with_controls()
        if metric_named(metric).is_of_decision or self.sweep.multi_label:
            nearest = [
                (result.chosen.of(metric), result.predictions["nearest"])
                for result in self.modules
                if "nearest" in result.predictions
            ]
            pairs |= {"fitted heads instead of the nearest neighbour": nearest} if nearest else {}
        if self.ensemble is not None:
            pairs["the ensemble instead of the best module"] = [
                (self._ensemble_predictions.of(metric), self.best().of(metric))
            ]
        return pairs

    def _pairs_with_controls(self) -> dict[str, list[Pair]]:
        metric = self.sweep.metric
        evaluated = {result.module: result.chosen.of(metric) for result in self.results}
        controls = {
            name: module
            for name in evaluated
            if is_random_control(name) and (module := pretrained_of(name, evaluated)) is not None
        }
        pairs = [(evaluated[module], evaluated[name]) for name, module in controls.items()]
        return {"pretrained instead of random weights": pairs} if pairs else {}

    def best(self) -> Predictions:
        """Return predictions of the best module, chosen for each image without the image."""
        values = np.stack([result.chosen_by[NESTED] for result in self.modules], axis=1)
        choice = choose(values, self.sweep.metric)
        return Predictions(
            crossfitted(choice, self._parts, lambda i: self.modules[i].nested.unadjusted),
            crossfitted(choice, self._parts, lambda i: self.modules[i].nested.adjusted),
        )

    def notes(self, board: pd.DataFrame) -> tuple[str, ...]:
        """Return sentences on ties, on what was compared, and on the selection optimism.

        Args:
            board: Result of `leaderboard`.
        """
        sentences = (
            self._on_ties(board),
            self._on_layers(),
            self._on_networks(),
            self._on_penalties(),
            self._on_optimism(),
        )
        return tuple(sentence for sentence in sentences if sentence)

    def _on_ties(self, board: pd.DataFrame) -> str:
        """Return how many modules tie, and what the cheapest of them may lose."""
        tied = board[board["tied"]]
        if len(tied) < 2:
            return ""
        sentence = f"{len(tied)} modules are tied as the best at 95 % confidence"
        costs = known_costs(tied)
        if not costs:
            return f"{sentence}."
        best, cheapest = tied.iloc[0], tied.sort_values(costs[0], kind="stable").iloc[0]
        price, of_best = cost_words(cheapest, costs[0]), best[costs[0]]
        if cheapest["module"] == best["module"]:
            return f"{sentence}; {best['module']}, the first, is also the cheapest ({price})."
        loss, at_most = self._losses(best["module"], cheapest["module"])
        return (
            f"{sentence}; the cheapest of them, {cheapest['module']} ({price} instead of "
            f"{of_best:{COSTS[costs[0]].format}}), loses {loss} of "
            f"{metric_name(self.sweep.metric)} to {best['module']} by estimate, and at most "
            f"{at_most} with 97.5 % confidence."
        )

    def _losses(self, best: str, other: str) -> tuple[str, str]:
        """Return by how much a module is worse than the best, and by how much at most."""
        lead = intervals.difference(self._resampled[best], self._resampled[other])
        is_higher_better = metric_named(lead.metric).higher_is_better
        losses = (lead.estimate, lead.high) if is_higher_better else (-lead.estimate, -lead.low)
        loss, at_most = (metric_amount(lead.metric, loss) for loss in losses)
        return loss, at_most

    def _on_layers(self) -> str:
        lacking = [result.module for result in self.results if result.about["lacks_layers"]]
        if ALL_LAYERS not in self.sweep.layers or not lacking:
            return ""
        return (
            f"{', '.join(lacking)}: only features of the last layer are cached; `hubretrain cache` "
            "adds those of all layers, which are often better."
        )

    def _on_networks(self) -> str:
        seconds = [result.about.get(f"seconds_of_{MLP}", 0.0) for result in self.results]
        n_modules = sum(of > 0 for of in seconds)
        if not n_modules or not self.sweep.mlp_where_tied:
            return ""
        are = "1 module that ties" if n_modules == 1 else f"{n_modules} modules that tie"
        return f"The {are} with the best by linear heads got an mlp, too, in {sum(seconds):,.0f} s."

    def _on_penalties(self) -> str:
        """Return whose best head has the largest or the smallest penalty of those compared.

        Of networks two decays are compared, so that each is an end.
        """
        at_end = []
        for result in self.modules:
            chosen, table = result.about["chosen"], result.candidates
            if chosen["head"] == MLP:
                continue
            alike = ("layers", "trained_on", "head", "class_weight")
            is_alike = np.all([table[name] == chosen[name] for name in alike], axis=0)
            penalties = table.loc[is_alike, "l2"]
            if len(set(penalties)) > 1 and chosen["l2"] in (penalties.min(), penalties.max()):
                at_end.append(f"{result.module} (l2 {chosen['l2']:g})")
        if not at_end:
            return ""
        return (
            f"At an end of the penalties that were compared, so that others may be better: the "
            f"head of {', '.join(at_end)}; `l2` compares others."
        )

    def _on_optimism(self) -> str:
        metric = self.sweep.metric
        n_candidates = sum(len(result.candidates) for result in self.modules)
        estimate, low, high = intervals.interval(
            self.evaluator.resample(metric, self.best().of(metric))
        )
        uncorrected = [float(result.about["uncorrected"]) for result in self.modules]
        top = max(uncorrected) if metric_named(metric).higher_is_better else min(uncorrected)
        scale, digits = (100, 1) if metric_named(metric).is_share else (1, 3)
        uncorrected_text, estimate_text, low_text, high_text = (
            f"{scale * value:.{digits}f}" for value in (top, estimate, low, high)
        )
        name = metric_name(metric)
        is_nested = len(set(self.images["fold"])) > 1
        where = (
            "in nested cross-validation"
            if is_nested  # else no head was fitted on any of these images
            else "where each half of the validation split is evaluated by what the other chose"
        )
        return (
            f"{name[0].upper()}{name[1:]} of the best of {n_candidates:,} candidates: "
            f"{uncorrected_text} on the images that it was chosen on, {estimate_text} "
            f"({low_text}-{high_text}) {where}, without selection bias; the "
            "rows of modules are cross-fitted, each within its module."
        )

    def predictions(self) -> dict[str, Predictions]:
        """Return the predictions of every module, and of the ensemble."""
        predictions = {result.module: result.chosen for result in self.results}
        if self.ensemble is not None:
            predictions[ENSEMBLE_NAME] = self._ensemble_predictions
        return predictions

    def deployed(self) -> dict[str, AnyArray]:
        """Return out-of-fold probabilities of every module and the ensemble, as exported.

        They are of the one model that is exported, at its temperature. Choosing it has seen the
        labels of these images, so what is right in how many is counted in `predictions` instead.
        """
        probs = {
            result.module: at_temperature(
                result.predictions["deployed"],
                result.calibration.temperature,
                self.sweep.multi_label,
            )
            for result in self.results
        }
        if self.ensemble is not None:
            temperature = self.ensemble.calibration.temperature
            probs[ENSEMBLE_NAME] = at_temperature(
                self._ensemble_deployed, temperature, self.sweep.multi_label
            )
        return probs
