"""Out-of-fold scores of heads, and their validation loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hubretrain.arrays import AnyArray, Float32Array, FloatArray, IntArray
from hubretrain.evaluation import SMALLEST_PROBABILITY, calibrate
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.heads import probabilities
from hubretrain.heads.inputs import FitInputs
from hubretrain.heads.losses import Kind
from hubretrain.heads.objective import Objective
from hubretrain.heads.result import HeadPath

SCORED_ROWS = 4096  # at a time


class Validation:
    """Scores each image by the heads of the fold that left it out.

    Args:
        inputs: Labels, folds and weights.
        rows: Standardised features.
        kind: Kind of the heads.
    """

    def __init__(self, inputs: FitInputs, rows: FeatureBlocks, kind: Kind) -> None:
        self._inputs, self._row_image, self._kind = inputs, rows.row_image, kind
        _, first_rows = np.unique(rows.row_image, return_index=True)
        self._is_view_0 = np.zeros(rows.n_rows, dtype=bool)
        self._is_view_0[first_rows] = True
        self._n_views = np.maximum(np.bincount(rows.row_image, minlength=len(inputs.labels)), 1)
        weight = [inputs.weight[inputs.fold == fold].sum() for fold in inputs.folds]
        self._fold_share = np.array(weight) / np.sum(weight)

    def fill(
        self, path: HeadPath, at: IntArray, objective: Objective, unknowns: AnyArray
    ) -> FloatArray:
        """Write the out-of-fold scores and validation losses of one l2: one pass over the rows.

        Args:
            path: Result to write to.
            at: Indices of this l2 in `path.l2`.
            objective: Objective of the problems, class weights x folds (x classes).
            unknowns: Unknowns of all problems.

        Returns:
            Log loss over all folds, in nats, float64 array of shape (n_class_weights,).
        """
        logits, mean = self._scores(path, objective, unknowns)
        is_validated = np.isin(self._inputs.fold, self._inputs.folds)
        cells = np.ix_(is_validated, np.arange(len(path.class_weights)), at)
        path.out_of_fold[cells] = logits[is_validated][:, :, None]
        if path.out_of_fold_mean is not None:
            path.out_of_fold_mean[cells] = mean[is_validated][:, :, None]
        losses = self._losses(logits)
        path.validation_loss[:, :, at] = losses[:, :, None]
        return losses @ self._fold_share

    def _scores(
        self, path: HeadPath, objective: Objective, unknowns: AnyArray
    ) -> tuple[Float32Array, Float32Array]:
        """Return logits of view 0 and, if the path has it, their mean over views.

        Returns:
            float32 arrays of shape (n_images, n_class_weights, n_classes); 0 for images that no
            fold validates.
        """
        inputs = self._inputs
        head_shape = (len(path.class_weights), len(inputs.folds), inputs.n_classes)
        logits = np.zeros((len(inputs.labels), head_shape[0], inputs.n_classes), np.float32)
        mean = np.zeros_like(logits)
        for rows, _, block_scores in objective.scores(unknowns):
            scores = block_scores.reshape(*head_shape, -1)
            images, is_view_0 = self._row_image[rows], self._is_view_0[rows]
            for f, fold in enumerate(inputs.folds):
                is_left_out = inputs.fold[images] == fold
                first_views = is_left_out & is_view_0
                logits[images[first_views]] = scores[:, f, :, first_views].astype(np.float32)
                if path.out_of_fold_mean is not None:
                    n_views = self._n_views[images[is_left_out], None, None]
                    share = scores[:, f, :, is_left_out] / n_views
                    np.add.at(mean, images[is_left_out], share.astype(np.float32))
        return logits, mean

    def _losses(self, logits: Float32Array) -> FloatArray:
        """Return the log loss of each fold, in nats: float64 (n_class_weights, n_folds)."""
        inputs, losses = self._inputs, []
        for fold in inputs.folds:
            images = np.flatnonzero(inputs.fold == fold)
            exact = logits[images].astype(np.float64)
            probs = probabilities(exact, self._kind, inputs.multi_label)
            weight = inputs.weight[images] / inputs.weight[images].sum()
            losses.append(-(weight @ _log_likely(probs, inputs.labels[images])))
        return np.stack(losses, axis=1)


def _log_likely(probs: AnyArray, labels: AnyArray) -> AnyArray:
    """Return the log of the probability of each image's label, nats.

    Where an image may have several labels, it is the mean over these of that of having it or not.

    Args:
        probs: float64 (n_images, ..., n_classes).
        labels: int (n_images,), or bool (n_images, n_classes).
    """
    if labels.ndim == 1:
        return np.asarray(np.log(probs[np.arange(len(labels)), ..., labels]))
    has = np.expand_dims(labels, tuple(range(1, probs.ndim - 1)))
    likely = np.where(has, probs, 1 - probs)
    return np.asarray(np.log(np.maximum(likely, SMALLEST_PROBABILITY)).mean(axis=-1))


class FoldScores(NamedTuple):
    """Scores of the images of one fold.

    Attributes:
        images: Images of the fold, ascending, int64 (n,).
        of_view_0: Logits (n, n_classes).
        mean: The same, averaged over views.
    """

    images: IntArray
    of_view_0: AnyArray
    mean: AnyArray


def fold_scores(
    logits: Callable[[AnyArray], AnyArray], rows: FeatureBlocks, inputs: FitInputs, fold: int
) -> FoldScores | None:
    """Return the scores of the images of one fold by a head; None if it has none.

    Args:
        logits: Function from rows (n, n_features) to logits (n, n_classes).
        rows: Standardised features.
        inputs: Labels, folds and weights.
        fold: The fold.
    """
    index = np.flatnonzero(inputs.fold[rows.row_image] == fold)
    if not len(index):
        return None
    parts = np.array_split(index, -(-len(index) // SCORED_ROWS))
    scores = np.concatenate([logits(rows.take(part)) for part in parts])
    images, first, of_image = np.unique(
        rows.row_image[index], return_index=True, return_inverse=True
    )
    total = np.zeros((len(images), scores.shape[1]))
    np.add.at(total, of_image, scores)
    return FoldScores(images, scores[first], total / np.bincount(of_image)[:, None])


def temperature_without(logits: AnyArray, inputs: FitInputs, fold: int | None) -> float:
    """Return the temperature of all validated images but those of a fold; 1 if there are none.

    Args:
        logits: Out-of-fold logits (n_images, n_classes) of networks.
        inputs: Labels, folds and weights.
        fold: The fold; None to take all.
    """
    images = np.isin(inputs.fold, inputs.folds) & (inputs.fold != fold)
    if not images.any():
        return 1.0
    probs = probabilities(logits[images].astype(np.float64), "mlp", inputs.multi_label)
    return calibrate(probs, inputs.labels[images]).temperature


def log_loss(logits: AnyArray, labels: AnyArray, weight: FloatArray) -> float:
    """Return the weighted mean log loss of networks, in nats."""
    probs = probabilities(logits.astype(np.float64), "mlp", labels.ndim == 2)
    likely = np.maximum(probs, SMALLEST_PROBABILITY) if labels.ndim == 1 else probs
    return float(-np.average(_log_likely(likely, labels), weights=weight))
