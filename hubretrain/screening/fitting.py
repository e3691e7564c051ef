"""The features of one module, and all heads of a sweep fitted on them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray, Float32Array, FloatArray
from hubretrain.bottlenecks import Bottlenecks, cached_views
from hubretrain.evaluation import class_priors
from hubretrain.heads import (
    TRAIN_ONLY,
    FeatureBlocks,
    FitInputs,
    HeadPath,
    Heads,
    PathFitter,
    SolverOptions,
    weights_by_class,
)
from hubretrain.progress import Bar
from hubretrain.screening.baselines import nearest_neighbour
from hubretrain.screening.candidates import ALL_VIEWS, LAST_LAYER, VIEW_0, Position, Source
from hubretrain.screening.sweep import Sweep
from hubretrain.screening.transferability import transfer_scores

PATIENCE = 2
MEMORY = 1 << 29  # bytes of the standardised rows of view 0, and again of all views
BLOCK_ROWS = 4096  # that are scored at once


class ModuleFitting:
    """The features of one module and the fittings on them.

    Args:
        bottlenecks: Bottleneck file of the module.
        images: As `hubretrain.screening.screen.screen` takes them.
        sweep: What to compare.

    Attributes:
        labels: int (n_images,).
        validated: bool (n_images,), the images that some fold validates.
        groups: Cluster of each image, (n_images,).
        priors: Share of each class.
        n_views_averaged: Views that each image has: those that `averaged` takes the mean over.
        paths: The fitted heads, after `fit`.
    """

    def __init__(self, bottlenecks: Bottlenecks, images: pd.DataFrame, sweep: Sweep) -> None:
        self.sweep, self.n_classes = sweep, len(sweep.class_names)
        self.labels = images["class_index"].to_numpy()
        fold = images["fold"].to_numpy().astype(np.int64)
        self.validated = fold >= 0
        self._folds = np.where(self.validated, fold, TRAIN_ONLY)
        self.groups = images["cluster"].to_numpy()
        self.priors = class_priors(self.labels, self.n_classes)
        self.paths: dict[Source, HeadPath] = {}
        self._features: dict[tuple[str, str], FeatureBlocks] = {}
        self._inputs: dict[tuple[str, str], FitInputs] = {}
        self._fitters: dict[Source, PathFitter] = {}
        several = sweep.views and bool((bottlenecks.n_views_of > 1).any())
        sha256s = images["sha256"].tolist()
        for trained_on in (VIEW_0, ALL_VIEWS) if several else (VIEW_0,):
            self._read(bottlenecks, sha256s, LAST_LAYER, trained_on)
        n_views = np.bincount(self._widest_inputs(LAST_LAYER).row_image)
        # Rare classes may have more views; a new image has no class, so the fewest count.
        self.n_views_averaged = int(n_views.min())

    def _read(
        self, bottlenecks: Bottlenecks, sha256s: list[str], layers: str, trained_on: str
    ) -> None:
        parts, row_image = cached_views(bottlenecks, sha256s, all_views=trained_on == ALL_VIEWS)
        inputs = FitInputs.checked(
            parts,
            self.labels,
            self.n_classes,
            self._folds,
            rows=row_image,
            class_names=self.sweep.class_names,
        )
        self._inputs[layers, trained_on] = inputs
        self._features[layers, trained_on] = FeatureBlocks(
            parts, inputs.row_image, standardize=True, memory=MEMORY
        )

    def _widest_inputs(self, layers: str) -> FitInputs:
        """Return the inputs of all views, or of view 0 where no others are compared."""
        return self._inputs.get((layers, ALL_VIEWS)) or self._inputs[layers, VIEW_0]

    def fit(self, what: str) -> None:
        """Fit all heads over all folds; `what` names the work in the progress."""
        sweep = self.sweep
        n_folds = len(next(iter(self._inputs.values())).folds)
        n_heads_per_path = len(sweep.class_weights) * n_folds * len(sweep.l2)
        sources = [Source(*of, kind) for of in self._features for kind in sweep.kinds]
        with Bar(what, len(sources) * n_heads_per_path, "heads") as bar:
            for n_done, source in enumerate(sources, start=1):
                of = source.layers, source.trained_on
                self._fitters[source] = PathFitter(
                    self._inputs[of],
                    self._features[of],
                    source.kind,
                    sweep.class_weights,
                    SolverOptions(),
                )
                self.paths[source] = self._fitters[source].fit_folds(
                    np.array(sweep.l2), PATIENCE, advance=bar.advance
                )
                # Heads beyond an early stop are not fitted, and not left to do either.
                bar.advance(n_done * n_heads_per_path - bar.done)

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

    def refitted(self, position: Position) -> tuple[AnyArray, AnyArray]:
        """Return weight and bias of a head that is fitted on all folds."""
        source, w, i = position
        heads = self._fitters[source].refit([float(self.paths[source].l2[i])])
        return heads.weight[:, w], heads.bias[w]

    def without_fold(self, position: Position, fold: int) -> tuple[AnyArray, AnyArray]:
        """Return weight and bias of a head that is fitted without one fold."""
        source, w, i = position
        path = self.paths[source]
        heads, index = _heads_of_folds(path, w, i), path.folds.tolist().index(fold)
        return heads.weight[:, index], heads.bias[index]

    def weight_of_class(self, position: Position) -> FloatArray:
        """Return the weight in the loss of an image of each class, float64 (n_classes,)."""
        class_weight = self.sweep.class_weights[position.class_weight]
        return weights_by_class(class_weight, self.priors[None], "softmax")[0, 0]

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
    settings = {name: values[at] for name, values in path.heads.settings.items()}
    return Heads(path.kind, path.heads.weight[:, at], path.heads.bias[at], settings)
