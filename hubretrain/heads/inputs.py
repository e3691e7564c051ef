"""Validated inputs of a fit: rows, labels, folds, sample weights and class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hubretrain.errors import HeadError
from hubretrain.heads.losses import Kind

ClassWeight = str | Mapping[int, float] | Sequence[float] | None

TRAIN_ONLY = 1 << 40  # the fold of an image that every fold trains on and none validates


@dataclass(frozen=True)
class FitInputs:
    """Validated inputs of a fit; `checked` makes them.

    Attributes:
        parts: Feature arrays of shape (n_i, n_features) that can be sliced.
        row_image: Image of each row, int64 array of shape (sum of n_i,); negative: not used.
        labels: int64 array of shape (n_images,); or, where an image may have several labels, bool
            (n_images, n_classes).
        fold: Fold that validates each image, int64 array of shape (n_images,); negative: the image
            takes no part.
        folds: Folds in ascending order, int64 array of shape (n_folds,); [-1] where none were
            given.
        weight: Sample weights, float64 array of shape (n_images,).
        class_names: Names of the classes, for errors and for the heads.
        n_classes: Number of classes.
    """

    parts: tuple[Any, ...]
    row_image: IntArray
    labels: AnyArray
    fold: IntArray
    folds: IntArray
    weight: FloatArray
    class_names: tuple[str, ...]
    n_classes: int

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    @classmethod
    def checked(
        cls,
        features: Any,
        labels: npt.ArrayLike,
        n_classes: int,
        folds: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        rows: npt.ArrayLike | None = None,
        class_names: Sequence[str] = (),
    ) -> FitInputs:
        """Check the inputs of a fit.

        Args:
            features: Floating array of shape (n_rows, n_features), or a sequence of such arrays,
                one per view. Anything that can be sliced will do: numpy, memmap, HDF5. Features
                are converted to float32 unless all of them are float64.
            labels: Integer array of shape (n_images,) in [0, n_classes); or, where an image may
                have several labels, bool (n_images, n_classes), True for each that it has.
            n_classes: Number of classes; each must be present in each fold's training images,
                unless an image may have several: a label that all have or none gets a constant.
            folds: Fold that validates each image, integer array of shape (n_images,). Negative:
                the image takes no part at all, not even in the standardisation. `TRAIN_ONLY`:
                every fold trains on it and none validates it. None: heads are fitted to all images.
            sample_weight: Array of shape (n_images,), at least 0; None weighs each image 1. An
                image weighs the same however many views it has: each of its rows has the weight
                1 / (number of its rows).
            rows: Image of each row, integers, views one after the other; negative: the row is not
                used. An image's first row is its view 0. None: row i is of image i, in every view.
            class_names: Names of the classes, for errors and for the heads.

        Raises:
            HeadError: Labels are out of range, shapes do not agree, or an image has no row.
        """
        label = np.asarray(labels)
        label = label if label.dtype == bool else label.astype(np.int64)
        n_images = len(label)
        parts = tuple(features) if getattr(features, "ndim", 3) != 2 else (features,)
        fold: AnyArray = np.zeros(n_images) if folds is None else np.asarray(folds)
        weight = _checked_weight(sample_weight, n_images)
        if fold.shape != (n_images,):
            raise HeadError(f"`folds` has shape {fold.shape}; expected ({n_images},).")
        row_image = _checked_rows(rows, parts, n_images)
        row_image[fold[row_image] < 0] = -1
        takes_part = fold >= 0
        has_row = np.bincount(row_image[row_image >= 0], minlength=n_images) > 0
        if (takes_part & ~has_row).any():
            raise HeadError(
                f"{int((takes_part & ~has_row).sum()):,} of {n_images:,} images have no feature "
                "row; finish the cache with `hubretrain cache`."
            )
        _check_labels(label[takes_part], n_classes)
        names = tuple(class_names) or tuple(f"number {k}" for k in range(n_classes))
        fold = fold.astype(np.int64)
        validating = np.unique(fold[takes_part & (fold != TRAIN_ONLY)])
        validating = validating if folds is not None else np.array([-1])
        if not len(validating):
            raise HeadError("`folds` lets no image be validated; expected a fold of at least 0.")
        return cls(parts, row_image, label, fold, validating, weight, names, n_classes)

    def problem_weights(
        self, class_weights: Sequence[ClassWeight], folds: IntArray, kind: Kind
    ) -> FloatArray:
        """Return the weight of a row in each problem, by its class, for each class weight and fold.

        Returns:
            float64 array of shape (n_class_weights, n_folds, n_problems, n_classes), see
            `weights_by_class`; or, where an image may have several labels, (n_class_weights,
            n_folds, n_labels, 2), see `weights_by_label`.

        Raises:
            HeadError: A class is absent, or a class weight is none.
        """
        if self.multi_label:
            mass = self.label_mass(folds)
            return np.stack([weights_by_label(weight, mass) for weight in class_weights])
        mass = self.class_mass(folds)
        return np.stack([weights_by_class(weight, mass, kind) for weight in class_weights])

    def label_mass(self, folds: IntArray) -> FloatArray:
        """Return the weight of each fold's training images without and with each label.

        Returns:
            float64 array of shape (n_folds, n_labels, 2).
        """
        weight = np.stack([self.weight * self._trains(fold) for fold in folds.tolist()])
        return np.stack([weight @ ~self.labels, weight @ self.labels], axis=2)

    def _trains(self, fold: int) -> BoolArray:
        """Return which images are trained on where a fold is left out."""
        return np.asarray((self.fold >= 0) & (self.fold != fold))

    def class_mass(self, folds: IntArray) -> FloatArray:
        """Return the total weight of each class in each fold's training images.

        Returns:
            float64 array of shape (n_folds, n_classes).

        Raises:
            HeadError: A class is absent.
        """
        mass = np.zeros((len(folds), self.n_classes))
        for f, fold in enumerate(folds):
            is_training = self._trains(int(fold))
            mass[f] = np.bincount(
                self.labels[is_training], self.weight[is_training], minlength=self.n_classes
            )
            if (mass[f] <= 0).any():
                name = self.class_names[int(np.argmin(mass[f] > 0))]
                where = f"when fold {fold} is left out" if fold >= 0 else "at all"
                raise HeadError(
                    f"Class {name} has no training image {where}; "
                    "use fewer folds, or merge or drop the class."
                )
        return mass


def _checked_weight(sample_weight: npt.ArrayLike | None, n_images: int) -> FloatArray:
    weight = np.ones(n_images) if sample_weight is None else np.asarray(sample_weight)
    if weight.shape != (n_images,):
        raise HeadError(f"`sample_weight` has shape {weight.shape}; expected ({n_images},).")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise HeadError("`sample_weight` holds negative values or NaN; expected at least 0.")
    return weight


def _checked_rows(rows: npt.ArrayLike | None, parts: Sequence[Any], n_images: int) -> IntArray:
    if rows is None:
        row_image = np.tile(np.arange(n_images), len(parts))
    else:
        row_image = np.array(rows, dtype=np.int64)
    n_rows = sum(len(part) for part in parts)
    if len(row_image) != n_rows or row_image.max(initial=-1) >= n_images:
        raise HeadError(
            f"`features` has {n_rows:,} rows and `rows` names the images of {len(row_image):,}; "
            f"expected one of {n_images:,} images per row."
        )
    return row_image


def _check_labels(labels: AnyArray, n_classes: int) -> None:
    if not len(labels):
        raise HeadError("`folds` excludes every image; expected a fold of at least 0.")
    if labels.dtype == bool:
        if labels.ndim != 2 or labels.shape[1] != n_classes or not n_classes:
            raise HeadError(
                f"`labels` has shape {labels.shape}; expected (n_images, {n_classes}), an "
                "indicator of each label."
            )
        return
    if n_classes < 2 or labels.min() < 0 or labels.max() >= n_classes:
        raise HeadError(
            f"`labels` run from {labels.min()} to {labels.max()}; expected 0 to {n_classes - 1}, "
            "and at least 2 classes."
        )


def checked_l2(l2: npt.ArrayLike) -> FloatArray:
    """Return the penalties as a float64 array of shape (n_l2,).

    Raises:
        HeadError: There is no penalty, or one is negative or not finite.
    """
    levels = np.atleast_1d(np.asarray(l2, dtype=np.float64))
    if not len(levels) or not (np.isfinite(levels).all() and (levels >= 0).all()):
        raise HeadError(f"`l2` is {levels.tolist()}; expected one number or more, at least 0.")
    return levels


def weights_by_class(class_weight: ClassWeight, mass: FloatArray, kind: Kind) -> FloatArray:
    """Return the weight of a row by its class.

    With `balanced`, n_classes times the mass of a class times its weight is the total mass, so
    every class counts the same, as in scikit-learn. For one class against the rest, the class and
    the rest count the same.

    Args:
        class_weight: None or `none` weighs all classes 1; `balanced`; or a weight above 0 for each
            class, by number (1 where a mapping lacks one).
        mass: Weight of each class's training images, float64 array of shape (n_folds, n_classes).
        kind: Kind of the heads.

    Returns:
        float64 array of shape (n_folds, n_problems, n_classes); n_problems is 1, or n_classes for
        logistic heads.

    Raises:
        HeadError: The class weight is none of these.
    """
    n_folds, n_classes = mass.shape
    total = mass.sum(axis=1, keepdims=True)
    n_problems = n_classes if kind == "logistic" else 1
    if class_weight is None or (isinstance(class_weight, str) and class_weight == "none"):
        return np.ones((n_folds, n_problems, n_classes))
    if isinstance(class_weight, str) and class_weight == "balanced":
        if kind == "softmax":
            return (total / (n_classes * mass))[:, None]
        weights = np.repeat((total / (2 * (total - mass)))[:, :, None], n_classes, axis=2)
        diagonal = np.arange(n_classes)
        weights[:, diagonal, diagonal] = total / (2 * mass)
        return weights
    if isinstance(class_weight, Mapping):
        class_weight = [class_weight.get(k, 1.0) for k in range(n_classes)]
    numbers = [] if isinstance(class_weight, str) else class_weight
    weight = np.asarray(numbers, dtype=np.float64)
    if weight.shape != (n_classes,) or not (weight > 0).all():
        raise HeadError(
            f"`class_weight` is {class_weight!r}; expected none, balanced, or {n_classes} numbers "
            "above 0."
        )
    return np.broadcast_to(weight, (n_folds, n_problems, n_classes))


def weights_by_label(class_weight: ClassWeight, mass: FloatArray) -> FloatArray:
    """Return the weight of a row without and with each label, where an image may have several.

    With `balanced`, the rows with a label count as much as those without it. A label that all
    training images have, or none, cannot be learned: its weights are 0.

    Args:
        class_weight: As `weights_by_class` takes it; numbers weigh the rows that have the label.
        mass: Result of `FitInputs.label_mass`.

    Returns:
        float64 array of shape (n_folds, n_labels, 2).

    Raises:
        HeadError: The class weight is none.
    """
    if class_weight == "balanced":
        weights = mass.sum(axis=2, keepdims=True) / (2 * np.maximum(mass, 1e-300))
    else:
        positive = weights_by_class(class_weight, mass[:, :, 1], "softmax")[:, 0]
        weights = np.stack([np.ones_like(positive), positive], axis=2)
    return np.where((mass > 0).all(axis=2, keepdims=True), weights, 0.0)


def class_weight_name(class_weight: ClassWeight) -> str:
    """Return the name of a class weight: `none`, `balanced`, or its numbers."""
    if class_weight is None or isinstance(class_weight, str):
        return class_weight or "none"
    if not isinstance(class_weight, Mapping):
        class_weight = dict(enumerate(class_weight))
    items = class_weight.items()
    return ", ".join(f"{k}: {float(weight):g}" for k, weight in items)
