"""Heads of one kind for every fold x l2 x class weight, fitted together.

A head minimises equation (1) of `hubretrain.heads.solver`, which is scikit-learn's
`LogisticRegression` with `C = 1 / l2` on the same standardised features, apart from one case: for
two classes scikit-learn has one weight vector, the difference w of our two. By symmetry these are
w / 2 and -w / 2, whose penalty is l2 / 2 * ||w||^2 / 2, so softmax needs `l2 = 2 / C` there
(`l2_of`). The bias is not penalised.

The path starts at the largest l2, whose solution lies nearest to 0, and each solution starts the
next. It ends once the validation loss has passed its minimum: weaker penalties overfit more, and
they cost most of the time, for their problems are the worst conditioned. Another criterion may have
its minimum later: decisions may still improve where probabilities are too sure already. Where the
best is at an end of the path, the path goes on beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.errors import HeadError
from hubretrain.heads.features import Basis, FeatureBlocks
from hubretrain.heads.heads import Heads, probabilities
from hubretrain.heads.inputs import ClassWeight, FitInputs, checked_l2, class_weight_name
from hubretrain.heads.lbfgs import N_PAIRS
from hubretrain.heads.losses import HeadLosses, Kind
from hubretrain.heads.objective import Objective
from hubretrain.heads.result import HeadPath
from hubretrain.heads.solver import PathSolver, Solution, SolverOptions
from hubretrain.heads.validation import Validation

DEFAULT_MEMORY = 1 << 30  # bytes
MOST_OF_LABELS = 8 << 30  # bytes that the heads of several labels per image may take at once
Criterion = Callable[[AnyArray], float]
"""Function from probabilities (n_validated, n_classes) to a value, lower is better.

Its unit is the least gain that counts."""
NO_REACH = (np.inf, -np.inf)  # a range of l2 that holds none
ALL_IMAGES = -1  # the fold of heads that are fitted to all images
NO_FOLDS = "There are no folds to refit heads of; the heads are fitted to all images already."


def l2_of(kind: str, inverse_strength: float, n_classes: int) -> float:
    """Return the l2 of a head that minimises what scikit-learn's does at C = `inverse_strength`."""
    return (2 if kind == "softmax" and n_classes == 2 else 1) / inverse_strength


def fit_path(
    inputs: FitInputs,
    kind: Kind,
    l2: npt.ArrayLike,
    *,
    class_weights: Sequence[ClassWeight] = (None,),
    standardize: bool = True,
    memory: int = DEFAULT_MEMORY,
    patience: int | None = 1,
    mean_over_views: bool = False,
    options: SolverOptions | None = None,
) -> HeadPath:
    """Fit heads of one kind for every class weight, fold and l2.

    To fit several kinds to the same rows, or to refit heads, use `PathFitter`.

    Args:
        inputs: Result of `FitInputs.checked`.
        kind: `softmax`, or `logistic`: each class against the rest.
        l2: Penalties, one number or more, each at least 0; 1 / C of scikit-learn.
        class_weights: Class weights, each None, `balanced` or a weight per class; see
            `weights_by_class`.
        standardize: Whether to divide features by their standard deviation, so that the penalty
            treats them alike.
        memory: Bytes that a copy of the standardised rows may take; a larger one is not made, and
            the rows are read in blocks on every pass.
        patience: Number of l2 without a new minimum of the validation loss over all folds after
            which the path of a class weight ends; None: never.
        mean_over_views: Whether to average out-of-fold logits over the views of each image too.
        options: When the solver stops; None: the defaults.

    Raises:
        HeadError: The input cannot be fitted: NaN, an absent class, an unknown kind.
    """
    rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=standardize, memory=memory)
    fitter = PathFitter(inputs, rows, kind, class_weights, options or SolverOptions())
    return fitter.fit_folds(checked_l2(l2), patience, mean_over_views=mean_over_views)


class PathFitter:
    """Fits the heads of one kind: first along the path over the folds, then to all images.

    Args:
        inputs: Labels, folds and weights.
        rows: Standardised features; several fitters may share them.
        kind: `softmax` or `logistic`.
        class_weights: Class weights; see `weights_by_class`.
        options: When the solver stops.
        bases: Bases that the heads without each fold, and those of all images, are combinations
            of; None: of whole rows, in their eigenbasis.

    Raises:
        HeadError: There is no such kind.
    """

    def __init__(
        self,
        inputs: FitInputs,
        rows: FeatureBlocks,
        kind: Kind,
        class_weights: Sequence[ClassWeight],
        options: SolverOptions,
        bases: Mapping[int, Basis] | None = None,
    ) -> None:
        if kind not in ("softmax", "logistic"):
            raise HeadError(f"`kind` is {kind!r}; expected softmax or logistic.")
        if inputs.multi_label and kind != "logistic":
            raise HeadError(
                "`kind` is softmax, whose classes exclude one another; expected logistic, for "
                "images may have several labels."
            )
        self._inputs, self._rows, self._kind = inputs, rows, kind
        self._class_weights, self._options = tuple(class_weights), options
        self._bases = bases
        # The means over folds of the solutions at each l2, of shape (n_class_weights, n_classes,
        # n_features + 1): near the heads of all images, so these are started from them.
        self._fold_means: list[tuple[float, AnyArray]] = []

    def fit_folds(
        self,
        l2: FloatArray,
        patience: int | None,
        *,
        mean_over_views: bool = False,
        reach: npt.ArrayLike | None = None,
        advance: Callable[[int], None] | None = None,
        beyond: Sequence[float] = (),
        criterion: Criterion | None = None,
    ) -> HeadPath:
        """Fit the heads of all folds along the path, from the largest l2 to the smallest.

        Args:
            l2: Penalties, float64 array of shape (n_l2,) in any order.
            patience: See `fit_path`.
            mean_over_views: See `fit_path`.
            reach: Smallest and largest l2 that paths cover in any case, of shape (2,), or of
                (2, n_class_weights) for each its own; None: none.
            advance: Function that is called after each l2 with the number of heads fitted.
            beyond: Penalties outside of the range of `l2`, which the path goes on to where its end
                is not past the best; they stand after `l2` in the result.
            criterion: What else the path may not end before the best of.
        """
        inputs, n_weights, n_folds = self._inputs, len(self._class_weights), len(self._inputs.folds)
        if inputs.multi_label:
            self._check_memory(len(l2) + len(beyond))
        objective, solver = self._problems(inputs.folds, self._options)
        path = HeadPath.blank(
            inputs,
            self._rows,
            self._kind,
            self._class_weights,
            np.append(l2, beyond),
            mean_over_views=mean_over_views,
        )
        is_validated = inputs.folds[0] != ALL_IMAGES
        validation = Validation(inputs, self._rows, self._kind) if is_validated else None
        early_stop = _EarlyStop(n_weights, patience, reach)
        per_weight = len(objective.losses) // n_weights
        heads = n_weights, n_folds, inputs.n_classes
        start: AnyArray | None = None
        for level, is_above in _levels(l2, np.asarray(beyond), early_stop):
            active = np.repeat(early_stop.active, per_weight)
            solution = solver.advance(level, active, start if is_above else None)
            if start is None or is_above:
                # Above the range the first starts from the largest within it, each from the last.
                start = solution.unknowns
            self._fold_means.append(
                (level, _of_rows(objective, solution).reshape(*heads, -1).mean(1))
            )
            at = np.flatnonzero(path.l2 == level)
            raw, raw_bias = objective.raw_heads(solution.unknowns)
            path.fill(at, solution, raw.reshape(*heads, -1), raw_bias.reshape(heads))
            if validation is None:
                continue
            loss = validation.fill(path, at, objective, solution.unknowns)
            if advance:
                advance(int(early_stop.active.sum()) * n_folds * len(at))
            early_stop.update(level, loss, self._values(criterion, path, at[0], early_stop.active))
        return path

    def _check_memory(self, n_l2: int) -> None:
        """Check that thousands of labels can be fitted at once.

        Raises:
            HeadError: They would take more than `MOST_OF_LABELS`.
        """
        inputs, n_features = self._inputs, self._rows.n_features
        of_solver = (2 * N_PAIRS + 8) * (n_features + 1) * len(inputs.folds)
        of_result = n_l2 * (n_features * len(inputs.folds) + len(inputs.labels))
        n_labels, n_weights = inputs.n_classes, len(self._class_weights)
        needed = n_labels * n_weights * (of_solver + of_result) * self._rows.dtype.itemsize
        if needed > MOST_OF_LABELS:
            raise HeadError(
                f"Heads of {n_labels:,} labels take {needed / 1e9:,.0f} GB of memory; expected at "
                f"most {MOST_OF_LABELS / 1e9:.0f}: leave out rare labels, or compare fewer `l2` or "
                "`class_weights`."
            )

    def _values(
        self, criterion: Criterion | None, path: HeadPath, at: int, active: BoolArray
    ) -> FloatArray | None:
        """Return the criterion of each class weight at one l2, NaN for one that is not active."""
        if criterion is None:
            return None
        is_validated = np.isin(self._inputs.fold, self._inputs.folds)
        values = np.full(len(active), np.nan)
        for w in np.flatnonzero(active):
            logits = path.out_of_fold[is_validated, w, at]
            values[w] = criterion(probabilities(logits, self._kind, self._inputs.multi_label))
        return values

    def refit(self, l2: npt.ArrayLike) -> Heads:
        """Fit heads to the images of all folds; `fit_folds` comes first.

        Each head starts from the mean over folds of the solutions at the nearest l2.

        Args:
            l2: Penalties, one number or more.

        Returns:
            Heads of each class weight at each l2, in C order.

        Raises:
            HeadError: There were no folds, so the heads are fitted to all images already.
        """
        if self._inputs.folds[0] == ALL_IMAGES:
            raise HeadError(NO_FOLDS)
        levels = checked_l2(l2)
        n_weights, n_classes = len(self._class_weights), self._inputs.n_classes
        # Heads that are kept are exact, at whatever tolerance those of the folds were compared.
        exact = replace(self._options, tol=min(self._options.tol, SolverOptions().tol))
        objective, solver = self._problems(np.array([ALL_IMAGES]), exact)
        active = np.ones(len(objective.losses), dtype=bool)
        shape = (n_weights, len(levels), n_classes)
        weight = np.empty((self._rows.n_features, *shape), self._rows.dtype)
        bias = np.empty(shape, self._rows.dtype)
        for level in np.unique(levels)[::-1]:
            start = np.stack([self._nearest_fold_mean(level, w) for w in range(n_weights)])
            start = start.reshape(len(active), -1, start.shape[-1])
            weights = objective.into_bases(start[..., :-1], np.arange(len(active)))
            solution = solver.advance(level, active, np.append(weights, start[..., -1:], axis=2))
            raw, raw_bias = objective.raw_heads(solution.unknowns)
            at = levels == level
            weight[:, :, at] = raw.reshape(n_weights, n_classes, -1).transpose(2, 0, 1)[:, :, None]
            bias[:, at] = raw_bias.reshape(n_weights, n_classes)[:, None]
        settings = {
            "class_weight": np.repeat(
                [class_weight_name(weight) for weight in self._class_weights], len(levels)
            ),
            "fold": np.full(n_weights * len(levels), ALL_IMAGES),
            "l2": np.tile(levels, n_weights),
        }
        flat = weight.reshape(len(weight), -1, n_classes)
        return Heads(
            self._kind,
            flat,
            bias.reshape(flat.shape[1:]),
            settings,
            class_names=self._inputs.class_names,
            multi_label=self._inputs.multi_label,
        )

    def _problems(self, folds: IntArray, options: SolverOptions) -> tuple[Objective, PathSolver]:
        """Return problems for class weights x folds (x classes, for logistic heads), in C order."""
        inputs, image, dtype = self._inputs, self._rows.row_image, self._rows.dtype
        class_weight = inputs.problem_weights(self._class_weights, folds, self._kind)
        n_weights, n_folds, per_head, n_classes = class_weight.shape
        n_rows = np.maximum(np.bincount(image, minlength=len(inputs.labels)), 1)
        losses = HeadLosses(
            self._kind,
            inputs.labels[image],
            (inputs.weight / n_rows)[image].astype(dtype),
            inputs.fold[image],
            class_weight.reshape(-1, n_classes).astype(dtype),
            np.tile(np.repeat(folds, per_head), n_weights),
            np.tile(np.arange(per_head), n_weights * n_folds),
        )
        if self._bases is None:
            objective = Objective(self._rows, losses)
        else:
            basis_of = np.tile(np.repeat(np.arange(n_folds), per_head), n_weights)
            bases = [self._bases[fold] for fold in folds.tolist()]
            objective = Objective(self._rows, losses, bases, basis_of)
        return objective, PathSolver(objective, options)

    def _nearest_fold_mean(self, level: float, w: int) -> AnyArray:
        """Return the mean over folds at the fitted l2 nearest to `level`."""
        # Distances are of log l2, whose smallest may be 0.
        fitted = [(l2, mean[w]) for l2, mean in self._fold_means if np.isfinite(mean[w]).all()]
        return min(fitted, key=lambda pair: abs(np.log((pair[0] + 1e-12) / (level + 1e-12))))[1]


def _of_rows(objective: Objective, solution: Solution) -> AnyArray:
    """Return weights for standardised rows, and biases, (n_problems, n_outputs, n_features + 1)."""
    weights, bias = solution.unknowns[..., :-1], solution.unknowns[..., -1:]
    every = np.arange(len(weights))
    return np.append(objective.out_of_bases(weights, every), bias, axis=2)


class _EarlyStop:
    """The class weights whose path goes on.

    Args:
        n_weights: Number of class weights.
        patience: Number of l2 without a new minimum after which a path ends; None: never.
        reach: See `PathFitter.fit_folds`.

    Attributes:
        active: bool array of shape (n_class_weights,).
    """

    def __init__(self, n_weights: int, patience: int | None, reach: npt.ArrayLike | None) -> None:
        self._patience = np.inf if patience is None else patience
        self._loss, self._value = (np.full(n_weights, np.inf) for _ in range(2))
        self._first: FloatArray | None = None
        self._since_best, self._n_levels = np.zeros(n_weights, np.int64), 0
        self._best_at = np.zeros(n_weights, np.int64)
        self._waits, self._may_wait = np.zeros(n_weights, bool), True
        self._smallest, self._largest = np.asarray(NO_REACH if reach is None else reach)
        self._goes_up, self._is_due = False, np.zeros(n_weights, bool)
        self.active: BoolArray = np.ones(n_weights, dtype=bool)

    def update(self, level: float, loss: FloatArray, value: FloatArray | None = None) -> None:
        """Take what is validated of each class weight at the next l2; NaN for one not active.

        Args:
            level: The l2.
            loss: Log loss.
            value: Criterion; it has its minimum where no later value is lower by 1. While none is
                lower than the first by that much, nothing has been learned that could be lost, and
                the path goes on to the end of its range.
        """
        is_better = loss < self._loss
        self._loss = np.fmin(self._loss, loss)
        if value is not None:
            self._first = value if self._first is None else self._first
            gains = (value <= self._value - 1) | (self._n_levels == 0)
            self._value = np.where(gains, value, self._value)
            is_better |= gains
            self._waits = (self._value > self._first - 1) & self._may_wait
        self._best_at = np.where(is_better, self._n_levels, self._best_at)
        self._since_best = np.where(is_better | self._waits, 0, self._since_best + 1)
        self._n_levels += 1
        self._is_due = level < self._largest if self._goes_up else level > self._smallest
        self.active = self.active & ((self._since_best < self._patience) | self._is_due)

    def leave_range(self) -> None:
        """Continue, now to weaker penalties than requested, with those that have learned."""
        self.active = self.active & (~self._waits | self._is_due)
        self._may_wait = False

    def turn(self, first: float) -> None:
        """Continue, now to stronger penalties than the first, with those whose best it was."""
        self._goes_up = True
        self.active = (self._best_at == 0) | (first < self._largest)
        self._since_best[:] = 0


def _levels(
    l2: FloatArray, beyond: FloatArray, early_stop: _EarlyStop
) -> Iterator[tuple[float, bool]]:
    """Yield the l2 to fit, and whether it lies above the range, until all paths have ended."""
    below, above = np.unique(beyond[beyond < l2.min()])[::-1], np.unique(beyond[beyond > l2.max()])
    phases: tuple[tuple[FloatArray, Callable[[], None] | None], ...] = (
        (np.unique(l2)[::-1], None),
        (below, early_stop.leave_range),
        (above, lambda: early_stop.turn(l2.max())),
    )
    for levels, begin in phases:
        if begin is not None:
            begin()
        for level in levels:
            if not early_stop.active.any():
                break
            yield level, levels is above
