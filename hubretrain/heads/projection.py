"""Principal components of many features: what heads on the features of all layers are fitted on.

The features of all layers are several thousand, most of them nearly combinations of others. A
head fitted on their first K principal components, with standardised features
`x = (f - mean) / scale`, a unit u and an orthonormal basis Q of K columns::

    z = Q' x / u            V z + c  =  (V Q' / (u scale)) f + c - (V Q' / (u scale)) mean

is still one affine map of the features as they are cached, so nobody who uses the head needs to
know of the components. The penalty of V is that of weights in the span of Q: `||V Q'|| = ||V||`.
With as many components as rows, nothing is left out: the best weights are combinations of rows.

A basis that is fitted with validation images sees none of their labels; `README.md` says what it
changes all the same. The components are not whitened: small ones are mostly noise, and the penalty
knows by their size. The unit makes their mean variance 1, which is that of standardised features,
so that penalties mean about the same with any number of layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.utils.extmath import randomized_svd

from hubretrain.arrays import AnyArray, Float32Array, FloatArray, IntArray
from hubretrain.heads.features import check_finite
from hubretrain.heads.heads import Head

N_COMPONENTS = 1024
MOST_ROWS = 8192  # that the components are computed from
N_ITERATIONS, N_OVERSAMPLES = 2, 10  # of the randomised decomposition
# A deviation below this share of the mean counts as this share: it is that of one float16 step, and
# a constant channel must not be blown up to unit variance.
SMALLEST_DEVIATION = 1e-3
NEGLIGIBLE = 1e-10  # share of the largest variance
BLOCK_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class Projection:
    """The first principal components of some features.

    Attributes:
        mean: Mean of each feature, float64 (n_features,).
        scale: What each deviation from the mean is divided by, float64 (n_features,).
        basis: Orthonormal columns, float32 (n_features, n_components).
        unit: What the components are divided by, above 0.

    Examples:
        >>> import numpy as np
        >>> from hubretrain.heads import Projection
        >>> features = np.random.default_rng(0).normal(size=(50, 400)).astype(np.float32)
        >>> projection = Projection.fitted([features], np.arange(50), n_components=20)
        >>> projection.project(features).shape
        (50, 20)
    """

    mean: FloatArray
    scale: FloatArray
    basis: Float32Array
    unit: float

    @classmethod
    def fitted(
        cls, parts: Sequence[Any], row_image: IntArray, n_components: int = N_COMPONENTS
    ) -> Projection:
        """Return the principal components of some rows, the same ones at every call.

        Args:
            parts: Feature arrays of shape (n_i, n_features) that can be sliced, as `FitInputs`
                takes them: one per view.
            row_image: Image of each row, int64 (sum of n_i,); negative: not used.
            n_components: Number of components; fewer if the features or the rows are fewer.

        Raises:
            HeadError: A row that is used is not finite.
        """
        rows = _sampled(parts, row_image)
        check_finite(int((~np.isfinite(rows.sum(axis=1))).sum()), len(rows))
        mean = rows.mean(axis=0, dtype=np.float64)
        rows -= mean.astype(np.float32)
        variance = np.einsum("ij,ij->j", rows, rows, dtype=np.float64) / len(rows)
        scale = np.maximum(np.sqrt(variance), SMALLEST_DEVIATION * np.abs(mean))
        scale[scale == 0] = 1
        rows /= scale.astype(np.float32)
        basis = _basis(rows, n_components)
        mean_square = float(np.square(rows @ basis, dtype=np.float64).mean())
        return cls(mean, scale, basis, np.sqrt(mean_square) or 1.0)

    @property
    def n_components(self) -> int:
        """Number of components."""
        return self.basis.shape[1]

    def project(self, rows: AnyArray) -> Float32Array:
        """Return the components (n_rows, n_components) of features (n_rows, n_features)."""
        weight = self.basis / np.float32(self.unit)
        centred = (rows - self.mean.astype(np.float32)) * (1 / self.scale).astype(np.float32)
        return np.asarray(centred @ weight, np.float32)

    def project_parts(
        self, parts: Sequence[Any], row_image: IntArray, memory: int
    ) -> list[Float32Array]:
        """Return the components of the rows of some views, to fit heads on.

        Args:
            parts: As `fitted` takes them.
            row_image: As `fitted` takes it; rows that are not used stay 0.
            memory: Bytes that the components may take; more go into temporary files.
        """
        n_bytes = len(row_image) * self.n_components * 4
        projected, first = [], 0
        for part in parts:
            shape = (len(part), self.n_components)
            rows = np.zeros(shape, np.float32) if n_bytes <= memory else _temporary(shape)
            for some in _slices(part):
                is_used = row_image[first + some.start : first + some.stop] >= 0
                if is_used.any():
                    rows[some][is_used] = self.project(_read(part, some)[is_used])
            projected.append(rows)
            first += len(part)
        return projected

    def raw(self, weight: AnyArray, bias: AnyArray) -> tuple[Float32Array, Float32Array]:
        """Return weights and biases for features as they are cached.

        Args:
            weight: Weights for components, (n_components, n_outputs).
            bias: (n_outputs,).
        """
        raw = self.basis.astype(np.float64) @ weight / (self.unit * self.scale[:, None])
        return raw.astype(np.float32), (bias - self.mean @ raw).astype(np.float32)

    def raw_head(self, head: Head, layers: tuple[str, ...]) -> Head:
        """Return a head on components, linear or `mlp`, as one on features as they are cached.

        Args:
            head: Head that was fitted on components.
            layers: Names of the inner layers whose features follow the module's output.
        """
        if head.hidden_weight is None:
            weight, bias = self.raw(head.weight, head.bias)
            return replace(head, weight=weight, bias=bias, layers=layers)
        assert head.hidden_bias is not None
        weight, bias = self.raw(head.hidden_weight, head.hidden_bias)
        return replace(head, hidden_weight=weight, hidden_bias=bias, layers=layers)


def _sampled(parts: Sequence[Any], row_image: IntArray) -> Float32Array:
    """Return a copy of at most `MOST_ROWS` rows, evenly: of the first view, then of all others."""
    used = np.flatnonzero(row_image >= 0)
    n_first = int((used < len(parts[0])).sum())
    chosen = used[:n_first][_evenly(n_first, MOST_ROWS)]
    others = used[n_first:]
    chosen = np.append(chosen, others[_evenly(len(others), MOST_ROWS - len(chosen))])
    rows, first, n_done = np.empty((len(chosen), parts[0].shape[1]), np.float32), 0, 0
    for part in parts:
        for some in _slices(part):
            inside = chosen - (first + some.start)
            inside = inside[(inside >= 0) & (inside < some.stop - some.start)]
            if len(inside):
                rows[n_done : n_done + len(inside)] = _read(part, some)[inside]
                n_done += len(inside)
        first += len(part)
    return rows


def _evenly(n: int, most: int) -> IntArray:
    """Return at most `most` of n indices, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _basis(rows: Float32Array, n_components: int) -> Float32Array:
    """Return the first right singular vectors (n_features, n_components) of rows.

    Where most of them are wanted, the eigenvectors of the smaller product of the rows with
    themselves are exact and cost no more. Directions in which the rows are rounding errors are
    left out.
    """
    n_rows, n_features = rows.shape
    if 2 * n_components < min(n_rows, n_features):
        _, _, right = randomized_svd(
            rows,
            n_components,
            n_iter=N_ITERATIONS,
            n_oversamples=N_OVERSAMPLES,
            power_iteration_normalizer="QR",
            random_state=0,
        )
        return np.ascontiguousarray(right.T, np.float32)
    exact = rows.astype(np.float64)
    are_few = n_rows < n_features
    spectrum, vectors = np.linalg.eigh(exact @ exact.T if are_few else exact.T @ exact)
    rank = max(1, int((spectrum > NEGLIGIBLE * spectrum[-1]).sum()))
    first = slice(-1, -1 - min(n_components, rank), -1)
    spectrum, vectors = spectrum[first], vectors[:, first]
    if are_few:
        vectors = exact.T @ vectors / np.sqrt(np.maximum(spectrum, np.finfo(np.float64).tiny))
    return np.ascontiguousarray(vectors, np.float32)


def _slices(part: Any) -> list[slice]:
    step = max(64, BLOCK_BYTES // (4 * part.shape[1]))
    return [slice(i, min(i + step, len(part))) for i in range(0, len(part), step)]


def _read(part: Any, rows: slice) -> Float32Array:
    return np.asarray(part[rows], np.float32)


def _temporary(shape: tuple[int, int]) -> Float32Array:
    """Return rows of 0 in a file without a name, which goes when the rows do."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
