"""The result of a fit: all heads along a path of l2, and their out-of-fold scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hubretrain.arrays import BoolArray, Float32Array, FloatArray, IntArray
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.heads import Heads
from hubretrain.heads.inputs import ClassWeight, FitInputs, class_weight_name
from hubretrain.heads.losses import Kind
from hubretrain.heads.solver import Solution


@dataclass(frozen=True, eq=False)
class HeadPath:
    """Fitted heads along a path of l2, and their scores of images that they were not fitted on.

    Axes are class weight, fold and l2: class weights and l2 in the caller's order, folds ascending.

    Attributes:
        kind: `softmax` or `logistic`.
        l2: Penalties, float64 array of shape (n_l2,).
        class_weights: Names of the class weights, see `class_weight_name`.
        folds: int64 array of shape (n_folds,); [-1] if the heads are fitted to all images.
        heads: All n_class_weights * n_folds * n_l2 heads, in C order; NaN where the path ended
            before.
        objective: Objective (1) of `hubretrain.heads.solver`, float64 array of shape
            (n_class_weights, n_folds, n_l2); summed over the classes of a logistic head.
        validation_loss: Log loss, in nats, on view 0 of the images of the fold that was left out,
            weighted by sample weights but not by class weights; float64 array of the same shape.
        iterations: Passes over the rows, int64 array of the same shape.
        converged: bool array of the same shape.
        stopped_early: bool array of the same shape, True where the path ended before.
        out_of_fold: Logits of view 0 of each image by the heads that were not fitted on it, float32
            array of shape (n_images, n_class_weights, n_l2, n_classes); NaN where there are none.
        out_of_fold_mean: The same, averaged over the views of each image; None unless requested.
    """

    kind: Kind
    l2: FloatArray
    class_weights: tuple[str, ...]
    folds: IntArray
    heads: Heads
    objective: FloatArray
    validation_loss: FloatArray
    iterations: IntArray
    converged: BoolArray
    stopped_early: BoolArray
    out_of_fold: Float32Array
    out_of_fold_mean: Float32Array | None

    @classmethod
    def blank(
        cls,
        inputs: FitInputs,
        rows: FeatureBlocks,
        kind: Kind,
        class_weights: Sequence[ClassWeight],
        l2: FloatArray,
        *,
        mean_over_views: bool,
    ) -> HeadPath:
        """Return a result of NaN, to be filled one l2 at a time.

        Args:
            inputs: Inputs of the fit.
            rows: Standardised features, for the number and dtype of weights.
            kind: Kind of the heads.
            class_weights: Class weights of the heads.
            l2: Penalties, float64 array of shape (n_l2,).
            mean_over_views: Whether to have `out_of_fold_mean`.
        """
        grid = (len(class_weights), len(inputs.folds), len(l2))
        n_heads = int(np.prod(grid))
        names = tuple(class_weight_name(weight) for weight in class_weights)
        axes = np.meshgrid(names, inputs.folds, l2, indexing="ij")
        heads = Heads(
            kind,
            np.full((rows.n_features, n_heads, inputs.n_classes), np.nan, rows.dtype),
            np.full((n_heads, inputs.n_classes), np.nan, rows.dtype),
            {n: v.ravel() for n, v in zip(("class_weight", "fold", "l2"), axes, strict=True)},
            inputs.class_names,
            multi_label=inputs.multi_label,
        )
        scores = (len(inputs.labels), grid[0], grid[2], inputs.n_classes)
        return cls(
            kind=kind,
            l2=l2,
            class_weights=names,
            folds=inputs.folds,
            heads=heads,
            objective=np.full(grid, np.nan),
            validation_loss=np.full(grid, np.nan),
            iterations=np.zeros(grid, dtype=np.int64),
            converged=np.zeros(grid, dtype=bool),
            stopped_early=np.ones(grid, dtype=bool),
            out_of_fold=np.full(scores, np.nan, np.float32),
            out_of_fold_mean=np.full(scores, np.nan, np.float32) if mean_over_views else None,
        )

    def fill(self, at: IntArray, solution: Solution, weight: FloatArray, bias: FloatArray) -> None:
        """Write the solutions of one l2.

        Args:
            at: Indices of this l2 in `l2`.
            solution: Solutions of all problems.
            weight: Weights for raw features, of shape (n_class_weights, n_folds, n_classes,
                n_features).
            bias: Biases, of shape (n_class_weights, n_folds, n_classes).
        """
        grid = self.objective.shape
        n_classes = bias.shape[-1]
        weights = self.heads.weight.reshape(-1, *grid, n_classes)  # views: writing fills the heads
        biases = self.heads.bias.reshape(*grid, n_classes)
        weights[:, :, :, at] = weight.transpose(3, 0, 1, 2)[:, :, :, None]
        biases[:, :, at] = bias[:, :, None]
        # A logistic head is n_classes problems: it costs their sum and has converged with the last.
        problems = (*grid[:2], 1, -1)
        self.objective[:, :, at] = solution.objective.reshape(problems).sum(axis=3)
        self.iterations[:, :, at] = solution.iterations.reshape(problems).max(axis=3)
        self.converged[:, :, at] = solution.converged.reshape(problems).all(axis=3)
        self.stopped_early[:, :, at] = self.iterations[:, :, at] == 0
