"""The feature map: bottlenecks of all images in a plane, cached beside the run.

t-SNE: van der Maaten and Hinton (2008), https://jmlr.org/papers/v9/vandermaaten08a.html, by
scikit-learn's Barnes-Hut, initialised with the first two principal components, on one thread: the
same bottlenecks give the same map whatever the number of CPU cores. UMAP where umap-learn is
installed; this is the one file that imports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import FloatArray
from hubretrain.errors import DataError
from hubretrain.files import read_record, write_record
from hubretrain.parallel import one_blas_thread

METHODS = ("tsne", "umap")
N_COMPONENTS = 50
PERPLEXITY = 30
ANGLE = 0.7  # scikit-learn: from 0.2 to 0.8 little changes except the time
N_ITERATIONS = 600
MIN_IMAGES = 8  # with fewer the map shows the first principal components
MAX_IMAGES = 12_000  # of more images a sample is mapped
FORMAT = "hubretrain map 2"
OWN_DIGEST = "record_sha256"  # `sha256` is that of each image


def chosen_contents(sha256s: Sequence[str]) -> list[str]:
    """Return the contents on the map: all, or of more than `MAX_IMAGES` the lowest digests."""
    distinct = list(dict.fromkeys(sha256s))
    if len(distinct) <= MAX_IMAGES:
        return distinct
    lowest = set(sorted(distinct)[:MAX_IMAGES])
    return [sha256 for sha256 in distinct if sha256 in lowest]


def project(features: npt.NDArray[np.float32], method: str = "tsne", seed: int = 0) -> FloatArray:
    """Lay out bottlenecks in a plane.

    Args:
        features: float32 (n_images, n_features).
        method: `tsne` or `umap`.
        seed: Random seed of the method, which takes 32 bits of it.

    Returns:
        float64 (n_images, 2), each axis from 0 to 1.

    Raises:
        DataError: The method is unknown, or umap-learn is not installed.
    """
    if method not in METHODS:
        raise DataError(f"`map_method` is {method!r}; expected one of {', '.join(METHODS)}.")
    umap = _umap() if method == "umap" else None
    seed %= 2**32
    n = len(features)
    with one_blas_thread:
        points = _components(features)
        if n >= MIN_IMAGES and umap is not None:
            points = umap.UMAP(random_state=seed, n_jobs=1).fit_transform(points)
        elif n >= MIN_IMAGES:
            points = _tsne(points, seed)
    plane = np.zeros((n, 2))
    plane[:, : min(2, points.shape[1])] = points[:, :2]
    return _within(plane)


def _components(features: npt.NDArray[np.float32]) -> FloatArray:
    """Return the first principal components, at most `N_COMPONENTS`: (n_images, n_components)."""
    from sklearn.decomposition import PCA

    n_components = min(N_COMPONENTS, *features.shape)
    # This solver fixes the signs, so the same bottlenecks give the same map. Of one image there is
    # no variance to divide by, and nothing to lay out.
    if len(features) == 1:
        return np.zeros((1, n_components))
    pca = PCA(n_components, svd_solver="covariance_eigh")
    return np.asarray(pca.fit_transform(features.astype(np.float64)))


def _tsne(points: FloatArray, seed: int) -> FloatArray:
    from sklearn.manifold import TSNE

    tsne = TSNE(
        init="pca",
        perplexity=min(PERPLEXITY, (len(points) - 1) / 3),
        angle=ANGLE,
        max_iter=N_ITERATIONS,
        random_state=seed,
        n_jobs=1,
    )
    return np.asarray(tsne.fit_transform(points.astype(np.float32)), np.float64)


def _within(plane: FloatArray) -> FloatArray:
    """Shift and scale points into [0, 1] with a margin, rounded to four digits."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return np.asarray(np.round(0.02 + 0.96 * (plane - low) / span, 4))


class MapFile:
    """The file `report/map_<module>_<method>.json`: a map and its identity.

    Args:
        folder: The run's report folder.
        module: Name of the module whose bottlenecks are mapped.
        method: `tsne` or `umap`.
    """

    def __init__(self, folder: Path, module: str, method: str) -> None:
        self.path, self.method = folder / f"map_{module}_{method}.json", method

    def identity(self, module_sha256: str, sha256s: Sequence[str], seed: int) -> str:
        """Return a digest of everything that the map depends on."""
        text = "\n".join([FORMAT, self.method, module_sha256, str(seed), *sha256s])
        return hashlib.sha256(text.encode()).hexdigest()

    def load(self, identity: str) -> FloatArray | None:
        """Read the map; None if there is none with this identity."""
        try:
            cached = read_record(self.path, OWN_DIGEST)
            if cached["identity"] == identity:
                return np.column_stack([cached["x"], cached["y"]]).astype(np.float64)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing or damaged: it is made again
        return None

    def save(self, identity: str, sha256s: Sequence[str], plane: FloatArray) -> None:
        """Write the map.

        Raises:
            WriteError: The file cannot be written.
        """
        x, y = plane[:, 0].tolist(), plane[:, 1].tolist()
        values = {"identity": identity, "sha256": list(sha256s), "x": x, "y": y}
        write_record(self.path, values, OWN_DIGEST)


def _umap() -> Any:
    try:
        import umap
    except ImportError as error:
        raise DataError(
            f"umap-learn is not installed ({error}); install it with: pip install umap-learn, "
            "or set `map_method` to tsne."
        ) from error
    return umap
