"""Linear heads on bottlenecks: fit, predict, save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain.errors import HeadError
from hubretrain.files import whole_file

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeadSettings:
    """How one head is fitted.

    Attributes:
        kind: ``softmax`` (multinomial) or ``logistic`` (one class against the rest).
        C: Inverse strength of the l2 penalty, as scikit-learn has it.
        class_weight: ``none``, or ``balanced``: each class counts the same.
    """

    kind: str
    C: float
    class_weight: str = "none"

    @classmethod
    def grid(cls, *, unbalanced: bool) -> list[HeadSettings]:
        """The heads that are tried; with balanced class weights too where classes are not."""
        return [
            cls(kind, float(c), weight)
            for kind in ("softmax", "logistic")
            for weight in (("none", "balanced") if unbalanced else ("none",))
            for c in np.logspace(-4, -1, 4)
        ]

    def as_row(self) -> dict[str, Any]:
        """The settings as columns of a table."""
        return {"head": self.kind, "C": self.C, "class_weight": self.class_weight}


@dataclass(frozen=True)
class Heads:
    """Fitted heads of one kind on one module.

    Attributes:
        kind: ``softmax`` or ``logistic``.
        weight: float32 (n_features, n_heads, n_classes).
        bias: float32 (n_heads, n_classes).
        names: What each head was fitted on.
        settings: How.
    """

    kind: str
    weight: Features
    bias: Features
    names: tuple[str, ...]
    settings: HeadSettings

    def logits(self, features: Features) -> Features:
        """Scores: float32 (n_images, n_heads, n_classes)."""
        scores = np.tensordot(features, self.weight, axes=1) + self.bias
        return np.asarray(scores, dtype=np.float32)

    def probabilities(self, features: Features) -> Features:
        """Class probabilities: float32 (n_images, n_heads, n_classes); they sum to 1."""
        logits = self.logits(features).astype(np.float64)
        if self.kind == "softmax":
            scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
        else:
            scores = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
        return np.asarray(scores / scores.sum(axis=-1, keepdims=True), dtype=np.float32)

    @classmethod
    def stacked(cls, heads: Sequence[Heads], names: Sequence[str]) -> Heads:
        """Several heads with the same settings as one."""
        return cls(
            heads[0].kind,
            np.concatenate([one.weight for one in heads], axis=1),
            np.concatenate([one.bias for one in heads], axis=0),
            tuple(names),
            heads[0].settings,
        )

    def save(self, path: Path, class_names: Sequence[str], facts: dict[str, Any]) -> None:
        """Writes ``heads/<module>.h5``.

        Raises:
            RunError: The folder cannot be written.
        """
        with whole_file(path) as aside, h5py.File(aside, "w") as file:
            file["weight"], file["bias"] = self.weight, self.bias
            file["names"] = np.array(self.names, dtype=h5py.string_dtype())
            file["class_names"] = np.array(list(class_names), dtype=h5py.string_dtype())
            for name, value in {"format": "hubretrain heads", **asdict(self.settings)}.items():
                file.attrs[name] = value
            for name in ("module", "handle", "module_sha256", "image_size"):
                file.attrs[name] = facts[name]

    @classmethod
    def load(cls, path: Path) -> Heads:
        """Reads ``heads/<module>.h5``.

        Raises:
            HeadError: It is missing or no head file.
        """
        try:
            with h5py.File(path, "r") as file:
                settings = HeadSettings(
                    str(file.attrs["kind"]),
                    float(file.attrs["C"]),
                    str(file.attrs["class_weight"]),
                )
                names = tuple(file["names"].asstr()[:])
                return cls(settings.kind, file["weight"][:], file["bias"][:], names, settings)
        except (OSError, KeyError) as error:
            raise HeadError(
                f"{path} holds no heads ({error}); fit again with: hubretrain fit"
            ) from error


def fit_heads(
    views: Features, labels: npt.NDArray[np.int64], n_classes: int, settings: HeadSettings
) -> Heads:
    """Fits one head on all views of some images.

    Args:
        views: float32 (n_views, n_images, n_features).
        labels: int64 (n_images,).
        n_classes: How many classes there are; each must be present.
        settings: How.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    n_views, n_images, n_features = views.shape
    missing = sorted(set(range(n_classes)) - set(labels.tolist()))
    if missing:
        raise HeadError(f"class number {missing[0]} has no training image in some fold.")
    rows = views.reshape(n_views * n_images, n_features)
    mean, scale = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6] = 1
    weight = None if settings.class_weight == "none" else "balanced"
    estimator: Any = LogisticRegression(
        C=settings.C / n_views, class_weight=weight, max_iter=200, tol=1e-3
    )
    if settings.kind == "logistic" and n_classes > 2:
        estimator = OneVsRestClassifier(estimator)
    estimator.fit(((rows - mean) / scale).astype(np.float32), np.tile(labels, n_views))
    if isinstance(estimator, OneVsRestClassifier):
        coefficient = np.concatenate([e.coef_ for e in estimator.estimators_])
        intercept = np.concatenate([e.intercept_ for e in estimator.estimators_])
    elif n_classes == 2:
        half = 2 if settings.kind == "softmax" else 1
        coefficient = np.concatenate([-estimator.coef_, estimator.coef_]) / half
        intercept = np.concatenate([-estimator.intercept_, estimator.intercept_]) / half
    else:
        coefficient, intercept = estimator.coef_, estimator.intercept_
    scaled = coefficient / scale
    return Heads(
        settings.kind,
        scaled.T[:, None].astype(np.float32),
        (intercept - scaled @ mean)[None].astype(np.float32),
        ("all",),
        settings,
    )


def out_of_fold(
    views: Features,
    labels: npt.NDArray[np.int64],
    folds: npt.NDArray[np.int8],
    n_classes: int,
    settings: Sequence[HeadSettings],
    progress: Callable[[int], None],
) -> list[Features]:
    """Probabilities of each image as it is (view 0) from heads that never saw it.

    Args:
        views: float32 (n_views, n_images, n_features).
        labels: int64 (n_images,).
        folds: int8 (n_images,); below 0 is never validated.
        n_classes: How many classes there are.
        settings: The heads.
        progress: Called with the number of heads just fitted.

    Returns:
        For each of the settings float32 (n_images, n_classes).
    """
    found = []
    for one in settings:
        probabilities = np.full((len(labels), n_classes), np.nan, dtype=np.float32)
        for fold in sorted({int(f) for f in folds if f >= 0}):
            out = folds == fold
            heads = fit_heads(views[:, ~out], labels[~out], n_classes, one)
            probabilities[out] = heads.probabilities(views[0, out])[:, 0]
            progress(1)
        found.append(probabilities)
    return found
