"""scikit-learn estimators of one head: for pipelines, GridSearchCV, cross_val_predict.

The linear ones minimise what `LogisticRegression` (softmax) and `OneVsRestClassifier` of it
(logistic) do at the same C on the same features. None standardises, so put a `StandardScaler` in
front as usual. To fit many C and folds at once, `hubretrain.heads.path.fit_path` is faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from hubretrain.arrays import AnyArray, FloatArray
from hubretrain.errors import HeadError
from hubretrain.heads.features import FeatureBlocks
from hubretrain.heads.heads import probabilities
from hubretrain.heads.inputs import FitInputs
from hubretrain.heads.losses import Kind
from hubretrain.heads.mlp import DECAYS, MLPFitter, MLPOptions
from hubretrain.heads.path import fit_path, l2_of
from hubretrain.heads.result import HeadPath
from hubretrain.heads.solver import SolverOptions

DTYPES = [np.float64, np.float32]


class _Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What all estimators share."""

    _takes_several_labels = True

    def __sklearn_tags__(self) -> Tags:
        """Return what scikit-learn may expect of the estimator."""
        tags: Tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self._takes_several_labels
        return tags

    def predict_log_proba(self, X: Any) -> AnyArray:
        """Return the natural logarithms of `predict_proba`."""
        return np.log(self.predict_proba(X))


class _Head(_Classifier):
    """What both linear estimators share; `SoftmaxHead` documents arguments and attributes."""

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
        """Fit the head.

        Args:
            X: Features, array of shape (n_images, n_features); float32 features are computed
                with in float32, all others in float64.
            y: Class of each image, array of shape (n_images,); or indicators of several labels.
            sample_weight: Weight of each image, array of shape (n_images,), or one number for all;
                None weighs each 1.

        Raises:
            ValueError: X or y holds NaN, shapes do not agree, there is one class only, or a
                parameter is out of range.
        """
        X, y = validate_data(self, X, y, dtype=DTYPES, multi_output=self._takes_several_labels)
        if self.C <= 0:
            raise ValueError(f"C is {self.C}; expected a number above 0")
        weight = _checked_weight(sample_weight, len(X))
        if not (weight > 0).all():  # an image of weight 0 must not count, as if it were absent
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        self.classes_, labels = _classes(y)
        n_classes = len(self.classes_)
        self.multilabel_ = labels.ndim == 2
        path = fit_path(
            FitInputs.checked(X, labels, n_classes, sample_weight=weight),
            self._kind,
            l2_of(self._kind, self.C, n_classes),
            class_weights=[_by_number(self.class_weight, self.classes_)],
            standardize=False,
            memory=X.nbytes,
            options=SolverOptions(self.tol, self.max_iter),
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
        """Keep the weights in the shapes of scikit-learn."""
        coefficient, intercept = path.heads.weight[:, 0].T, path.heads.bias[0]
        if len(self.classes_) == 2 and not self.multilabel_:
            # scikit-learn keeps one row for two classes, the score of the second: the difference
            # of both softmax scores, or the logistic score itself.
            is_softmax = self._kind == "softmax"
            coefficient = coefficient[1:] - coefficient[:1] * is_softmax
            intercept = intercept[1:] - intercept[:1] * is_softmax
        self.coef_, self.intercept_ = np.ascontiguousarray(coefficient), intercept
        self.n_iter_ = path.iterations.ravel().astype(np.int32)

    def decision_function(self, X: Any) -> AnyArray:
        """Return scores (n_images, n_classes); of two classes the second's alone, (n_images,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=DTYPES, reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.coef_) == 1 and not self.multilabel_ else scores

    def predict(self, X: Any) -> AnyArray:
        """Return the top-1 class of each image, array of shape (n_images,), or indicators."""
        scores = self.decision_function(X)
        if self.multilabel_:
            return (scores > 0).astype(np.int64)
        best = scores.argmax(axis=1) if scores.ndim == 2 else (scores > 0).astype(int)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> AnyArray:
        """Return class probabilities of shape (n_images, n_classes); rows of classes sum to 1."""
        scores = self.decision_function(X)
        if scores.ndim == 1:  # the first class of two has the opposite score
            return probabilities(np.stack([-scores, scores], axis=1), "logistic")
        return probabilities(scores, self._kind, self.multilabel_)


def _classes(y: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Return the classes, and their number of each image; or, of several labels, indicators.

    Raises:
        ValueError: y holds no classes, or one only.
    """
    check_classification_targets(y)
    if type_of_target(y) == "multilabel-indicator":
        return np.arange(y.shape[1]), y != 0
    classes, labels = np.unique(column_or_1d(y, warn=True), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y holds {len(classes)} class with any weight; expected 2 or more")
    return classes, labels


def _by_number(class_weight: Any, classes: AnyArray) -> str | dict[int, float] | None:
    """Return class weights by number instead of by name."""
    if class_weight is None or isinstance(class_weight, str):
        return class_weight
    return {k: float(class_weight.get(name, 1)) for k, name in enumerate(classes.tolist())}


def _checked_weight(sample_weight: Any, n_images: int) -> FloatArray:
    """Return the sample weights as an array of shape (n_images,)."""
    if sample_weight is None or isinstance(sample_weight, Real):
        return np.full(n_images, 1.0 if sample_weight is None else float(sample_weight))
    weight: FloatArray = check_array(
        sample_weight, dtype=DTYPES, ensure_2d=False, input_name="sample_weight"
    )
    if weight.shape != (n_images,):
        raise ValueError(f"sample_weight has shape {weight.shape}; expected ({n_images},)")
    if (weight < 0).any():
        raise ValueError("Negative values in sample_weight; expected at least 0")
    if not weight.any():
        raise ValueError("Every sample_weight is zero; expected at least one above 0")
    return weight


class SoftmaxHead(_Head):
    """Multinomial logistic regression: `LogisticRegression` by the solver of many heads.

    Args:
        C: Inverse strength of the l2 penalty, above 0, as in scikit-learn.
        class_weight: None, `balanced`, or a mapping from class name to weight (1 where it lacks
            a class).
        tol: The fit ends once the promised decrease is below this share of the objective; with
            float32 features at 1e-9 at the latest.
        max_iter: Maximum number of passes over the rows.

    Attributes:
        classes_: Class names, array of shape (n_classes,).
        coef_: Weights, array of shape (n_classes, n_features); (1, n_features) for two classes.
        intercept_: Biases, array of shape (n_classes,); (1,) for two classes.
        n_iter_: Passes over the rows, int32 array of shape (1,).

    Examples:
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from hubretrain import SoftmaxHead
        >>> images, digits = load_digits(return_X_y=True)
        >>> model = make_pipeline(StandardScaler(), SoftmaxHead(C=0.01))
        >>> model = model.fit(images[::2], digits[::2])
        >>> model.predict(images[1:4:2])
        array([1, 3])
        >>> round(model.score(images[1::2], digits[1::2]), 2)
        0.92
    """

    _kind: Kind = "softmax"
    _takes_several_labels = False


class LogisticHead(_Head):
    """One class against the rest: `OneVsRestClassifier(LogisticRegression())`.

    With `class_weight="balanced"` each class weighs as much as all others together; with weights
    by class name a row has the weight of its own class in every one of the problems. Arguments and
    attributes are those of `SoftmaxHead`.

    Examples:
        >>> import numpy as np
        >>> from hubretrain import LogisticHead
        >>> features = np.array([[0.0], [0.1], [1.0], [1.1], [2.0], [2.1]])
        >>> head = LogisticHead(C=100).fit(features, ["a", "a", "b", "b", "c", "c"])
        >>> head.classes_
        array(['a', 'b', 'c'], dtype='<U1')
        >>> head.predict([[-0.5], [2.5]])
        array(['a', 'c'], dtype='<U1')
    """

    _kind: Kind = "logistic"


class MLPHead(_Classifier):
    """A network with one hidden layer, trained as in `hubretrain.heads.mlp`.

    Unlike `MLPClassifier` it drops units, decays weights as AdamW does, balances classes and
    averages several networks. It expects standardised features.

    Args:
        decay: Weight decay, at least 0.
        class_weight: None, `balanced`, or a mapping from class name to weight (1 where it lacks
            a class).
        n_hidden: Hidden units of each network.
        n_seeds: Networks that are averaged.
        dropout: Share of hidden units that are dropped at each step, [0, 1).
        input_dropout: Share of features that are dropped at each step, [0, 1).
        n_epochs: Passes over the rows; more where they make fewer than 300 steps.
        batch_size: Rows per step.
        learning_rate: Of the first step; falls to 0 as a cosine.
        random_state: Random seed; the same seed gives the same network.

    Attributes:
        classes_: Class names, array of shape (n_classes,).
        coefs_: Weights of the hidden and of the last layer, (n_features, n_seeds * n_hidden) and
            (n_seeds * n_hidden, n_classes).
        intercepts_: Their biases.

    Examples:
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from hubretrain import MLPHead
        >>> images, digits = load_digits(return_X_y=True)
        >>> model = make_pipeline(StandardScaler(), MLPHead(n_hidden=64, n_seeds=1))
        >>> model = model.fit(images[::2], digits[::2])
        >>> model.score(images[1::2], digits[1::2]) > 0.92
        True
    """

    def __init__(
        self,
        decay: float = DECAYS[0],
        *,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        n_hidden: int = 256,
        n_seeds: int = 2,
        dropout: float = 0.5,
        input_dropout: float = 0.2,
        n_epochs: int = 15,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        random_state: int = 0,
    ) -> None:
        self.decay = decay
        self.class_weight = class_weight
        self.n_hidden = n_hidden
        self.n_seeds = n_seeds
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> MLPHead:
        """Train the network.

        Args:
            X: Features, array of shape (n_images, n_features); float32 features are computed
                with in float32, all others in float64.
            y: Class of each image, array of shape (n_images,); or indicators of several labels.

        Raises:
            ValueError: X or y holds NaN, shapes do not agree, there is one class only, or a
                parameter is out of range.
        """
        X, y = validate_data(self, X, y, dtype=DTYPES, multi_output=True)
        self.classes_, labels = _classes(y)
        self.multilabel_ = labels.ndim == 2
        n_classes = len(self.classes_)
        names = ("n_hidden", "n_seeds", "dropout", "input_dropout", "n_epochs", "batch_size")
        inputs = FitInputs.checked(X, labels, n_classes)
        rows = FeatureBlocks(inputs.parts, inputs.row_image, standardize=False, memory=X.nbytes)
        try:
            options = MLPOptions(
                learning_rate=self.learning_rate,
                seed=self.random_state,
                **{name: getattr(self, name) for name in names},
            )
            class_weights = [_by_number(self.class_weight, self.classes_)]
            path = MLPFitter(inputs, rows, class_weights, options).fit_folds(self.decay)
        except HeadError as error:
            raise ValueError(str(error)) from error
        arrays = path.heads.arrays(0)
        self.coefs_ = [arrays["hidden_weight"], arrays["weight"]]
        self.intercepts_ = [arrays["hidden_bias"], arrays["bias"]]
        return self

    def predict_proba(self, X: Any) -> AnyArray:
        """Return class probabilities of shape (n_images, n_classes); rows of classes sum to 1."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=DTYPES, reset=False)
        hidden = np.maximum(X @ self.coefs_[0] + self.intercepts_[0], 0)
        logits = hidden @ self.coefs_[1] + self.intercepts_[1]
        return probabilities(logits, "mlp", self.multilabel_)

    def predict(self, X: Any) -> AnyArray:
        """Return the most probable class of each image, array (n_images,), or indicators."""
        probs = self.predict_proba(X)
        if self.multilabel_:
            return (probs > 0.5).astype(np.int64)
        return self.classes_[probs.argmax(axis=1)]
