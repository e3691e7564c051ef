"""The features of one module, and all heads of a sweep fitted on them.

Heads on all layers are fitted on principal components of their features, which are the same for all
views; heads that are validated on a fold, on those that have not seen its images. What is kept of
them is undone into weights for features as they are cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import Float32Array, FloatArray, IntArray
from hubretrain.bottlenecks import Bottlenecks, cached_views
from hubretrain.evaluation import class_priors, metric_named
from hubretrain.heads import (
    DECAYS,
    TRAIN_ONLY,
    ClassWeight,
    FeatureBlocks,
    FitInputs,
    Head,
    HeadPath,
    Heads,
    MLPFitter,
    PathFitter,
    Projection,
    SolverOptions,
    weights_by_class,
    weights_by_label,
)
from hubretrain.progress import Bar
from hubretrain.screening.baselines import nearest_neighbour
from hubretrain.screening.candidates import (
    ALL_LAYERS,
    ALL_VIEWS,
    LAST_LAYER,
    VIEW_0,
    Position,
    Source,
    stopping_criterion,
)
from hubretrain.screening.sweep import MLP, Sweep
from hubretrain.screening.transferability import transfer_scores

PATIENCE = 2
# Of heads that are compared: half the passes, and log losses within .0002 of those at 3e-7. What is
# refitted on all images is exact.
TOL = 1e-5
SHARE_OF_COMPONENTS = 0.3  # of the time of a fit on all layers
MEMORY = 1 << 30  # bytes of all copies of rows
MEMORY_OF_PROJECTIONS = 1 << 29  # bytes of those that are kept for networks
BLOCK_ROWS = 4096  # that are scored at once


class ModuleFitting:
    """The features of one module and the fittings on them.

    Args:
        bottlenecks: Bottleneck file of the module.
        images: As `hubretrain.screening.screen.screen` takes them.
        sweep: What to compare.
        projections: Principal components by module that were computed from these images before;
            those of this module are added while all of them are small.
        reach: Range of l2 that the paths of a source cover in any case, as `PathFitter.fit_folds`
            takes it; none by default.

    Attributes:
        labels: int (n_images,); or bool (n_images, n_classes), see `Sweep.targets`.
        validated: bool (n_images,), the images that some fold validates.
        groups: Cluster of each image, (n_images,).
        priors: Share of each class.
        n_views_averaged: Views that each image has: those that `averaged` takes the mean over.
        paths: The fitted heads, after `fit`.
    """

    def __init__(
        self,
        bottlenecks: Bottlenecks,
        images: pd.DataFrame,
        sweep: Sweep,
        projections: dict[str, Projection] | None = None,
        reach: Mapping[Source, FloatArray] | None = None,
    ) -> None:
        self._reach = reach or {}
        self.sweep, self.n_classes = sweep, len(sweep.class_names)
        self.labels = sweep.targets(images)
        fold = images["fold"].to_numpy().astype(np.int64)
        self.validated = fold >= 0
        self._folds = np.where(self.validated, fold, TRAIN_ONLY)
        self.groups = images["cluster"].to_numpy()
        self.priors = class_priors(self.labels, self.n_classes)
        self.paths: dict[Source, HeadPath] = {}
        self._features: dict[tuple[str, str], FeatureBlocks] = {}
        self._inputs: dict[tuple[str, str], FitInputs] = {}
        self._fitters: dict[Source, PathFitter | MLPFitter] = {}
        self._refits: dict[tuple[Source, float], Heads] = {}
        views = (VIEW_0, ALL_VIEWS) if _several_views(bottlenecks, sweep) else (VIEW_0,)
        layers, trained_on_views = _compared_layers(bottlenecks, sweep), views
        if sweep.kinds == (MLP,):  # networks take long, so they get the most of each alone
            layers, trained_on_views = layers[-1:], views[-1:]
        # Rows of the last layer are held once for each; components once, and for networks in the
        # basis of one fold.
        n_copies = len(trained_on_views) * (LAST_LAYER in layers) + 2 * (ALL_LAYERS in layers)
        self._memory = MEMORY // n_copies
        self._projections = {} if projections is None else projections
        self._projection: Projection | None = None
        self._layer_names = bottlenecks.layers
        sha256s = images["sha256"].tolist()
        self._sources = [(of, trained_on) for of in layers for trained_on in trained_on_views]
        for of in layers:
            parts: Sequence[Any]
            parts, row_image = cached_views(
                bottlenecks, sha256s, all_views=ALL_VIEWS in views, layers=of
            )
            if of == ALL_LAYERS:
                parts = self._projected(bottlenecks.path.stem, parts, row_image)
            for trained_on in trained_on_views:
                self._take(of, trained_on, parts, row_image)
        if (LAST_LAYER, VIEW_0) not in self._features:  # of which the baseline and the hints are
            self._take(LAST_LAYER, VIEW_0, *cached_views(bottlenecks, sha256s, all_views=False))
        n_views = np.bincount(self._widest_inputs(layers[0]).row_image)
        # Rare classes may have more views; a new image has no class, so the fewest count.
        self.n_views_averaged = int(n_views.min())

    def _projected(
        self, module: str, parts: Sequence[Any], row_image: IntArray
    ) -> list[Float32Array]:
        """Return the principal components of all views, by those of a sample of them."""
        projected: list[Float32Array] = []
        memory, first = self._memory // len(parts), 0
        with Bar(
            f"components of {module}", len(parts) + 1, "steps", share=SHARE_OF_COMPONENTS
        ) as bar:
            self._projection = self._projections.get(module)
            if self._projection is None:
                self._projection = Projection.fitted(parts, row_image, folds=self._folds)
                self._remember(module, self._projection)
            bar.advance(1)
            for part in parts:
                image = row_image[first : first + len(part)]
                projected += self._projection.project_parts([part], image, memory)
                first += len(part)
                bar.advance(1)
        return projected

    def _remember(self, module: str, projection: Projection) -> None:
        kept = [*self._projections.values(), projection]
        if sum(each.n_bytes for each in kept) <= MEMORY_OF_PROJECTIONS:
            self._projections[module] = projection

    def _take(
        self, layers: str, trained_on: str, parts: Sequence[Any], row_image: IntArray
    ) -> None:
        """Keep the rows of some layers and views: those of view 0 are the first."""
        n_parts = 1 if trained_on == VIEW_0 else len(parts)
        n_rows = sum(len(part) for part in parts[:n_parts])
        inputs = FitInputs.checked(
            parts[:n_parts],
            self.labels,
            self.n_classes,
            self._folds,
            rows=row_image[:n_rows],
            class_names=self.sweep.class_names,
        )
        self._inputs[layers, trained_on] = inputs
        self._features[layers, trained_on] = FeatureBlocks(
            inputs.parts,
            inputs.row_image,
            standardize=layers == LAST_LAYER,
            memory=self._memory,
            as_they_are=layers == ALL_LAYERS,  # components are of standardised features
        )

    def _widest_inputs(self, layers: str) -> FitInputs:
        """Return the inputs of all views, or of view 0 where no others are compared."""
        return self._inputs.get((layers, ALL_VIEWS)) or self._inputs[layers, VIEW_0]

    def fit(self, what: str) -> None:
        """Fit all heads over all folds; `what` names the work in the progress."""
        sweep = self.sweep
        n_folds = len(next(iter(self._inputs.values())).folds)
        sources = [Source(*of, kind) for of in self._sources for kind in sweep.kinds if kind != MLP]
        if MLP in sweep.kinds:
            sources.append(Source(*self._sources[-1], MLP))
        n_heads = [
            n_folds * len(self._weights(s)) * len((*self._penalties(s), *self._beyond(s)))
            for s in sources
        ]
        share = 1.0 if self._projection is None else 1 - SHARE_OF_COMPONENTS
        with Bar(what, sum(n_heads), "heads", share=share) as bar:
            for n_done, source in zip(np.cumsum(n_heads).tolist(), sources, strict=True):
                self.paths[source] = self._fitted(source, bar)
                # Heads beyond an early stop are not fitted, and not left to do either.
                bar.advance(n_done - bar.done)

    def _fitted(self, source: Source, bar: Bar) -> HeadPath:
        of = source.layers, source.trained_on
        inputs, features, weights = self._inputs[of], self._features[of], self._weights(source)
        penalties = np.array(self._penalties(source))
        projection = self._projection if source.layers == ALL_LAYERS else None
        bases = None if projection is None else projection.bases
        if source.kind == MLP:
            networks = MLPFitter(inputs, features, weights, bases=bases)
            self._fitters[source] = networks
            return networks.fit_folds(penalties, advance=bar.advance)
        heads = PathFitter(inputs, features, source.kind, weights, SolverOptions(TOL), bases)
        self._fitters[source] = heads
        is_of_decision = metric_named(self.sweep.metric).is_of_decision
        return heads.fit_folds(
            penalties,
            PATIENCE,
            reach=self._reach.get(source),
            advance=bar.advance,
            beyond=self._beyond(source),
            criterion=stopping_criterion(
                self.sweep.metric,
                self.labels[self.validated],
                self.priors,
                self.sweep.strengths if is_of_decision else (0.0,),
            ),
        )

    def _weights(self, source: Source) -> tuple[ClassWeight, ...]:
        """Return the class weights that are compared: of networks none, where that is one."""
        weights = self.sweep.class_weights
        return (None,) if source.kind == MLP and None in weights else weights

    def _penalties(self, source: Source) -> tuple[float, ...]:
        return DECAYS if source.kind == MLP else self.sweep.l2

    def _beyond(self, source: Source) -> tuple[float, ...]:
        return () if source.kind == MLP else self.sweep.l2_beyond

    def averaged(self, position: Position) -> Float32Array:
        """Return out-of-fold probabilities of a head, averaged over `n_views_averaged` views.

        Returns:
            float32 (n_validated, n_classes).
        """
        source, w, i = position
        path, inputs = self.paths[source], self._widest_inputs(source.layers)
        heads = _heads_of_folds(path, w, i)
        fold = np.searchsorted(path.folds, np.where(self.validated, self._folds, path.folds[0]))
        total, start = np.zeros((len(self.labels), self.n_classes)), 0
        for part in inputs.parts[: self.n_views_averaged]:
            for low in range(0, len(part), BLOCK_ROWS):
                probs = heads.probabilities(part[low : low + BLOCK_ROWS])
                image = inputs.row_image[start + low : start + low + len(probs)]
                total[image] += probs[np.arange(len(probs)), fold[image]]
            start += len(part)
        return (total[self.validated] / self.n_views_averaged).astype(np.float32)

    def head(self, position: Position, without_fold: int | None = None, **settings: Any) -> Head:
        """Return a head for features as they are cached, fitted on all folds or without one.

        Args:
            position: Where it was fitted.
            without_fold: The fold.
            settings: The other attributes of the head.
        """
        source, w, i = position
        path = self.paths[source]
        if without_fold is None:
            heads, index = self._refitted(source, float(path.l2[i])), w
        else:
            heads, index = _heads_of_folds(path, w, i), path.folds.tolist().index(without_fold)
        head = Head(
            kind=source.kind,
            **heads.arrays(index),
            weight_of_class=self._weight_of_class(self._weights(source)[w]),
            multi_label=self.sweep.multi_label,
            **settings,
        )
        if source.layers == LAST_LAYER:
            return head
        assert self._projection is not None
        return self._projection.raw_head(head, self._layer_names)

    def _weight_of_class(self, class_weight: ClassWeight) -> FloatArray:
        """Return `Head.weight_of_class`."""
        if not self.sweep.multi_label:
            return weights_by_class(class_weight, self.priors[None], "softmax")[0, 0]
        of_labels = weights_by_label(
            class_weight, np.stack([1 - self.priors, self.priors], 1)[None]
        )
        without, positive = of_labels[0].T
        return np.divide(positive, without, out=np.ones_like(positive), where=without > 0)

    def _refitted(self, source: Source, penalty: float) -> Heads:
        """Return heads fitted on all folds, once for two roles of the same penalty."""
        if (source, penalty) not in self._refits:
            self._refits[source, penalty] = self._fitters[source].refit([penalty])
        return self._refits[source, penalty]

    def nearest(self) -> dict[str, Float32Array]:
        """Return the prediction `nearest`, or {} for too many images."""
        folds = np.where(self.validated, self._folds, -1)
        features = self._features[LAST_LAYER, VIEW_0]
        probs = nearest_neighbour(features, self.labels, folds, self.n_classes)
        return {} if probs is None else {"nearest": probs[self.validated].astype(np.float32)}

    def hints(self) -> dict[str, float]:
        """Return transferability scores of the last layer on view 0."""
        return transfer_scores(self._features[LAST_LAYER, VIEW_0], self.labels, self.n_classes)


def _heads_of_folds(path: HeadPath, class_weight: int, l2: int) -> Heads:
    """Return the heads of one class weight and l2, one per fold."""
    at = np.arange(path.objective.size).reshape(path.objective.shape)[class_weight, :, l2]
    heads = path.heads
    return replace(
        heads,
        weight=heads.weight[:, at],
        bias=heads.bias[at],
        settings={name: values[at] for name, values in heads.settings.items()},
        hidden_weight=None if heads.hidden_weight is None else heads.hidden_weight[:, at],
        hidden_bias=None if heads.hidden_bias is None else heads.hidden_bias[at],
    )


def _several_views(bottlenecks: Bottlenecks, sweep: Sweep) -> bool:
    return sweep.views and bool((bottlenecks.n_views_of > 1).any())


def _compared_layers(bottlenecks: Bottlenecks, sweep: Sweep) -> tuple[str, ...]:
    """Return the layers of a sweep whose features are cached; asked for alone, they must be.

    A module without feature maps has the features of its last layer alone, and these are all.
    """
    if bottlenecks.has_layers:
        return sweep.layers
    if sweep.layers == (ALL_LAYERS,):
        bottlenecks.n_features_of(ALL_LAYERS)  # says how they are cached
    return (LAST_LAYER,)
