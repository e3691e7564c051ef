"""Screening of one module: all heads of the sweep fitted, the best chosen without selection bias.

The sweep is {view 0, all views} x {softmax, logistic} x class weights x l2, each with every
strength of logit adjustment. The result holds probabilities by name, each image's from heads that
were neither fitted (folds) nor chosen (nested cross-validation) on it:

    unadjusted           probabilities of the chosen head
    adjusted             the same after its logit adjustment: the largest is the decision
    averaged_unadjusted  as unadjusted, logits averaged over the cached views
    averaged_adjusted    as adjusted, logits averaged over the cached views
    member               unadjusted, of the head with the best log loss: for ensembles
    member_averaged      as member, logits averaged over the cached views
    with_E, without_E    adjusted, of the best head with and without what effect E names
    nearest              the nearest neighbour's class
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, Float32Array, FloatArray
from hubretrain.bottlenecks import Bottlenecks, cached_views
from hubretrain.evaluation import (
    METRICS,
    N_PARTS,
    Choice,
    candidate_values,
    choice_parts,
    choose,
    class_priors,
    crossfitted,
)
from hubretrain.heads import (
    TRAIN_ONLY,
    FeatureBlocks,
    FitInputs,
    Head,
    HeadPath,
    Heads,
    Kind,
    ModuleHeads,
    PathFitter,
    SolverOptions,
    weights_by_class,
)
from hubretrain.progress import Bar
from hubretrain.runs import VALIDATION_FOLD
from hubretrain.screening.baselines import nearest_neighbour
from hubretrain.screening.candidates import ALL_VIEWS, VIEW_0, Candidates, Source
from hubretrain.screening.result import ScreenResult
from hubretrain.screening.sweep import EFFECTS, Sweep
from hubretrain.screening.transferability import transfer_scores

KINDS: tuple[Kind, ...] = ("softmax", "logistic")
PATIENCE = 2
MEMORY = 1 << 29  # bytes of the standardised rows of view 0, and again of all views
SHOWN = ("accuracy", "balanced_accuracy", "log_loss")


def identity_of(file: Path, images: pd.DataFrame, sweep: Sweep) -> str:
    """Return the digest of all that the screening of a module depends on."""
    with Bottlenecks(file) as bottlenecks:
        attributes = {str(name): str(value) for name, value in bottlenecks.attributes.items()}
        n_views = dict(zip(bottlenecks.sha256s, bottlenecks.n_views_of.tolist(), strict=True))
    columns = ["sha256", "class_index", "fold", "cluster"]
    table = images[columns].assign(n_views=images["sha256"].map(n_views))
    everything = json.dumps([attributes, asdict(sweep), PATIENCE, N_PARTS], default=str)
    digest = hashlib.sha256(everything.encode())
    digest.update(table.to_csv(index=False).encode())
    return digest.hexdigest()


def screen(file: Path, images: pd.DataFrame, sweep: Sweep) -> tuple[ScreenResult, ModuleHeads]:
    """Fit every head of one module on every fold and choose.

    Args:
        file: Bottleneck file of the module.
        images: The images outside of the test split: sha256, class_index, cluster and fold, which
            is below 0 where every fold trains on the image.
        sweep: What to compare.

    Returns:
        The result, and the heads that are kept.

    Raises:
        CacheError: The cache is not finished, or lacks images.
        HeadError: The heads cannot be fitted.
    """
    started = time.monotonic()
    with Bottlenecks(file) as bottlenecks:
        module = ModuleScreen(bottlenecks, images, sweep)
        paths = module.fit(f"fitting {file.stem}")
        selection = Selection(paths, module, sweep)
        heads = module.heads(selection)
        predictions = selection.predictions() | module.nearest()
        about = {
            **selection.about(),
            "n_heads": sum(int((~path.stopped_early).sum()) for path in paths.values()),
            "n_features": module.features[VIEW_0].n_features,
            "hints": module.hints(),
            "module": _attributes(bottlenecks),
            "seconds_to_fit": round(time.monotonic() - started, 2),
        }
    table = selection.table()
    table.insert(0, "module", file.stem)
    identity = identity_of(file, images, sweep)
    return ScreenResult(file.stem, identity, about, predictions, table), heads


def _attributes(bottlenecks: Bottlenecks) -> dict[str, Any]:
    """Return the attributes of a bottleneck file, with its views per image."""
    n_views = bottlenecks.n_views_of[bottlenecks.n_views_of > 0]
    attributes = {str(name): value for name, value in bottlenecks.attributes.items()}
    return attributes | {"n_views": int(n_views.min()), "minority_views": int(n_views.max())}


class ModuleScreen:
    """The features of one module and the fittings on them.

    Args:
        bottlenecks: Bottleneck file of the module.
        images: As `screen` takes them.
        sweep: What to compare.

    Attributes:
        labels: int (n_images,).
        validated: bool (n_images,), the images that some fold validates.
        groups: Cluster of each image, (n_images,).
        priors: Share of each class.
        features: Standardised features of view 0 and, where there are several, of all views.
    """

    def __init__(self, bottlenecks: Bottlenecks, images: pd.DataFrame, sweep: Sweep) -> None:
        self.sweep, self.n_classes = sweep, len(sweep.class_names)
        self.labels = images["class_index"].to_numpy()
        fold = images["fold"].to_numpy().astype(np.int64)
        self.validated = fold >= 0
        self._folds = np.where(self.validated, fold, TRAIN_ONLY)
        self.groups = images["cluster"].to_numpy()
        self.priors = class_priors(self.labels, self.n_classes)
        self.features: dict[str, FeatureBlocks] = {}
        self._inputs: dict[str, FitInputs] = {}
        self._fitters: dict[Source, PathFitter] = {}
        sha256s = images["sha256"].tolist()
        for trained_on in (VIEW_0, ALL_VIEWS) if _several_views(bottlenecks, sweep) else (VIEW_0,):
            parts, row_image = cached_views(bottlenecks, sha256s, all_views=trained_on == ALL_VIEWS)
            inputs = FitInputs.checked(
                parts,
                self.labels,
                self.n_classes,
                self._folds,
                rows=row_image,
                class_names=sweep.class_names,
            )
            self._inputs[trained_on] = inputs
            self.features[trained_on] = FeatureBlocks(
                parts, inputs.row_image, standardize=True, memory=MEMORY
            )

    def fit(self, what: str) -> dict[Source, HeadPath]:
        """Fit all heads over all folds; `what` names the work in the progress."""
        sweep, paths = self.sweep, {}
        n_folds = len(next(iter(self._inputs.values())).folds)
        n_heads_per_path = len(sweep.class_weights) * n_folds * len(sweep.l2)
        sources = [Source(trained_on, kind) for trained_on in self.features for kind in KINDS]
        with Bar(what, len(sources) * n_heads_per_path, "heads") as bar:
            for n_done, source in enumerate(sources, start=1):
                fitter = PathFitter(
                    self._inputs[source.trained_on],
                    self.features[source.trained_on],
                    source.kind,
                    sweep.class_weights,
                    SolverOptions(),
                )
                paths[source] = fitter.fit_folds(
                    np.array(sweep.l2),
                    PATIENCE,
                    mean_over_views=source.trained_on == ALL_VIEWS,
                    advance=bar.advance,
                )
                self._fitters[source] = fitter
                # Heads beyond an early stop are not fitted, and not left to do either.
                bar.advance(n_done * n_heads_per_path - bar.done)
        return paths

    def heads(self, selection: Selection) -> ModuleHeads:
        """Return the heads that are kept."""
        best, most_likely = selection.by_metric.best, selection.by_log_loss.best
        source, w, i = selection.candidates.position(best)
        path = selection.paths[source]
        fold = path.folds.tolist().index(VALIDATION_FOLD)
        index = int(np.ravel_multi_index((w, fold, i), path.objective.shape))
        return ModuleHeads(
            deployed=self._refitted(selection, best, self.sweep.metric),
            warm_start=self._head(selection, best, self.sweep.metric, path.heads, index),
            ensemble_member=self._refitted(selection, most_likely, "log_loss"),
            class_names=self.sweep.class_names,
        )

    def _refitted(self, selection: Selection, candidate: int, aim: str) -> Head:
        """Return the head of a candidate, fitted on all folds."""
        source, w, i = selection.candidates.position(candidate)
        path = selection.paths[source]
        heads = self._fitters[source].refit([float(path.l2[i])])
        return self._head(selection, candidate, aim, heads, w)

    def _head(
        self, selection: Selection, candidate: int, aim: str, heads: Heads, index: int
    ) -> Head:
        settings = selection.settings(candidate)
        return Head(
            heads.kind,
            heads.weight[:, index],
            heads.bias[index],
            selection.candidates.rule(candidate),
            self._weight_of_class(selection.candidates.position(candidate).class_weight),
            settings["trained_on"],
            settings["class_weight"],
            settings["l2"],
            aim,
        )

    def _weight_of_class(self, index: int) -> FloatArray:
        """Return the weight in the loss of an image of each class."""
        class_weight = self.sweep.class_weights[index]
        return weights_by_class(class_weight, self.priors[None], "softmax")[0, 0]

    def nearest(self) -> dict[str, Float32Array]:
        """Return the prediction `nearest`, or {} for too many images."""
        folds = np.where(self.validated, self._folds, -1)
        probs = nearest_neighbour(self.features[VIEW_0], self.labels, folds, self.n_classes)
        return {} if probs is None else {"nearest": probs[self.validated].astype(np.float32)}

    def hints(self) -> dict[str, float]:
        """Return transferability scores of view 0."""
        return transfer_scores(self.features[VIEW_0], self.labels, self.n_classes)


def _several_views(bottlenecks: Bottlenecks, sweep: Sweep) -> bool:
    return sweep.views and bool((bottlenecks.n_views_of > 1).any())


class Selection:
    """The candidates of one module, and which of them are best.

    Args:
        paths: The fitted heads.
        module: What they were fitted on.
        sweep: What is compared.

    Attributes:
        paths: The fitted heads.
        candidates: The heads with every decision rule.
        by_metric: Best candidate by the metric of choice.
        by_log_loss: Best candidate by log loss, of the same kind of head: the heads of one file
            are of one kind.
    """

    def __init__(self, paths: dict[Source, HeadPath], module: ModuleScreen, sweep: Sweep) -> None:
        self.paths, self._metric = paths, sweep.metric
        self._labels = module.labels[module.validated]
        self._parts = choice_parts(self._labels, module.groups[module.validated])
        is_of_decision = METRICS[sweep.metric].is_of_decision
        strengths = sweep.strengths if is_of_decision else (0.0,)
        self.candidates = Candidates(paths, module.validated, module.priors, strengths)
        names = dict.fromkeys((sweep.metric, *SHOWN))
        self._values = {name: self._values_of(name) for name in names}
        self.by_metric = self._choose(None)
        is_same_kind = self.candidates.table["head"] == self.settings(self.by_metric.best)["head"]
        self._is_same_kind = is_same_kind.to_numpy()
        self.by_log_loss = choose(self._values["log_loss"], "log_loss", self._is_same_kind)

    def _values_of(self, metric: str) -> AnyArray:
        is_of_decision = METRICS[metric].is_of_decision
        probs = self.candidates.adjusted if is_of_decision else self.candidates.unadjusted
        every = (probs(n) for n in range(len(self.candidates)))
        return candidate_values(metric, every, self._labels, self._parts)

    def _choose(self, among: pd.Series[bool] | None) -> Choice:
        mask = None if among is None else among.to_numpy(dtype=bool)
        return choose(self._values[self._metric], self._metric, mask)

    def predictions(self) -> dict[str, Float32Array]:
        """Return cross-fitted probabilities by name; see the top of this file."""
        candidates, table = self.candidates, self.candidates.table
        choices: dict[str, tuple[Choice, Callable[[int], AnyArray]]] = {
            "unadjusted": (self.by_metric, candidates.unadjusted),
            "adjusted": (self.by_metric, candidates.adjusted),
            "member": (self.by_log_loss, candidates.unadjusted),
        }
        on_all_views = table["trained_on"] == ALL_VIEWS
        if on_all_views.any():
            best = self._choose(on_all_views)
            mask = on_all_views.to_numpy() & self._is_same_kind
            member = choose(self._values["log_loss"], "log_loss", mask)
            choices |= {
                "averaged_unadjusted": (best, candidates.averaged_unadjusted),
                "averaged_adjusted": (best, candidates.averaged_adjusted),
                "member_averaged": (member, candidates.averaged_unadjusted),
                "with_averaging": (best, candidates.averaged_adjusted),
                "without_averaging": (best, candidates.adjusted),
            }
        for name, effect in EFFECTS.items():
            with_it, without_it = effect.with_it(table), effect.without_it(table)
            if with_it.any() and without_it.any() and not with_it.equals(without_it):
                choices[f"with_{name}"] = (self._choose(with_it), candidates.adjusted)
                choices[f"without_{name}"] = (self._choose(without_it), candidates.adjusted)
        return {
            name: crossfitted(choice, self._parts, probs)
            for name, (choice, probs) in choices.items()
        }

    def settings(self, candidate: int) -> dict[str, Any]:
        """Return the settings of a candidate, as JSON takes them."""
        row = self.candidates.table.iloc[candidate]
        return {
            "trained_on": str(row["trained_on"]),
            "head": str(row["head"]),
            "class_weight": str(row["class_weight"]),
            "l2": float(row["l2"]),
            "adjust": float(row["adjust"]),
        }

    def about(self) -> dict[str, Any]:
        """Return the settings of the best candidates, and the metric of the first."""
        return {
            "chosen": self.settings(self.by_metric.best),
            "ensemble_member": self.settings(self.by_log_loss.best),
            "uncorrected": float(self._values[self._metric][0, self.by_metric.best]),
        }

    def table(self) -> pd.DataFrame:
        """Return one row per candidate with its metrics, before any correction."""
        return self.candidates.table.assign(
            **{name: values[0] for name, values in self._values.items()}
        )
