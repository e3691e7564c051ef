"""Transferability scores: how suitable features look without fitting a head.

Both come from the eigenbasis that the heads are fitted in, at the cost of one pass. They rank
modules unreliably (Agostinelli et al. 2022, How stable are transferability metrics evaluations?,
https://arxiv.org/abs/2204.01403), so nothing is chosen by them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray
from hubretrain.heads import FeatureBlocks

MAX_ITERATIONS = 200


def transfer_scores(features: FeatureBlocks, labels: AnyArray, n_classes: int) -> dict[str, float]:
    """Return LogME and the shrinkage H-score of standardised features; the higher the better.

    - `log_me`: You, Liu, Wang and Long (2021), LogME, https://arxiv.org/abs/2102.11005: the log
      evidence per row of a Bayesian linear regression on each class's centred 0/1 labels, mean
      over the classes.
    - `h_score`: Ibrahim, Ponomareva and Mazumder (2021), Newer is not always better,
      https://arxiv.org/abs/2110.06893: the trace of (class means' covariance) x (shrunk
      covariance of the features)^-1, shrunk as Ledoit and Wolf (2004) have it,
      https://doi.org/10.1016/S0047-259X(03)00096-4.

    The H-score needs classes that exclude one another; of several labels per image it is left out.

    Args:
        features: Standardised features.
        labels: int (n_images,), or bool (n_images, n_classes).
        n_classes: Number of classes.
    """
    basis, spectrum = features.eigenbasis()
    label = labels[features.row_image]
    sums, fourth = np.zeros((n_classes, features.n_features)), 0.0
    for rows, block in features.blocks():
        one_hot = _indicators(label[rows], n_classes, block.dtype)
        sums += one_hot.T @ block
        fourth += float((np.einsum("ij,ij->i", block, block, dtype=np.float64) ** 2).sum())
    turned = sums @ basis.astype(np.float64)
    if label.ndim == 2:
        counts = label.sum(axis=0).astype(np.float64)
    else:
        counts = np.bincount(label, minlength=n_classes).astype(np.float64)
    present = (counts > 0) & (counts < features.n_rows)
    evidence = [
        _log_evidence(features.n_rows, spectrum * features.n_rows, turned[k], counts[k])
        for k in np.flatnonzero(present)
    ]
    log_me = float(np.mean(evidence)) if evidence else np.nan
    if label.ndim == 2:
        return {"log_me": log_me}
    return {
        "log_me": log_me,
        "h_score": _h_score(features, spectrum, turned[counts > 0], counts[counts > 0], fourth),
    }


def _indicators(labels: AnyArray, n_classes: int, dtype: npt.DTypeLike) -> AnyArray:
    """Return 1 for each class that a row has and 0 for the others, (n_rows, n_classes)."""
    if labels.ndim == 2:
        return labels.astype(dtype)
    return np.eye(n_classes, dtype=dtype)[labels]


def _log_evidence(n_rows: int, spectrum: AnyArray, inner: AnyArray, count: float) -> float:
    """Return the log evidence per row of one class's labels, at its maximum.

    LogME, algorithm 3, in the eigenbasis: alpha there is the `precision` of the weights' prior,
    beta the inverse `noise` variance, gamma the `freedom` (effective number of parameters).

    Args:
        n_rows: Number of rows.
        spectrum: Eigenvalues of F'F, float64 (rank,).
        inner: F'y in the eigenbasis; features are centred, so y need not be.
        count: Number of rows of the class.
    """
    energy = count - count**2 / n_rows  # squared norm of the centred labels
    kept = spectrum > 1e-9 * max(float(spectrum.max()), 1e-30)
    size, spectrum, inner = int(kept.sum()), spectrum[kept], inner[kept]
    if not size:  # constant features explain nothing
        return np.nan
    explained = inner**2 / spectrum
    outside = max(energy - float(explained.sum()), 0.0)
    ratio = 1.0  # of the weights' precision to the noise's: alpha / beta
    for _ in range(MAX_ITERATIONS):
        shrunk = spectrum / (spectrum + ratio)
        weights = float((explained * shrunk / (spectrum + ratio)).sum())
        error = float((explained * (1 - shrunk) ** 2).sum()) + outside
        freedom = float(shrunk.sum())
        before, ratio = ratio, freedom / max(weights, 1e-30) * error / max(n_rows - freedom, 1e-9)
        # As many features as images explain all, and the evidence would have no bound.
        ratio = max(ratio, 1e-6 * float(spectrum.max()))
        if abs(ratio - before) <= 1e-6 * before:
            break
    noise = max(n_rows - freedom, 1e-9) / max(error, 1e-30)
    precision = ratio * noise
    return (
        float(
            size / 2 * np.log(precision)
            + n_rows / 2 * np.log(noise / (2 * np.pi))
            - np.log(precision + noise * spectrum).sum() / 2
            - noise / 2 * error
            - precision / 2 * weights
        )
        / n_rows
    )


def _h_score(
    features: FeatureBlocks, spectrum: AnyArray, turned: AnyArray, counts: AnyArray, fourth: float
) -> float:
    """Return the H-score with the Ledoit-Wolf shrinkage of the covariance to its mean variance.

    Args:
        features: Standardised features.
        spectrum: Eigenvalues of their covariance, float64 (rank,).
        turned: Sum of the features of each class, in the eigenbasis.
        counts: Number of rows of each class.
        fourth: Sum over the rows of the fourth power of their norm.
    """
    n_rows, level = features.n_rows, float(spectrum.sum()) / features.n_features
    squares = float((spectrum**2).sum())
    spread = squares - features.n_features * level**2
    sampling_error = (fourth / n_rows - squares) / n_rows
    shrinkage = 1.0 if spread <= 0 else float(np.clip(sampling_error / spread, 0, 1))
    means = turned / counts[:, None]
    between = (counts / n_rows) @ means**2
    within = (1 - shrinkage) * spectrum + shrinkage * level + 1e-30
    return float(((1 - shrinkage) * between / within).sum())
