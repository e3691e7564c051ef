"""Every fold x l2 x class weight of one kind of head, fitted together.

What a head minimises, over its training rows i with standardised features x_i::

    sum_i w_i loss(W x_i + b, y_i)  +  l2 / 2 * ||W||^2

This is scikit-learn's `LogisticRegression` with `C = 1 / l2` on the same x_i, apart from one
case: for two classes scikit-learn has one weight vector, the difference of our two, so there
softmax needs `l2 = 2 / C` (`l2_of`). The bias is not penalised.

Features are standardised once, over all rows that take part in any fold. That looks at
validation features but at no label, and lets one eigenbasis serve all folds. An image weighs
the same however many views it has: each of its rows has 1 / (number of its rows).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hubretrain.errors import HeadError
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.heads import Heads, probabilities
from hubretrain.heads.inputs import (
    ClassWeight,
    FitInputs,
    called,
    checked_l2,
    weights_by_class,
)
from hubretrain.heads.losses import HeadLosses, Kind
from hubretrain.heads.solver import Objective, Path, Solution

Array = npt.NDArray[Any]

DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True, eq=False)
class HeadPath:
    """Fitted heads along a path of l2, and what they say of images that they never saw.

    Axes: class weight, fold, l2, in the caller's order of class weights and l2, folds ascending.

    Attributes:
        kind: `softmax` or `logistic`.
        l2: float64 (n_l2,).
        class_weights: What each class weight is called, (n_class_weights,).
        folds: int64 (n_folds,); [-1] where no folds were given: fitted on all images.
        heads: All of them, n_class_weights * n_folds * n_l2 in C order; NaN where stopped early.
        objective: float64 (n_class_weights, n_folds, n_l2), see the top of this file; logistic
            heads: summed over the classes.
        validation_loss: Log loss in nats on view 0 of the left out fold's images, weighted by
            sample weights but not by class weights; float64, same shape.
        iterations: Passes over the rows, int64, same shape.
        converged: bool, same shape.
        stopped_early: bool, same shape; the path was past its least validation loss.
        out_of_fold: Logits of view 0 of each image from heads that never saw it, float32
            (n_images, n_class_weights, n_l2, n_classes); NaN where there are none.
        out_of_fold_mean: The same, averaged over an image's views; None unless asked for.
        refitted: Heads fitted on all folds; None unless asked for.
    """

    kind: Kind
    l2: Array
    class_weights: tuple[str, ...]
    folds: Array
    heads: Heads
    objective: Array
    validation_loss: Array
    iterations: Array
    converged: Array
    stopped_early: Array
    out_of_fold: Array
    out_of_fold_mean: Array | None
    refitted: Heads | None

    def out_of_fold_probabilities(self) -> Array:
        """Of `out_of_fold`: float32 of the same shape, summing to 1 over the classes."""
        return probabilities(self.out_of_fold, self.kind)


def l2_of(kind: str, inverse_strength: float, n_classes: int) -> float:
    """The l2 at which a head minimises what scikit-learn's does at C = `inverse_strength`."""
    return (2 if kind == "softmax" and n_classes == 2 else 1) / inverse_strength


def fit_path(
    features: Any,
    labels: npt.ArrayLike,
    *,
    kind: Kind,
    n_classes: int,
    l2: Sequence[float],
    folds: npt.ArrayLike | None = None,
    class_weights: Sequence[ClassWeight] = (None,),
    sample_weight: npt.ArrayLike | None = None,
    rows: npt.ArrayLike | None = None,
    class_names: Sequence[str] = (),
    standardize: bool = True,
    refit: Literal["best"] | Sequence[float] | None = None,
    mean_over_views: bool = False,
    patience: int | None = 1,
    tol: float = 3e-7,
    max_iter: int = 500,
    memory: int = DEFAULT_MEMORY,
    pace: Callable[[int], None] | None = None,
) -> HeadPath:
    """Fits heads of one kind for every class weight, fold and l2.

    Args:
        features: float (n_rows, n_features), or a sequence of such arrays, one a view. Anything
            that can be sliced: numpy, memmap, HDF5. Computed with in float32 unless float64.
        labels: int (n_images,), in [0, n_classes).
        kind: `softmax`, or `logistic`: each class against the rest.
        n_classes: How many classes there are; each must be present in each fold's training.
        l2: Penalties, see the top of this file; 1 / C of scikit-learn.
        folds: int (n_images,), the fold that validates each image; below 0: the image takes no
            part at all, not even in the standardisation; `TRAIN_ONLY`: every fold trains on
            it, none validates it. None: fit on all images.
        class_weights: Each None, `balanced` (every class counts the same; logistic: a class
            as much as all others), or a weight for each class.
        sample_weight: float (n_images,), at least 0.
        rows: int, the image of each row, views one after the other; below 0: the row is not
            used. An image's first row is its view 0. By default row i is of image i, in every
            view.
        class_names: For error texts and the heads.
        standardize: Divide features by their standard deviation, so the penalty is fair.
        refit: Also fit on all folds: at the l2 of least validation loss of each class weight
            (`best`), or at these l2.
        mean_over_views: Also average out-of-fold logits over each image's views.
        patience: End a class weight's path, from the largest l2 on, when its validation loss
            over all folds has not been lower for so many l2; None: never.
        tol: Relative; see `hubretrain.heads.solver.Path`.
        max_iter: Passes over the rows at each l2, at most.
        memory: Bytes that a copy of the standardised rows may take; more is read in blocks,
            again on every pass.
        pace: Called after each pass with the number of problems that it served.

    Raises:
        HeadError: The input cannot be fitted: NaN, an absent class, shapes that do not agree.
    """
    asked = (folds, sample_weight, rows, class_names)
    data = FitInputs.checked(features, labels, n_classes, *asked)
    levels = checked_l2(l2)
    standard = FeatureBlocks(data.parts, data.row_image, standardize=standardize, memory=memory)
    options = {"tol": tol, "max_iter": max_iter, "pace": pace}
    fitting = Fitting(data, standard, kind, class_weights, options)
    found = fitting.folds(levels, patience, mean_over_views=mean_over_views)
    if refit is None:
        return found
    return replace(found, refitted=fitting.refit(found, refit))


class Fitting:
    """The heads of one kind: first along the path over the folds, then on all of them.

    Args:
        data: Labels, folds and weights.
        rows: Their standardised features; several fittings may share them.
        kind: `softmax` or `logistic`.
        class_weights: As `fit_path` takes them.
        path_options: `tol`, `max_iter` and `pace` of `fit_path`.

    Raises:
        HeadError: There is no such kind.
    """

    def __init__(
        self,
        data: FitInputs,
        rows: FeatureBlocks,
        kind: Kind,
        class_weights: Sequence[ClassWeight],
        path_options: Mapping[str, Any],
    ) -> None:
        if kind not in ("softmax", "logistic"):
            raise HeadError(f"kind is {kind!r}; expected softmax or logistic.")
        self.data, self.kind, self.rows = data, kind, rows
        self.class_weights, self._path_options = tuple(class_weights), path_options
        self._basis = rows.eigenbasis()
        _, first = np.unique(rows.image, return_index=True)
        self._is_view_0 = np.zeros(rows.n_rows, dtype=bool)
        self._is_view_0[first] = True
        self._n_views = np.maximum(np.bincount(rows.image, minlength=len(data.labels)), 1)
        self._middles: list[tuple[float, Array]] = []

    def _path(self, folds: Array) -> tuple[Objective, Path]:
        """Problems for class weights x folds (x classes, for logistic heads), in C order."""
        data, image, dtype = self.data, self.rows.image, self.rows.dtype
        mass = data.class_mass(folds)
        tables = np.stack([weights_by_class(one, mass, self.kind) for one in self.class_weights])
        n_weights, n_folds, per_head, n_classes = tables.shape
        problems = HeadLosses(
            self.kind,
            data.labels[image],
            (data.weight / self._n_views)[image].astype(dtype),
            data.fold[image],
            tables.reshape(-1, n_classes).astype(dtype),
            np.tile(np.repeat(folds, per_head), n_weights),
            np.tile(np.arange(per_head), n_weights * n_folds),
        )
        objective = Objective(self.rows, problems, *self._basis)
        return objective, Path(objective, **self._path_options)

    def folds(
        self,
        l2: Array,
        patience: int | None,
        *,
        mean_over_views: bool = False,
        done: Callable[[int], None] | None = None,
    ) -> HeadPath:
        """The path over all folds, from the largest l2 to the least; see `fit_path`.

        `done` is called with the number of heads that each l2 brought.
        """
        folds, n_weights = self.data.folds, len(self.class_weights)
        objective, path = self._path(folds)
        found = self._blank(l2, mean_over_views=mean_over_views)
        alive, best = np.ones(n_weights, dtype=bool), np.full(n_weights, np.inf)
        since_best = np.zeros(n_weights, dtype=np.int64)
        for level in np.unique(l2)[::-1]:
            solution = path.advance(level, np.repeat(alive, len(objective.problems) // n_weights))
            place = solution.place.reshape(n_weights, len(folds), self.data.n_classes, -1)
            self._middles.append((level, place.mean(axis=1)))
            at = np.flatnonzero(l2 == level)
            self._keep(found, at, solution, *objective.raw(place))
            if folds[0] < 0:
                continue
            self._validate(found, at, objective, solution.place)
            if done:
                done(int(alive.sum()) * len(folds) * len(at))
            loss = self._pooled(found.validation_loss[:, :, at[0]])
            since_best = np.where(loss < best, 0, since_best + 1)
            best = np.fmin(best, loss)
            alive &= since_best < (np.inf if patience is None else patience)
            if not alive.any():
                break
        return found

    def refit(self, found: HeadPath, asked: str | Sequence[float]) -> Heads:
        """Heads on all folds, started from the middle of the folds' heads at the nearest l2."""
        if self.data.folds[0] < 0:
            raise HeadError("refit asks for folds; without them the heads are fitted on all.")
        n_weights, n_classes = len(self.class_weights), self.data.n_classes
        if isinstance(asked, str):
            pooled = [self._pooled(found.validation_loss[:, :, i]) for i in range(len(found.l2))]
            wanted = found.l2[np.nanargmin(np.stack(pooled), axis=0)][:, None]
        else:
            wanted = np.tile(checked_l2(asked), (n_weights, 1))
        objective, path = self._path(np.array([-1]))
        per_weight = len(objective.problems) // n_weights
        weight = np.empty((self.rows.n_features, *wanted.shape, n_classes), self.rows.dtype)
        bias = np.empty((*wanted.shape, n_classes), self.rows.dtype)
        for level in np.unique(wanted)[::-1]:
            start = np.stack([self._nearest(level, w) for w in range(n_weights)])
            alive = np.repeat((wanted == level).any(axis=1), per_weight)
            solution = path.advance(level, alive, start.reshape(len(alive), -1, start.shape[-1]))
            raw, raw_bias = objective.raw(solution.place.reshape(start.shape))
            for w, i in np.argwhere(wanted == level):
                weight[:, w, i], bias[w, i] = raw[w].T, raw_bias[w]
        facts = {
            "class_weight": np.repeat(found.class_weights, wanted.shape[1]),
            "fold": np.full(wanted.size, -1),
            "l2": wanted.ravel(),
        }
        return self._heads(weight, bias, facts)

    def _nearest(self, level: float, w: int) -> Array:
        """The folds' middle at the fitted l2 nearest to `level`: (n_classes, rank + 1)."""
        fitted = [one for one in self._middles if np.isfinite(one[1][w]).all()]
        return min(fitted, key=lambda one: abs(np.log((one[0] + 1e-12) / (level + 1e-12))))[1][w]

    def _heads(self, weight: Array, bias: Array, facts: Mapping[str, Array]) -> Heads:
        flat = weight.reshape(len(weight), -1, self.data.n_classes)
        return Heads(
            self.kind, flat, bias.reshape(flat.shape[1:]), facts, class_names=self.data.names
        )

    def _blank(self, l2: Array, *, mean_over_views: bool) -> HeadPath:
        """A result with nothing in it yet: NaN."""
        n_weights, folds, n_classes = len(self.class_weights), self.data.folds, self.data.n_classes
        grid, dtype = (n_weights, len(folds), len(l2)), self.rows.dtype
        names = tuple(called(one) for one in self.class_weights)
        which = np.meshgrid(names, folds, l2, indexing="ij")
        weight = np.full((self.rows.n_features, *grid, n_classes), np.nan, dtype)
        said = (len(self.data.labels), n_weights, len(l2), n_classes)
        return HeadPath(
            kind=self.kind,
            l2=l2,
            class_weights=names,
            folds=folds,
            heads=self._heads(
                weight,
                np.full((*grid, n_classes), np.nan, dtype),
                {n: v.ravel() for n, v in zip(("class_weight", "fold", "l2"), which, strict=True)},
            ),
            objective=np.full(grid, np.nan),
            validation_loss=np.full(grid, np.nan),
            iterations=np.zeros(grid, dtype=np.int64),
            converged=np.zeros(grid, dtype=bool),
            stopped_early=np.ones(grid, dtype=bool),
            out_of_fold=np.full(said, np.nan, np.float32),
            out_of_fold_mean=np.full(said, np.nan, np.float32) if mean_over_views else None,
            refitted=None,
        )

    def _keep(
        self, found: HeadPath, at: Array, solution: Solution, weight: Array, bias: Array
    ) -> None:
        """Writes one l2's solutions into the result at the indices `at` of its l2 axis."""
        grid = found.objective.shape
        heads = found.heads.weight.reshape(-1, *grid, self.data.n_classes)
        biases = found.heads.bias.reshape(*grid, self.data.n_classes)
        heads[:, :, :, at] = weight.transpose(3, 0, 1, 2)[:, :, :, None]
        biases[:, :, at] = bias[:, :, None]
        shape = (*grid[:2], 1, -1)
        found.objective[:, :, at] = solution.objective.reshape(shape).sum(axis=3)
        found.iterations[:, :, at] = solution.iterations.reshape(shape).max(axis=3)
        found.converged[:, :, at] = solution.converged.reshape(shape).all(axis=3)
        found.stopped_early[:, :, at] = found.iterations[:, :, at] == 0

    def _validate(self, found: HeadPath, at: Array, objective: Objective, place: Array) -> None:
        """One pass: what each head says of the images that it never saw, and its log loss."""
        data, folds = self.data, self.data.folds
        head_shape = (len(self.class_weights), len(folds), data.n_classes)
        said = np.zeros((len(data.labels), head_shape[0], data.n_classes), np.float32)
        mean = np.zeros_like(said)
        for rows, _, scores in objective.scores(place):
            scores = scores.reshape(*head_shape, -1)
            images, view_0 = self.rows.image[rows], self._is_view_0[rows]
            for f, fold in enumerate(folds):
                here = data.fold[images] == fold
                mine = scores[:, f, :, here & view_0].astype(np.float32)
                said[images[here & view_0]] = mine
                if found.out_of_fold_mean is not None:
                    share = scores[:, f, :, here] / self._n_views[images[here], None, None]
                    np.add.at(mean, images[here], share.astype(np.float32))
        part = np.isin(data.fold, folds)
        found.out_of_fold[np.ix_(part, np.arange(head_shape[0]), at)] = said[part][:, :, None]
        if found.out_of_fold_mean is not None:
            found.out_of_fold_mean[np.ix_(part, np.arange(head_shape[0]), at)] = mean[part][
                :, :, None
            ]
        for f, fold in enumerate(folds):
            images = np.flatnonzero(data.fold == fold)
            likely = probabilities(said[images].astype(np.float64), self.kind)
            own = likely[np.arange(len(images)), :, data.labels[images]]
            weight = data.weight[images] / data.weight[images].sum()
            found.validation_loss[:, f, at] = -(weight @ np.log(own))[:, None]

    def _pooled(self, loss: Array) -> Array:
        """Validation loss over all folds, from (n_class_weights, n_folds): (n_class_weights,)."""
        weight = [self.data.weight[self.data.fold == fold].sum() for fold in self.data.folds]
        return loss @ (np.array(weight) / np.sum(weight))
