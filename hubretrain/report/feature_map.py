"""Bottlenecks of all images in a plane, kept beside the run so that the next report is quick.

t-SNE: van der Maaten and Hinton (2008), https://jmlr.org/papers/v9/vandermaaten08a.html, by
scikit-learn's Barnes-Hut, begun from the first two principal components, on one thread: the same
bottlenecks give the same map whatever the number of processors. UMAP where umap-learn is there;
this is the one door to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from hubretrain.errors import DataError
from hubretrain.files import write_json

Floats = npt.NDArray[np.float64]
METHODS = ("tsne", "umap")
N_COMPONENTS = 50
PERPLEXITY = 30
ANGLE = 0.7  # scikit-learn: little changes from 0.2 to 0.8, but the time
N_ITERATIONS = 600
MOST = 12_000  # images on a map; of more, a sample
FORMAT = "hubretrain map 1"


def chosen_contents(sha256s: Sequence[str]) -> list[str]:
    """The contents on the map: all, or of more than `MOST` those of the least digests."""
    distinct = list(dict.fromkeys(sha256s))
    if len(distinct) <= MOST:
        return distinct
    least = set(sorted(distinct)[:MOST])
    return [sha256 for sha256 in distinct if sha256 in least]


def project(features: npt.NDArray[np.float32], method: str = "tsne", seed: int = 0) -> Floats:
    """Places in a plane.

    Args:
        features: float32 (n_images, n_features).
        method: `tsne` or `umap`.
        seed: Of the method, which takes 32 bits of it.

    Returns:
        float64 (n_images, 2), each axis from 0 to 1.

    Raises:
        DataError: An unknown method, or umap-learn is not installed.
    """
    if method not in METHODS:
        raise DataError(f"--map is {method!r}; expected one of {', '.join(METHODS)}.")
    umap = _umap() if method == "umap" else None
    seed %= 2**32
    n = len(features)
    with threadpool_limits(1):
        found = _components(features, min(N_COMPONENTS, n, features.shape[1]))
        if n >= 8 and umap is not None:
            found = umap.UMAP(random_state=seed, n_jobs=1).fit_transform(found)
        elif n >= 8:
            from sklearn.manifold import TSNE

            perplexity = min(PERPLEXITY, (n - 1) / 3)
            tsne = TSNE(
                init="pca",
                perplexity=perplexity,
                angle=ANGLE,
                max_iter=N_ITERATIONS,
                random_state=seed,
                n_jobs=1,
            )
            found = tsne.fit_transform(found.astype(np.float32))
    plane = np.zeros((n, 2))
    plane[:, : min(2, found.shape[1])] = found[:, :2]
    return _within(plane.astype(np.float64))


def _components(features: npt.NDArray[np.float32], n_components: int) -> Floats:
    """The first principal components, their signs fixed: the largest loading is positive."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    first = vectors[:, np.argsort(-values, kind="stable")[:n_components]]
    signs = np.sign(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])])
    return np.asarray(centred @ (first * np.where(signs == 0, 1, signs)))


def _within(plane: Floats) -> Floats:
    """Shifted and scaled into a frame with a margin, to four digits."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return np.asarray(np.round(0.02 + 0.96 * (plane - low) / span, 4))


class MapFile:
    """`report/map_<module>_<method>.json`: a map, and what it is of.

    Args:
        folder: The run's report folder.
        module: Whose bottlenecks.
        method: How they were laid out.
    """

    def __init__(self, folder: Path, module: str, method: str) -> None:
        self.path, self.method = folder / f"map_{module}_{method}.json", method

    def identity(self, module_sha256: str, sha256s: Sequence[str], seed: int) -> str:
        """What the map follows from, as a digest."""
        text = "\n".join([FORMAT, self.method, module_sha256, str(seed), *sha256s])
        return hashlib.sha256(text.encode()).hexdigest()

    def load(self, identity: str) -> Floats | None:
        """The map, or None where there is none of this identity."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["identity"] == identity:
                return np.column_stack([kept["x"], kept["y"]]).astype(np.float64)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing or damaged: it is only a memory
        return None

    def save(self, identity: str, sha256s: Sequence[str], plane: Floats) -> None:
        """Keeps a map.

        Raises:
            WriteError: It cannot be written.
        """
        x, y = plane[:, 0].tolist(), plane[:, 1].tolist()
        write_json(self.path, {"identity": identity, "sha256": list(sha256s), "x": x, "y": y})


def _umap() -> Any:
    try:
        import umap
    except ImportError as error:
        raise DataError(
            f"--map umap needs umap-learn ({error}); install it with: pip install umap-learn, "
            "or take --map tsne."
        ) from error
    return umap
