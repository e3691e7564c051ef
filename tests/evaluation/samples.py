"""Synthetic predictions that the tests of the metrics share."""

import numpy as np

SHARES = [0.5, 0.2, 0.15, 0.1, 0.05]


def predictions(seed, n_images=300, shares=SHARES, decimals=None):
    """Return probabilities and labels; few decimals make many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), n_images, p=np.asarray(shares) / np.sum(shares))
    probabilities = rng.dirichlet(np.ones(len(shares)), n_images)
    probabilities += 0.5 * np.eye(len(shares))[labels] * rng.random((n_images, 1))
    if decimals is None:
        return probabilities / probabilities.sum(axis=1, keepdims=True), labels
    # In units of a power of two, rows sum to exactly 1 and ties are exact.
    counts = np.floor(probabilities * 2**decimals / probabilities.sum(axis=1, keepdims=True))
    counts[:, 0] += 2**decimals - counts.sum(axis=1)
    return counts / 2**decimals, labels


def drawn_weights(seed, n_images, n_resamples=4):
    """Return counts of which many are 0, as a bootstrap draws them."""
    return np.random.default_rng(seed).poisson(1.0, (n_resamples, n_images)).astype(np.uint8)
