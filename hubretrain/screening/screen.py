"""One module screened: all heads of the sweep fitted, the best chosen, its worth made honest.

The sweep is {view 0, all views} x {softmax, logistic} x class weights x l2, each with every
strength of logit adjustment. What comes out are probabilities by name, each image's from heads
that were neither fitted (folds) nor chosen (`choosing`) on it:

    decided      the chosen head after its decision rule: the largest is the decision
    plain        the chosen head's probabilities
    averaged     as decided, scores averaged over the cached views; averaged_plain likewise
    likeliest    the head with the best log loss, for ensembles; likeliest_averaged
    with_E, without_E      the best with and without what effect E names
    nearest      the nearest neighbour's class
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.bottlenecks import Bottlenecks, cached_views
from hubretrain.evaluation import (
    METRICS,
    N_PARTS,
    STRENGTHS,
    Choice,
    candidate_values,
    choice_parts,
    choose,
    class_priors,
    crossfitted,
)
from hubretrain.heads import (
    TRAIN_ONLY,
    ClassWeight,
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
from hubretrain.screening.transferability import transfer_scores

Mask = Callable[[pd.DataFrame], "pd.Series[bool]"]

KINDS: tuple[Kind, ...] = ("softmax", "logistic")
L2 = tuple(float(l2) for l2 in np.logspace(0, 5, 11))  # 1 / C of scikit-learn
PATIENCE = 2
MEMORY = 1 << 29  # of the standardised rows of view 0, and again of all views
SHOWN = ("accuracy", "balanced_accuracy", "log_loss")


@dataclass(frozen=True)
class Effect:
    """A question that two choices from the same candidates answer.

    Attributes:
        sentence: What was changed, as the start of a sentence.
        candidates: Which candidates have it and which do not.
    """

    sentence: str
    with_it: Mask
    without_it: Mask


EFFECTS: Mapping[str, Effect] = {
    "views": Effect(
        "augmented views",
        lambda t: t["trained_on"] == ALL_VIEWS,
        lambda t: t["trained_on"] == VIEW_0,
    ),
    "class_weights": Effect(
        "class weights",
        lambda t: (t["class_weight"] != "none") & (t["adjust"] == 0),
        lambda t: (t["class_weight"] == "none") & (t["adjust"] == 0),
    ),
    "adjustment": Effect(
        "logit adjustment instead of class weights",
        lambda t: (t["class_weight"] == "none") & (t["adjust"].max() > 0),
        lambda t: t["adjust"] == 0,
    ),
    "softmax": Effect(
        "softmax instead of logistic heads",
        lambda t: t["head"] == "softmax",
        lambda t: t["head"] == "logistic",
    ),
}


@dataclass(frozen=True)
class Sweep:
    """What is compared on every module.

    Attributes:
        metric: A name in `METRICS` to choose by.
        class_names: In class order.
        class_weights: Each None, `balanced`, or a weight for each class by number.
        l2: Penalties, 1 / C of scikit-learn.
        strengths: Of logit adjustment, ascending from 0.
        views: Whether to train on all cached views too.
    """

    metric: str
    class_names: tuple[str, ...]
    class_weights: tuple[ClassWeight, ...] = (None, "balanced")
    l2: tuple[float, ...] = L2
    strengths: tuple[float, ...] = STRENGTHS
    views: bool = True


def identity_of(file: Path, images: pd.DataFrame, sweep: Sweep) -> str:
    """Digest of all that the screening of a module depends on."""
    with Bottlenecks(file) as bottlenecks:
        facts = {str(name): str(value) for name, value in bottlenecks.attributes.items()}
        n_views = dict(zip(bottlenecks.sha256s, bottlenecks.n_views_of.tolist(), strict=True))
    columns = ["sha256", "class_index", "fold", "cluster"]
    table = images[columns].assign(n_views=images["sha256"].map(n_views))
    everything = json.dumps([facts, asdict(sweep), PATIENCE, N_PARTS], default=str)
    digest = hashlib.sha256(everything.encode())
    digest.update(table.to_csv(index=False).encode())
    return digest.hexdigest()


def screen(file: Path, images: pd.DataFrame, sweep: Sweep) -> tuple[ScreenResult, ModuleHeads]:
    """Fits every head of one module on every fold and chooses.

    Args:
        file: Its bottlenecks.
        images: The images outside of the test split: sha256, class_index, cluster and fold, which
            is below 0 where every fold trains on the image.
        sweep: What to compare.

    Returns:
        What was found, and the heads that are kept.

    Raises:
        CacheError: The cache is not finished, or lacks images.
        HeadError: The heads cannot be fitted.
    """
    started = time.monotonic()
    with Bottlenecks(file) as bottlenecks:
        module = ModuleScreen(bottlenecks, images, sweep)
        paths = module.paths(f"fitting {file.stem}")
        chosen = Selection(paths, module, sweep)
        heads = module.heads(chosen)
        predictions = chosen.predictions()
        if (nearest := module.nearest()) is not None:
            predictions["nearest"] = nearest
        facts, hints = dict(bottlenecks.attributes), module.hints()
        of_class = bottlenecks.n_views_of[bottlenecks.n_views_of > 0]
        facts |= {"n_views": int(of_class.min()), "minority_views": int(of_class.max())}
    about = {
        "chosen": chosen.describe(chosen.by_metric.best),
        "likeliest": chosen.describe(chosen.by_log_loss.best),
        "naive": float(chosen.measured[sweep.metric][0, chosen.by_metric.best]),
        "n_heads": sum(int((~path.stopped_early).sum()) for path in paths.values()),
        "n_features": module.rows[VIEW_0].n_features,
        "seconds_to_fit": round(time.monotonic() - started, 2),
        "hints": hints,
        "module": {str(name): value for name, value in facts.items()},
    }
    table = chosen.table()
    table.insert(0, "module", file.stem)
    return ScreenResult(
        file.stem, identity_of(file, images, sweep), about, predictions, table
    ), heads


class ModuleScreen:
    """The features of one module and the fittings on them."""

    def __init__(self, bottlenecks: Bottlenecks, images: pd.DataFrame, sweep: Sweep) -> None:
        self.sweep, self.n_classes = sweep, len(sweep.class_names)
        self.labels = images["class_index"].to_numpy()
        fold = images["fold"].to_numpy().astype(np.int64)
        self.validated = fold >= 0
        self.folds = np.where(self.validated, fold, TRAIN_ONLY)
        self.groups = images["cluster"].to_numpy()
        self.priors = class_priors(self.labels, self.n_classes)
        self.rows: dict[str, FeatureBlocks] = {}
        self._data: dict[str, FitInputs] = {}
        self._fitters: dict[Source, PathFitter] = {}
        for trained_on in (VIEW_0, ALL_VIEWS) if _several(bottlenecks, sweep) else (VIEW_0,):
            parts, row_image = cached_views(
                bottlenecks, images["sha256"].tolist(), all_views=trained_on == ALL_VIEWS
            )
            data = FitInputs.checked(
                parts,
                self.labels,
                self.n_classes,
                self.folds,
                rows=row_image,
                class_names=sweep.class_names,
            )
            self._data[trained_on] = data
            self.rows[trained_on] = FeatureBlocks(
                parts, data.row_image, standardize=True, memory=MEMORY
            )

    def paths(self, what: str) -> dict[Source, HeadPath]:
        """All heads over all folds."""
        sweep, found = self.sweep, {}
        n_folds = len(next(iter(self._data.values())).folds)
        n_a_path = len(sweep.class_weights) * n_folds * len(sweep.l2)
        sources = [Source(trained_on, kind) for trained_on in self.rows for kind in KINDS]
        with Bar(what, len(sources) * n_a_path, "heads") as bar:
            for at, source in enumerate(sources, start=1):
                fitter = PathFitter(
                    self._data[source.trained_on],
                    self.rows[source.trained_on],
                    source.kind,
                    sweep.class_weights,
                    SolverOptions(),
                )
                found[source] = fitter.fit_folds(
                    np.array(sweep.l2),
                    PATIENCE,
                    mean_over_views=source.trained_on == ALL_VIEWS,
                    advance=bar.advance,
                )
                self._fitters[source] = fitter
                bar.advance(at * n_a_path - bar.done)  # what was stopped early needs no more
        return found

    def heads(self, chosen: Selection) -> ModuleHeads:
        """Return the heads that are kept."""
        best, most_likely = chosen.by_metric.best, chosen.by_log_loss.best
        source, w, i = chosen.candidates.place(best)
        path = chosen.paths[source]
        fold = path.folds.tolist().index(VALIDATION_FOLD)
        index = int(np.ravel_multi_index((w, fold, i), path.objective.shape))
        return ModuleHeads(
            deployed=self._refitted(chosen, best, self.sweep.metric),
            warm_start=self._head(chosen, best, self.sweep.metric, path.heads, index),
            ensemble_member=self._refitted(chosen, most_likely, "log_loss"),
            class_names=self.sweep.class_names,
        )

    def _refitted(self, chosen: Selection, candidate: int, aim: str) -> Head:
        """Return the head of a candidate, fitted on all folds."""
        source, w, i = chosen.candidates.place(candidate)
        path = chosen.paths[source]
        heads = self._fitters[source].refit([float(path.l2[i])])
        return self._head(chosen, candidate, aim, heads, w)

    def _head(self, chosen: Selection, candidate: int, aim: str, heads: Heads, index: int) -> Head:
        settings = chosen.describe(candidate)
        return Head(
            heads.kind,
            heads.weight[:, index],
            heads.bias[index],
            chosen.candidates.rule(candidate),
            self._weight_of_class(chosen, candidate),
            settings["trained_on"],
            settings["class_weight"],
            settings["l2"],
            aim,
        )

    def _weight_of_class(self, chosen: Selection, candidate: int) -> AnyArray:
        """What an image of each class weighs in the loss."""
        weight = self.sweep.class_weights[chosen.candidates.place(candidate)[1]]
        return weights_by_class(weight, self.priors[None], "softmax")[0, 0]

    def nearest(self) -> npt.NDArray[np.float32] | None:
        """The nearest neighbour's class of each validated image."""
        folds = np.where(self.validated, self.folds, -1)
        said = nearest_neighbour(self.rows[VIEW_0], self.labels, folds, self.n_classes)
        return None if said is None else said[self.validated].astype(np.float32)

    def hints(self) -> dict[str, float]:
        """Transfer scores of view 0."""
        return transfer_scores(self.rows[VIEW_0], self.labels, self.n_classes)


def _several(bottlenecks: Bottlenecks, sweep: Sweep) -> bool:
    return sweep.views and bool((bottlenecks.n_views_of > 1).any())


class Selection:
    """The candidates of one module, and which of them are best."""

    def __init__(self, paths: dict[Source, HeadPath], module: ModuleScreen, sweep: Sweep) -> None:
        self.paths, self._metric = paths, sweep.metric
        self._labels = module.labels[module.validated]
        self._parts = choice_parts(self._labels, module.groups[module.validated])
        is_of_decision = METRICS[sweep.metric].is_of_decision
        strengths = sweep.strengths if is_of_decision else (0.0,)
        self.candidates = Candidates(paths, module.validated, module.priors, strengths)
        names = dict.fromkeys((sweep.metric, *SHOWN))
        self.measured = {name: self._values(name) for name in names}
        self.by_metric = self._choose(None)
        # Heads of one file are of one kind.
        same = self.candidates.table["head"] == self.describe(self.by_metric.best)["head"]
        self.by_log_loss = choose(self.measured["log_loss"], "log_loss", same.to_numpy())

    def _values(self, metric: str) -> AnyArray:
        said = self.candidates.decided if METRICS[metric].is_of_decision else self.candidates.plain
        every = (said(n) for n in range(len(self.candidates)))
        return candidate_values(metric, every, self._labels, self._parts)

    def _choose(self, among: pd.Series[bool] | None) -> Choice:
        mask = None if among is None else among.to_numpy(dtype=bool)
        return choose(self.measured[self._metric], self._metric, mask)

    def predictions(self) -> dict[str, npt.NDArray[np.float32]]:
        """Cross-fitted probabilities by name; see the top of this file."""
        candidates, table = self.candidates, self.candidates.table
        on_all = table["trained_on"] == ALL_VIEWS
        asked = {
            "decided": (self.by_metric, candidates.decided),
            "plain": (self.by_metric, candidates.plain),
            "likeliest": (self.by_log_loss, candidates.plain),
        }
        if on_all.any():
            best = self._choose(on_all)
            same = table["head"] == self.describe(self.by_metric.best)["head"]
            likeliest = choose(self.measured["log_loss"], "log_loss", (on_all & same).to_numpy())
            asked |= {
                "averaged": (best, candidates.averaged),
                "averaged_plain": (best, candidates.averaged_plain),
                "likeliest_averaged": (likeliest, candidates.averaged_plain),
                "with_averaging": (best, candidates.averaged),
                "without_averaging": (best, candidates.decided),
            }
        for name, effect in EFFECTS.items():
            with_it, without_it = effect.with_it(table), effect.without_it(table)
            if with_it.any() and without_it.any() and not with_it.equals(without_it):
                asked[f"with_{name}"] = (self._choose(with_it), candidates.decided)
                asked[f"without_{name}"] = (self._choose(without_it), candidates.decided)
        return {
            name: crossfitted(choice, self._parts, said) for name, (choice, said) in asked.items()
        }

    def describe(self, candidate: int) -> dict[str, Any]:
        """The facts of a candidate, as JSON takes them."""
        row = self.candidates.table.iloc[candidate]
        return {
            "trained_on": str(row["trained_on"]),
            "head": str(row["head"]),
            "class_weight": str(row["class_weight"]),
            "l2": float(row["l2"]),
            "adjust": float(row["adjust"]),
        }

    def table(self) -> pd.DataFrame:
        """One row a candidate with its metrics, before any correction."""
        return self.candidates.table.assign(
            **{name: values[0] for name, values in self.measured.items()}
        )
