"""All screened modules side by side: leaderboard, ensemble, effects, and what choosing costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from hubretrain.evaluation import (
    METRICS,
    candidate_values,
    choice_parts,
    choose,
    crossfitted,
    intervals,
)
from hubretrain.heads import ENSEMBLE_NAME, Ensemble, crossfitted_ensemble, greedy_ensemble
from hubretrain.run_tables import MODULE
from hubretrain.screening.baselines import majority_class
from hubretrain.screening.leaderboard import (
    Evaluator,
    effect_of,
    ensemble_row,
    is_twin,
    module_row,
    ranked,
    reference_rows,
    twinned_by,
)
from hubretrain.screening.result import ScreenResult
from hubretrain.screening.screen import EFFECTS, Sweep

N_RESAMPLES = 1000
EFFECT_COLUMNS = ["effect", "metric", "estimate", "low", "high", "p", "n_modules", "sentence"]


class ModuleComparison:
    """All modules judged on the images that some fold validates.

    Args:
        development: The images outside of the test split.
        screened: The modules; ones named `*_random` are the twins with random weights of others.
        sweep: What was compared.
        seed: Of the resamples.

    Attributes:
        images: Those that are judged on.
        judge: Their labels, groups and resamples.
        modules: Those that may be chosen.
        ensemble: Of their heads; None for one module.
    """

    def __init__(
        self, development: pd.DataFrame, screened: Sequence[ScreenResult], sweep: Sweep, seed: int
    ) -> None:
        self.screened, self.sweep = screened, sweep
        self.images = development[development["fold"] >= 0].reset_index(drop=True)
        labels, groups = self.images["class_index"].to_numpy(), self.images["cluster"].to_numpy()
        weights = intervals.group_resamples(groups, n_resamples=N_RESAMPLES, seed=seed)
        self.judge = Evaluator(labels, groups, weights, sweep.metric)
        self._parts = choice_parts(labels, groups)
        n_classes = len(sweep.class_names)
        folds = development["fold"].to_numpy()
        said = majority_class(development["class_index"].to_numpy(), folds, n_classes)
        self._majority = said[folds >= 0]
        self.modules = [one for one in screened if not is_twin(one.module)] or list(screened)
        self.ensemble: Ensemble | None = None
        if len(self.modules) > 1:
            self._fit_ensemble()

    def _fit_ensemble(self) -> None:
        labels, metric, rules = self.judge.labels, self.sweep.metric, self.sweep.strengths
        library = {one.module: one.predictions["likeliest"] for one in self.modules}
        self.ensemble = greedy_ensemble(library, labels, metric, rules)
        options = (library, labels, self._parts, metric, rules)
        self._ensemble_said = crossfitted_ensemble(*options)
        self._ensemble_averaged = None
        if any("likeliest_averaged" in one.predictions for one in self.modules):
            averaged = {
                one.module: one.predictions.get("likeliest_averaged", one.predictions["likeliest"])
                for one in self.modules
            }
            self._ensemble_averaged = crossfitted_ensemble(*options, averaged=averaged)

    def leaderboard(self, top: int) -> pd.DataFrame:
        """All rows, ranked."""
        rows = [module_row(one, self.judge) for one in self.screened]
        if self.ensemble is not None:
            rows.append(
                ensemble_row(
                    self.ensemble.weights,
                    self.ensemble.rule.strength,
                    *self._ensemble_said,
                    self._ensemble_averaged,
                    self.modules,
                    self.judge,
                )
            )
        rows += reference_rows(self._majority, self.modules, self.judge)
        of_choice = {
            one.module: self.judge.of_choice(one.predictions["plain"], one.predictions["decided"])
            for one in self.modules
        }
        if len(self.modules) == len(self.screened):  # with nothing but twins, they are the modules
            for row in rows[: len(self.modules)]:
                row["kind"] = MODULE
        return ranked(rows, of_choice, self.sweep.metric, top)

    def effects(self) -> pd.DataFrame:
        """What views, averaging, class weights and so on were worth, a row each."""
        pairs: dict[str, list[tuple[Any, Any]]] = {}
        sentences = {name: effect.sentence for name, effect in EFFECTS.items()}
        sentences["averaging"] = "averaging over views when scoring"
        for name, sentence in sentences.items():
            for one in self.modules:
                said = one.predictions
                if f"with_{name}" in said:
                    pair = said[f"with_{name}"], said[f"without_{name}"]
                    pairs.setdefault(sentence, []).append(pair)
        of = {one.module: one.predictions for one in self.screened}
        for name in filter(is_twin, of):
            if (module := twinned_by(name, of)) is None:
                continue
            pair = of[module]["decided"], of[name]["decided"]
            pairs.setdefault("pretrained instead of random weights", []).append(pair)
        if METRICS[self.sweep.metric].is_of_decision:
            nearest = [o.predictions for o in self.modules if "nearest" in o.predictions]
            if nearest:
                pairs["fitted heads instead of the nearest neighbour"] = [
                    (said["decided"], said["nearest"]) for said in nearest
                ]
        if self.ensemble is not None:
            pairs["the ensemble instead of the best module"] = [
                (self._ensemble_said[1], self._best()["decided"])
            ]
        rows = []
        for sentence, some in pairs.items():
            change = effect_of(some, self.judge)
            over = f" (mean of {len(some)} modules)" if len(some) > 1 else ""
            rows.append(
                {
                    "effect": sentence,
                    "metric": change.metric,
                    "estimate": change.estimate,
                    "low": change.low,
                    "high": change.high,
                    "p": change.p,
                    "n_modules": len(some),
                    "sentence": intervals.effect(sentence, change) + over,
                }
            )
        return pd.DataFrame(rows, columns=EFFECT_COLUMNS)

    def _best(self) -> dict[str, Any]:
        """The best module's predictions, the module chosen without the images it is judged on."""
        is_of_decision = METRICS[self.sweep.metric].is_of_decision
        of_choice = "decided" if is_of_decision else "plain"
        every = [one.predictions for one in self.modules]
        candidates = [said[of_choice] for said in every]
        values = candidate_values(self.sweep.metric, candidates, self.judge.labels, self._parts)
        choice = choose(values, self.sweep.metric)

        def crossed(name: str) -> Any:
            return crossfitted(choice, self._parts, lambda i: every[i][name])

        return {name: crossed(name) for name in ("decided", "plain")}

    def notes(self) -> tuple[str, ...]:
        """What choosing the best of many adds by luck, said aloud."""
        n_candidates = sum(len(one.candidates) for one in self.modules)
        best = self._best()
        estimate, low, high = intervals.interval(
            self.judge.of_choice(best["plain"], best["decided"])
        )
        naive = [float(one.about["naive"]) for one in self.modules]
        top = max(naive) if METRICS[self.sweep.metric].higher_is_better else min(naive)
        scale, digits = (100, 1) if METRICS[self.sweep.metric].is_share else (1, 3)
        name = self.sweep.metric.replace("_", " ")
        worth = (
            f"{scale * estimate:.{digits}f} ({scale * low:.{digits}f}-{scale * high:.{digits}f})"
        )
        sentence = (
            f"The best of {n_candidates:,} candidates shows {scale * top:.{digits}f} by its own "
            f"{name}; chosen without the images that it is judged on, it is "
            f"worth {worth}. The table is of such choices within each module."
        )
        return (sentence,)

    def said(self) -> dict[str, tuple[Any, Any]]:
        """Row name to its probabilities, plain and decided."""
        found = {
            one.module: (one.predictions["plain"], one.predictions["decided"])
            for one in self.screened
        }
        if self.ensemble is not None:
            found[ENSEMBLE_NAME] = self._ensemble_said
        return found
