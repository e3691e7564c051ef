"""Standardised feature rows in blocks, from memory or from disk, and their eigenbasis.

Features are standardised once, over all rows that take part in any fold. That looks at features of
validation images but at no label, and lets one eigenbasis serve all folds. Principal components do
look too closely, so heads on them have a basis for each fold: see `hubretrain.heads.projection`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hubretrain.arrays import AnyArray, FloatArray, IntArray
from hubretrain.errors import HeadError

BLOCK_BYTES = 1 << 24  # a block of rows stays in the CPU's cache between its two products
SAMPLE_ROWS_PER_FEATURE = 16  # rows that the eigenbasis is computed from
# Up to so many rows per feature, rotating the heads on each pass costs more than rotating the rows.
FEW_ROWS_PER_FEATURE = 4


class Basis(NamedTuple):
    """Directions of the rows that heads are combinations of.

    Attributes:
        columns: Orthonormal columns, (n_features, rank).
        spectrum: Mean square of the rows along each column, float64 (rank,).
    """

    columns: AnyArray
    spectrum: FloatArray


class FeatureBlocks:
    """Standardised feature rows, in blocks: from memory, or read again on every pass.

    Args:
        parts: Feature arrays of shape (n_i, n_features) that can be sliced: numpy, memmap, HDF5.
        row_image: Image of each row, int64 array of shape (sum of n_i,); negative: the row is not
            used.
        standardize: Whether to divide each feature by its standard deviation over the used rows.
        memory: Bytes that a copy of the standardised rows may take; a larger one is not made, and
            the rows are read in blocks on every pass.
        as_they_are: Whether the rows are centred and scaled already, so that no copy is needed.

    Attributes:
        row_image: Image of each used row, int64 array of shape (n_rows,), in the order of the
            blocks.
        n_rows: Number of used rows.
        n_features: Number of features.
        mean: Mean of each feature over the used rows, float64 array of shape (n_features,).
        scale: Standard deviation of each feature, float64 array of shape (n_features,); 1 for a
            constant feature, or for all without `standardize`.
        dtype: float64 if all features have it, else float32.

    Raises:
        HeadError: A used row is not finite.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        row_image: IntArray,
        *,
        standardize: bool,
        memory: int,
        as_they_are: bool = False,
    ) -> None:
        self._parts = parts
        self._all_row_image = row_image
        self.row_image = row_image[row_image >= 0]
        self.n_rows, self.n_features = len(self.row_image), int(parts[0].shape[1])
        is_double = all(np.dtype(part.dtype) == np.float64 for part in parts)
        self.dtype: np.dtype[Any] = np.dtype(np.float64 if is_double else np.float32)
        row_bytes = self.n_features * self.dtype.itemsize
        self._block_rows = max(64, BLOCK_BYTES // row_bytes)
        self._memory, self._as_they_are = memory, as_they_are
        self.mean, self.scale = np.zeros(self.n_features), np.ones(self.n_features)
        if not as_they_are:
            self.mean, self.scale = self._moments(standardize)
        self._eigenbasis: Basis | None = None
        self._rotated: AnyArray | None = None
        self._in_memory: AnyArray | None = None
        if not as_they_are and self.n_rows * row_bytes <= memory:
            standardised = np.empty((self.n_rows, self.n_features), self.dtype)
            for rows, block in self.blocks():
                standardised[rows] = block
            self._in_memory = standardised

    def blocks(self) -> Iterator[tuple[slice, AnyArray]]:
        """Yield slices of the used rows with their standardised features, each (m, n_features)."""
        if self._in_memory is not None:
            for rows in self._block_slices():
                yield rows, self._in_memory[rows]
            return
        if self._as_they_are:
            yield from self._raw_blocks()
            return
        mean, inverse_scale = self.mean.astype(self.dtype), (1 / self.scale).astype(self.dtype)
        for rows, raw in self._raw_blocks():
            block = raw - mean
            block *= inverse_scale
            yield rows, block

    def take(self, index: IntArray) -> AnyArray:
        """Return a copy of some of the used rows, standardised, (len(index), n_features).

        Args:
            index: Rows, counted in the order of the blocks, each at most once; in any order.
        """
        if self._in_memory is not None:
            return self._in_memory[index]
        rows = np.empty((len(index), self.n_features), self.dtype)
        wanted, first = np.flatnonzero(self._all_row_image >= 0)[index], 0
        for part in self._parts:
            at = np.flatnonzero((wanted >= first) & (wanted < first + len(part)))
            at = at[np.argsort(wanted[at])]  # HDF5 reads rows in ascending order
            rows[at] = part[wanted[at] - first]
            first += len(part)
        if self._as_they_are:
            return rows
        rows -= self.mean.astype(self.dtype)
        rows *= (1 / self.scale).astype(self.dtype)
        return rows

    def rotated_blocks(self) -> Iterator[tuple[slice, AnyArray]] | None:
        """Return the blocks in the eigenbasis, (m, rank), or None where heads are rotated instead.

        A rotated copy of few rows is small and saves the rotation of the heads on every pass; one
        of many rows would double the memory to save a tenth of a pass.
        """
        if self._in_memory is None or self.n_rows > FEW_ROWS_PER_FEATURE * self.n_features:
            return None
        if self._rotated is None:
            self._rotated = self._in_memory @ self.eigenbasis()[0]
        rotated = self._rotated
        return ((rows, rotated[rows]) for rows in self._block_slices())

    def turned(self, columns: AnyArray) -> FeatureBlocks:
        """Return the used rows times `columns` (n_features, n), in memory or a temporary file."""
        shape = self.n_rows, columns.shape[1]
        fits = self.n_rows * shape[1] * self.dtype.itemsize <= self._memory
        turned = np.empty(shape, self.dtype) if fits else temporary_rows(shape, self.dtype)
        for rows, block in self.blocks():
            turned[rows] = block @ columns
        return FeatureBlocks(
            [turned], self.row_image, standardize=False, memory=0, as_they_are=True
        )

    def eigenbasis(self) -> Basis:
        """Return an orthonormal basis in which the features are nearly uncorrelated.

        Returns:
            A basis of the features' dtype and of rank min(n_rows, n_features), whose columns span
            every row.
        """
        if self._eigenbasis is None:
            few = self.n_rows < self.n_features
            self._eigenbasis = self._row_space_basis() if few else self._sampled_basis()
        return self._eigenbasis

    def _block_slices(self) -> Iterator[slice]:
        for start in range(0, self.n_rows, self._block_rows):
            yield slice(start, min(start + self._block_rows, self.n_rows))

    def _raw_blocks(self) -> Iterator[tuple[slice, AnyArray]]:
        """Yield the features as they were given, perhaps the caller's own memory: read only."""
        first, start = 0, 0
        for part in self._parts:
            for low in range(0, len(part), self._block_rows):
                high = min(low + self._block_rows, len(part))
                is_used = self._all_row_image[first + low : first + high] >= 0
                if not is_used.any():
                    continue
                block = np.asarray(part[low:high], dtype=self.dtype)
                block = block if is_used.all() else block[is_used]
                yield slice(start, start + len(block)), block
                start += len(block)
            first += len(part)

    def _moments(self, standardize: bool) -> tuple[FloatArray, FloatArray]:
        """Return the mean and the scale of each feature.

        Sums run over deviations from the mean of the first block: sums of the features' squares
        would cancel where a mean is large beside its standard deviation.
        """
        total = np.zeros(self.n_features)
        squares = np.zeros(self.n_features)
        origin: AnyArray | None = None
        n_not_finite = 0
        for _, block in self._raw_blocks():
            is_finite = np.isfinite(block.sum(axis=1))
            if not is_finite.all():
                n_not_finite += int((~is_finite).sum())
                continue
            if origin is None:
                origin = block.mean(axis=0, dtype=np.float64)
            deviation = block - origin
            total += deviation.sum(axis=0)
            squares += np.einsum("ij,ij->j", deviation, deviation)
        check_finite(n_not_finite, self.n_rows)
        assert origin is not None
        shift = total / self.n_rows
        deviation = np.sqrt(np.maximum(squares / self.n_rows - shift**2, 0))
        # A constant feature in float32 has a deviation of rounding errors; dividing by it would
        # blow these up to a feature of unit variance.
        is_constant = deviation <= 1e-7 * np.abs(origin + shift)
        scale = np.where(is_constant, 1, deviation) if standardize else np.ones(self.n_features)
        return origin + shift, scale

    def _row_space_basis(self) -> Basis:
        """Return the eigenbasis of fewer rows than features, exactly.

        With X' = S R (QR, S of shape (n_features, n_rows) with orthonormal columns) the covariance
        is X'X / n = S (R R' / n) S', so its eigenvectors are S times those of the small R R' / n.
        """
        rows = np.concatenate([block.astype(np.float64) for _, block in self.blocks()])
        span, triangle = np.linalg.qr(rows.T)
        spectrum, rotation = np.linalg.eigh(triangle @ triangle.T / self.n_rows)
        return Basis((span @ rotation).astype(self.dtype), np.maximum(spectrum, 0))

    def _sampled_basis(self) -> Basis:
        """Return the eigenbasis of the covariance of a sample of the rows: every k-th block.

        A sample is enough: any orthonormal basis leaves the solution as it is, a better one only
        saves iterations of the solver.
        """
        n_blocks = -(-self.n_rows // self._block_rows)
        n_wanted = -(-SAMPLE_ROWS_PER_FEATURE * self.n_features // self._block_rows)
        every = max(1, n_blocks // n_wanted)
        gram, n_seen = np.zeros((self.n_features, self.n_features)), 0
        for index, (_, block) in enumerate(self.blocks()):
            if index % every == 0:
                gram += block.T @ block
                n_seen += len(block)
        spectrum, basis = np.linalg.eigh(gram / n_seen)
        return Basis(np.ascontiguousarray(basis, dtype=self.dtype), np.maximum(spectrum, 0))


def temporary_rows(shape: tuple[int, int], dtype: Any = np.float32) -> AnyArray:
    """Return rows of 0 in a file without a name, which goes when the rows do."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def check_finite(n_not_finite: int, n_rows: int) -> None:
    """Check that all feature rows are finite.

    Args:
        n_not_finite: Number of rows that are not.
        n_rows: Number of rows.

    Raises:
        HeadError: Some are not.
    """
    if n_not_finite:
        raise HeadError(
            f"{n_not_finite:,} of {n_rows:,} feature rows hold NaN or infinity, "
            "as rows of an unfinished cache do; finish it with `hubretrain cache`."
        )
