"""Problems and reference solutions that the tests of the heads share."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from hubretrain.heads.inputs import FitInputs
from hubretrain.heads.path import fit_path
from hubretrain.heads.result import HeadPath
from hubretrain.heads.solver import SolverOptions

INPUTS = ("folds", "sample_weight", "rows", "class_names")
STOPPING = ("tol", "max_iter")


def fitted(features, labels, *, kind, n_classes, l2, **options) -> HeadPath:
    """Fit the heads of one kind in one call; options go where they belong."""
    given = {name: options.pop(name) for name in INPUTS if name in options}
    stopping = {name: options.pop(name) for name in STOPPING if name in options}
    inputs = FitInputs.checked(features, labels, n_classes, **given)
    return fit_path(inputs, kind, l2, options=SolverOptions(**stopping), **options)


C = np.logspace(-4, -1, 4)


def digits(n_images=600):
    """Real features: scanned digits' pixels, and products of neighbours, 300 in all."""
    pixels, labels = load_digits(return_X_y=True)
    products = [pixels[:, :-step] * pixels[:, step:] for step in (1, 8, 9, 3)]
    features = np.hstack([pixels, *products])[:n_images, :300]
    folds = np.arange(n_images) // 10 % 3
    return features.astype(np.float32), labels[:n_images], folds


def blobs(n_images=90, n_features=5, n_classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(n_images) % n_classes
    centres = random.normal(size=(n_classes, n_features))
    features = centres[labels] + random.normal(size=(n_images, n_features)) * 1.5
    return features * 3 + 7, labels, np.arange(n_images) // n_classes % 3


def exact(kind, **options):
    model = LogisticRegression(tol=1e-8, max_iter=20_000, **options)
    return model if kind == "softmax" else OneVsRestClassifier(model)


def objective_of(model, features, labels, l2, weight):
    """What a softmax model of scikit-learn minimises, over C, in float64."""
    likely = model.predict_proba(features)[np.arange(len(labels)), labels]
    return -(weight * np.log(likely)).sum() + l2 / 2 * (model.coef_**2).sum()
