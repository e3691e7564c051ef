"""What heads are fitted to, checked: rows, labels, folds, sample and class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.errors import HeadError
from hubretrain.heads.losses import Kind

Array = npt.NDArray[Any]
ClassWeight = str | Mapping[int, float] | Sequence[float] | None

TRAIN_ONLY = 1 << 40  # the fold of an image that every fold trains on and none validates


@dataclass(frozen=True)
class FitInputs:
    """Checked input of a fit.

    Attributes:
        parts: Features, arrays (n_i, n_features) that can be sliced.
        row_image: int64, the image of each row; below 0: not used.
        labels: int64 (n_images,).
        fold: int64 (n_images,); below 0: the image takes no part.
        folds: int64 (n_folds,), ascending; [-1] where none were given.
        weight: float64 (n_images,).
        names: Of the classes, for error texts.
        n_classes: How many.
    """

    parts: tuple[Any, ...]
    row_image: Array
    labels: Array
    fold: Array
    folds: Array
    weight: Array
    names: tuple[str, ...]
    n_classes: int

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
        """Takes what `hubretrain.heads.path.fit_path` takes.

        Raises:
            HeadError: Labels out of range, shapes that do not agree, images without a row.
        """
        label = np.asarray(labels, dtype=np.int64)
        n_images = len(label)
        parts = tuple(features) if getattr(features, "ndim", 3) != 2 else (features,)
        fold = np.zeros(n_images) if folds is None else np.asarray(folds)
        weight = np.ones(n_images) if sample_weight is None else np.asarray(sample_weight)
        for name, values in ("folds", fold), ("sample_weight", weight):
            if values.shape != (n_images,):
                raise HeadError(f"{name} is of shape {values.shape}; expected ({n_images},).")
        if rows is None:
            row_image = np.tile(np.arange(n_images), len(parts))
        else:
            row_image = np.array(rows, dtype=np.int64)
        n_rows = sum(len(part) for part in parts)
        if len(row_image) != n_rows or row_image.max(initial=-1) >= n_images:
            raise HeadError(
                f"there are {n_rows:,} feature rows for {len(row_image):,} expected ones of "
                f"{n_images:,} images; say which image each row is of with rows."
            )
        row_image[fold[row_image] < 0] = -1
        takes_part = fold >= 0
        without = takes_part & (np.bincount(row_image[row_image >= 0], minlength=n_images) == 0)
        if without.any():
            raise HeadError(
                f"{int(without.sum()):,} of {n_images:,} images have no feature row; finish the "
                "cache with: hubretrain cache"
            )
        used = label[takes_part]
        if not len(used):
            raise HeadError("there is no image to fit on; expected folds of 0 and above.")
        if n_classes < 2 or used.min() < 0 or used.max() >= n_classes:
            raise HeadError(
                f"labels go from {used.min()} to {used.max()}; expected 0 to {n_classes - 1}, "
                "and at least 2 classes."
            )
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise HeadError("sample_weight holds values below 0 or NaN; expected at least 0.")
        names = tuple(class_names) or tuple(f"number {k}" for k in range(n_classes))
        fold = fold.astype(np.int64)
        present = np.unique(fold[takes_part & (fold != TRAIN_ONLY)])
        present = present if folds is not None else np.array([-1])
        if not len(present):
            raise HeadError("no image is validated by any fold; expected a fold of 0 and above.")
        return cls(parts, row_image, label, fold, present, weight, names, n_classes)

    def class_mass(self, folds: Array) -> Array:
        """Weight of each class in each fold's training images: float64 (n_folds, n_classes).

        Raises:
            HeadError: A class is absent.
        """
        mass = np.zeros((len(folds), self.n_classes))
        for f, fold in enumerate(folds):
            training = (self.fold >= 0) & (self.fold != fold)
            mass[f] = np.bincount(
                self.labels[training], self.weight[training], minlength=self.n_classes
            )
            if (mass[f] <= 0).any():
                name = self.names[int(np.argmin(mass[f] > 0))]
                where = f"when fold {fold} is left out" if fold >= 0 else "at all"
                raise HeadError(
                    f"class {name} has no training image {where}; "
                    "use fewer folds, or merge or drop the class."
                )
        return mass


def checked_l2(l2: Sequence[float]) -> Array:
    """The penalties as float64 (n_l2,).

    Raises:
        HeadError: None, or one below 0 or not finite.
    """
    levels = np.atleast_1d(np.asarray(l2, dtype=np.float64))
    if not len(levels) or not (np.isfinite(levels).all() and (levels >= 0).all()):
        raise HeadError(f"l2 is {list(l2)}; expected one number or more, each at least 0.")
    return levels


def weights_by_class(asked: ClassWeight, mass: Array, kind: Kind) -> Array:
    """The weight of a row by its class.

    Args:
        asked: As `fit_path` takes it.
        mass: float64 (n_folds, n_classes), the weight of each class's training images.
        kind: Of head.

    Returns:
        float64 (n_folds, n_problems, n_classes); n_problems is 1, or n_classes for logistic.
    """
    n_folds, n_classes = mass.shape
    total = mass.sum(axis=1, keepdims=True)
    n_problems = n_classes if kind == "logistic" else 1
    if asked is None or (isinstance(asked, str) and asked == "none"):
        return np.ones((n_folds, n_problems, n_classes))
    if isinstance(asked, str) and asked == "balanced":
        if kind == "softmax":
            return (total / (n_classes * mass))[:, None]
        rest = np.repeat((total / (2 * (total - mass)))[:, :, None], n_classes, axis=2)
        diagonal = np.arange(n_classes)
        rest[:, diagonal, diagonal] = total / (2 * mass)
        return rest
    if isinstance(asked, Mapping):
        asked = [asked.get(k, 1.0) for k in range(n_classes)]
    weight = np.zeros(0) if isinstance(asked, str) else np.asarray(asked, dtype=np.float64)
    if weight.shape != (n_classes,) or not (weight > 0).all():
        raise HeadError(
            f"class weight is {asked!r}; expected none, balanced, or {n_classes} numbers above 0."
        )
    return np.broadcast_to(weight, (n_folds, n_problems, n_classes))


def called(asked: ClassWeight) -> str:
    """What a class weight is called: `none`, `balanced`, or its numbers."""
    if asked is None or isinstance(asked, str):
        return asked or "none"
    items = asked.items() if isinstance(asked, Mapping) else enumerate(asked)
    return ", ".join(f"{k}: {float(weight):g}" for k, weight in items)
