"""Principal components of many features: what heads on the features of all layers are fitted on.

The features of all layers are several thousand, most of them nearly combinations of others. A
head fitted on K components, with standardised features `x = (f - mean) / scale`, a unit u and an
orthonormal basis Q of K columns::

    z = Q' x / u            V z + c  =  (V Q' / (u scale)) f + c - (V Q' / (u scale)) mean

is still one affine map of the features as they are cached, so nobody who uses the head needs to
know of the components. The penalty of V is that of weights in the span of Q: `||V Q'|| = ||V||`.
With as many components as rows, nothing is left out: the best weights are combinations of rows.

**Heads that are validated on a fold have a basis that has not seen its images.** One that has keeps
more of their rows than of new ones, which flatters, although it sees no label. To project all rows
once and for all folds, each fold's rows give their own first principal components, in proportion to
their number. Q spans those of all folds. Heads without a fold are combinations of what the other
folds gave: of fewer, `bases[fold]`, orthonormal in the components z, and from the training rows
alone. Mean, scale and unit are those of all rows, as for heads on the last layer.

The components are not whitened: small ones are mostly noise, and the penalty knows by their size.
The unit makes their mean variance 1, which is that of standardised features, so that penalties mean
about the same with any number of layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.extmath import randomized_svd

from hubretrain.arrays import AnyArray, Float32Array, FloatArray, IntArray
from hubretrain.heads.features import Basis, check_finite, temporary_rows
from hubretrain.heads.heads import Head
from hubretrain.heads.inputs import TRAIN_ONLY
from hubretrain.heads.path import ALL_IMAGES
from hubretrain.parallel import ahead, one_blas_thread

N_COMPONENTS = 1536  # of all folds; heads without one of five folds have 1,229
MOST_ROWS = 8192  # that the components are computed from
N_ITERATIONS, N_OVERSAMPLES = 1, 10  # of the randomised decomposition
# A deviation below this share of the mean counts as this share: it is that of one float16 step, and
# a constant channel must not be blown up to unit variance.
SMALLEST_DEVIATION = 1e-3
NEGLIGIBLE = 1e-10  # share of the largest variance
DEPENDENT = 1e-6  # squared length of what a direction adds to others; products are in float32
BLOCK_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components of some features.

    Attributes:
        mean: Mean of each feature, float64 (n_features,).
        scale: What each deviation from the mean is divided by, float64 (n_features,).
        basis: Orthonormal columns, float32 (n_features, n_components).
        unit: What the components are divided by, above 0.
        bases: Directions among the components: by fold those that have not seen its images, by
            `ALL_IMAGES` all.

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
    bases: Mapping[int, Basis]

    @classmethod
    def fitted(
        cls,
        parts: Sequence[Any],
        row_image: IntArray,
        n_components: int = N_COMPONENTS,
        folds: IntArray | None = None,
    ) -> Projection:
        """Return the principal components of some rows, the same ones at every call.

        Args:
            parts: Feature arrays of shape (n_i, n_features) that can be sliced, as `FitInputs`
                takes them: one per view.
            row_image: Image of each row, int64 (sum of n_i,); negative: not used.
            n_components: Number of components; fewer if the features or the rows are fewer.
            folds: Fold of each image, at least 0 for those that are used; None: there are none,
                and the components are the first of all rows.

        Raises:
            HeadError: A row that is used is not finite.
        """
        rows, image = _sampled(parts, row_image)
        fold = np.zeros(len(image), np.int64) if folds is None else folds[image]
        check_finite(int((~np.isfinite(rows.sum(axis=1))).sum()), len(rows))
        mean = rows.mean(axis=0, dtype=np.float64)
        rows -= mean.astype(np.float32)
        variance = np.einsum("ij,ij->j", rows, rows, dtype=np.float64) / len(rows)
        scale = np.maximum(np.sqrt(variance), SMALLEST_DEVIATION * np.abs(mean))
        scale[scale == 0] = 1
        rows /= scale.astype(np.float32)
        every = [] if folds is None else np.unique(folds[row_image[row_image >= 0]]).tolist()
        left_out = [of for of in every if of != TRAIN_ONLY]
        basis, bases = _bases(rows, fold, _spans(rows, fold, n_components), left_out)
        unit = float(np.sqrt(bases[ALL_IMAGES].spectrum.mean())) or 1.0
        bases = {
            of: Basis(columns, spectrum / unit**2) for of, (columns, spectrum) in bases.items()
        }
        return cls(mean, scale, basis, unit, bases)

    @property
    def n_components(self) -> int:
        """Number of components."""
        return self.basis.shape[1]

    @property
    def n_bytes(self) -> int:
        """Bytes in memory."""
        return self.basis.nbytes + sum(columns.nbytes for columns, _ in self.bases.values())

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
            rows = np.zeros(shape, np.float32) if n_bytes <= memory else temporary_rows(shape)
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


def _sampled(parts: Sequence[Any], row_image: IntArray) -> tuple[Float32Array, IntArray]:
    """Return a copy of at most `MOST_ROWS` rows, evenly: of the first view, then of all others.

    Returns:
        The rows, and the image of each.
    """
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
    return rows, row_image[chosen]


def _evenly(n: int, most: int) -> IntArray:
    """Return at most `most` of n indices, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _spans(rows: Float32Array, fold: IntArray, n_components: int) -> dict[int, Float32Array]:
    """Return directions (n_features, n) by fold: the first principal axes of its rows.

    Their numbers are in proportion to the rows, together about `n_components` at most.
    """
    folds, n_rows = np.unique(fold, return_counts=True)
    until = np.cumsum(n_rows) / len(rows) * min(n_components, len(rows))
    n_of = np.maximum(np.diff(until.round().astype(np.int64), prepend=0), 1)
    return {
        int(of): _axes(rows[fold == of] if len(folds) > 1 else rows, int(n))
        for of, n in zip(folds, n_of, strict=True)
    }


def _axes(rows: Float32Array, n_axes: int) -> Float32Array:
    """Return nearly the first right singular vectors (n_features, n_axes) of rows.

    They are eigenvectors of the smaller product of the rows with themselves, exact where most are
    wanted. Directions in which the rows are rounding errors are left out.
    """
    n_rows, n_features = rows.shape
    are_few, is_exact = n_rows < n_features, 2 * n_axes >= min(n_rows, n_features)
    factor = rows.astype(np.float64) if is_exact else rows
    product = factor @ factor.T if are_few else factor.T @ factor
    if is_exact:
        spectrum, vectors = np.linalg.eigh(product)
        spectrum, vectors = spectrum[::-1], vectors[:, ::-1]
    else:
        vectors, spectrum, _ = randomized_svd(
            product,
            n_axes,
            n_iter=N_ITERATIONS,
            n_oversamples=N_OVERSAMPLES,
            power_iteration_normalizer="QR",
            random_state=0,
        )
    n_kept = min(n_axes, max(1, int((spectrum > NEGLIGIBLE * spectrum[0]).sum())))
    vectors = vectors[:, :n_kept]
    if are_few:
        lengths = np.sqrt(np.maximum(spectrum[:n_kept], np.finfo(np.float32).tiny))
        vectors = factor.T @ (vectors / lengths.astype(factor.dtype))
    return np.ascontiguousarray(vectors, np.float32)


def _bases(
    rows: Float32Array,
    fold: IntArray,
    spans: Mapping[int, Float32Array],
    left_out: Sequence[int],
) -> tuple[Float32Array, dict[int, Basis]]:
    """Return the principal axes of all rows within all spans, and within those of the other folds.

    Returns:
        Orthonormal columns, (n_features, n); and bases among the components: of all, and by fold
        that is left out, from the spans and rows of the others.
    """
    folds = sorted(spans)
    span = np.concatenate([spans[of] for of in folds], axis=1)
    of_column = np.repeat(folds, [spans[of].shape[1] for of in folds])
    products = (span.T @ span).astype(np.float64)
    turn = _orthonormal(products)
    in_turn, projected = turn.T @ products, (rows @ span) @ turn.astype(np.float32)
    moments = {of: _Moments.of(projected[fold == of]) for of in folds}
    every = _Moments.sum_of(moments.values()).axes(np.eye(turn.shape[1]))

    def without(fold: int) -> Basis:
        others = [of for of in folds if of != fold] or folds  # of one alone, no head can be fitted
        columns = in_turn[:, np.isin(of_column, others)]
        columns = columns @ _orthonormal(columns.T @ columns)
        axes = _Moments.sum_of(moments[of] for of in others).axes(columns)
        return Basis((every.columns.T @ axes.columns).astype(np.float32), axes.spectrum)

    bases = {ALL_IMAGES: Basis(np.eye(len(every.spectrum), dtype=np.float32), every.spectrum)}
    n_threads = os.cpu_count() or 1
    with one_blas_thread:
        bases |= dict(ahead(without, left_out, n_threads, n_threads))
    return span @ (turn @ every.columns).astype(np.float32), bases


def _orthonormal(products: FloatArray) -> FloatArray:
    """Return what makes columns orthonormal, (n, n_kept), from their products with one another."""
    lengths, vectors = np.linalg.eigh(products)
    first = int((lengths <= DEPENDENT * lengths[-1]).sum())
    first = min(first, len(lengths) - 1)
    return vectors[:, first:] / np.sqrt(np.maximum(lengths[first:], np.finfo(np.float64).tiny))


class _Moments(NamedTuple):
    """Number, sum and sum of products of some rows."""

    n: int
    total: FloatArray
    products: FloatArray

    @classmethod
    def of(cls, rows: Float32Array) -> _Moments:
        """Return those of rows (n, n_features)."""
        exact = rows.astype(np.float64)
        return cls(len(rows), exact.sum(axis=0), exact.T @ exact)

    @classmethod
    def sum_of(cls, parts: Iterable[_Moments]) -> _Moments:
        """Return those of all rows of some parts."""
        n, total, products = zip(*parts, strict=True)
        return cls(sum(n), sum(total), sum(products))

    def axes(self, within: FloatArray) -> Basis:
        """Return the principal axes within the span of orthonormal columns, with their variance."""
        mean = self.total / self.n
        covariance = self.products / self.n - np.outer(mean, mean)
        spectrum, vectors = np.linalg.eigh(within.T @ covariance @ within)
        n_kept = max(1, int((spectrum > NEGLIGIBLE * spectrum[-1]).sum()))
        first = slice(-1, -1 - n_kept, -1)
        return Basis(within @ vectors[:, first], np.maximum(spectrum[first], 0))


def _slices(part: Any) -> list[slice]:
    step = max(64, BLOCK_BYTES // (4 * part.shape[1]))
    return [slice(i, min(i + step, len(part))) for i in range(0, len(part), step)]


def _read(part: Any, rows: slice) -> Float32Array:
    return np.asarray(part[rows], np.float32)
