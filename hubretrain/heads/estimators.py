"""scikit-learn estimators of one head: for pipelines, GridSearchCV, cross_val_predict.

They minimise what `LogisticRegression` (softmax) and `OneVsRestClassifier` of it (logistic)
do at the same C on the same features; they do not standardise, so put a `StandardScaler` in
front as usual. To fit many C and folds at once, `hubretrain.heads.path.fit_path` is faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from hubretrain.heads.heads import probabilities
from hubretrain.heads.losses import Kind
from hubretrain.heads.path import HeadPath, fit_path, l2_of

Array = npt.NDArray[Any]


class _Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What both estimators share."""

    _kind: Kind

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        tol: float = 1e-10,
        max_iter: int = 1000,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> _Head:
        """Fits the head.

        Args:
            X: float (n_images, n_features); float32 is computed with in float32.
            y: The class of each, (n_images,).
            sample_weight: float (n_images,), or None for 1.

        Raises:
            ValueError: What scikit-learn raises: NaN, shapes, one class only.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        if self.C <= 0:
            raise ValueError(f"C is {self.C}; expected a number above 0")
        weight = _check_sample_weight(sample_weight, X)
        if (weight < 0).any():
            raise ValueError("Negative values in sample_weight; expected at least 0")
        if not (weight > 0).all():  # no weight is the same as not being there
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        self.classes_, labels = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise ValueError(f"y holds {n_classes} class with any weight; expected 2 or more")
        path = fit_path(
            X,
            labels,
            kind=self._kind,
            n_classes=n_classes,
            l2=[l2_of(self._kind, self.C, n_classes)],
            sample_weight=weight,
            class_weights=[self._class_weight()],
            standardize=False,
            tol=self.tol,
            max_iter=self.max_iter,
            memory=X.nbytes,
        )
        if not path.converged.all():
            warnings.warn(
                f"not converged to tol={self.tol} after {path.iterations.max()} passes; "
                "raise max_iter or scale the features",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._keep(path)
        return self

    def _keep(self, path: HeadPath) -> None:
        coefficient, intercept = path.heads.weight[:, 0].T, path.heads.bias[0]
        if len(self.classes_) == 2:  # one column is enough: scikit-learn's way
            both = self._kind == "softmax"
            coefficient = coefficient[1:] - coefficient[:1] * both
            intercept = intercept[1:] - intercept[:1] * both
        self.coef_, self.intercept_ = np.ascontiguousarray(coefficient), intercept
        self.n_iter_ = path.iterations.ravel().astype(np.int32)

    def decision_function(self, X: Any) -> Array:
        """Scores: (n_images, n_classes); for two classes (n_images,), of the second."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:
        """The likeliest class of each image, (n_images,)."""
        scores = self.decision_function(X)
        best = scores.argmax(axis=1) if scores.ndim == 2 else (scores > 0).astype(int)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities, (n_images, n_classes); rows sum to 1."""
        scores = self.decision_function(X)
        if scores.ndim == 1:  # the first class of two has the opposite score
            return probabilities(np.stack([-scores, scores], axis=1), "logistic")
        return probabilities(scores, self._kind)

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba`."""
        return np.log(self.predict_proba(X))

    def _class_weight(self) -> str | dict[int, float] | None:
        """The class weights by number rather than by name."""
        if self.class_weight is None or isinstance(self.class_weight, str):
            return self.class_weight
        return {
            k: float(self.class_weight.get(name, 1))
            for k, name in enumerate(self.classes_.tolist())
        }


class SoftmaxHead(_Head):
    """Multinomial logistic regression: `LogisticRegression` by the solver of many heads.

    Args:
        C: Inverse strength of the l2 penalty, as scikit-learn has it; above 0.
        class_weight: None, `balanced`, or a weight for each class name.
        tol: Ends when the promised decrease is below this share of the objective; float32
            features end at 5e-7 at the latest.
        max_iter: Passes over the rows, at most.

    Attributes:
        classes_: The class names, (n_classes,).
        coef_: (n_classes, n_features); (1, n_features) for two classes.
        intercept_: (n_classes,); (1,) for two classes.
        n_iter_: Passes over the rows, (1,).
    """

    _kind: Kind = "softmax"


class LogisticHead(_Head):
    """One class against the rest: `OneVsRestClassifier(LogisticRegression())`.

    With `class_weight="balanced"` each class weighs as much as all others together; with
    weights by class name a row has its own class's weight in every one of the problems.

    Args:
        C: Inverse strength of the l2 penalty, as scikit-learn has it; above 0.
        class_weight: None, `balanced`, or a weight for each class name.
        tol: Ends when the promised decrease is below this share of the objective; float32
            features end at 5e-7 at the latest.
        max_iter: Passes over the rows, at most.

    Attributes:
        classes_: The class names, (n_classes,).
        coef_: (n_classes, n_features); (1, n_features) for two classes.
        intercept_: (n_classes,); (1,) for two classes.
        n_iter_: Passes over the rows, (1,).
    """

    _kind: Kind = "logistic"
