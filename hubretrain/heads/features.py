"""Standardised feature rows in blocks, from memory or from disk, and their eigenbasis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.errors import HeadError

Array = npt.NDArray[Any]

BLOCK_BYTES = 1 << 24  # a block of rows stays in the processor's cache between its two products
SAMPLE_ROWS_PER_FEATURE = 16  # rows that the eigenbasis is taken from
FEW_ROWS_PER_FEATURE = 4  # up to so many, turning the heads at each pass costs more than a copy


class FeatureBlocks:
    """Standardised feature rows, in blocks: from memory, or read again on every pass.

    Args:
        parts: Arrays of shape (n_i, n_features) that can be sliced: numpy, memmap, HDF5.
        image: int64 (sum of n_i,), the image of each row; below 0: the row is not used.
        standardize: Divide each feature by its standard deviation over the used rows.
        memory: Bytes that a copy of the standardised rows may take; more is read in blocks.

    Attributes:
        image: int64 (n_rows,), the image of each used row, in the order of the blocks.
        mean: float64 (n_features,) over the used rows.
        scale: float64 (n_features,), the standard deviation; 1 for a constant feature.
        dtype: float64 where all features are, else float32.

    Raises:
        HeadError: A used row is not finite.
    """

    def __init__(
        self, parts: Sequence[Any], image: Array, *, standardize: bool, memory: int
    ) -> None:
        self._parts = parts
        self._all_images = image
        self.image = image[image >= 0]
        self.n_rows, self.n_features = len(self.image), int(parts[0].shape[1])
        whole = all(np.dtype(part.dtype) == np.float64 for part in parts)
        self.dtype: np.dtype[Any] = np.dtype(np.float64 if whole else np.float32)
        row_bytes = self.n_features * self.dtype.itemsize
        self._block_rows = max(64, BLOCK_BYTES // row_bytes)
        self.mean, self.scale = self._moments(standardize)
        self._eigenbasis: tuple[Array, Array] | None = None
        self._turned: Array | None = None
        self._kept: Array | None = None
        if self.n_rows * row_bytes <= memory:
            kept = np.empty((self.n_rows, self.n_features), self.dtype)
            for rows, block in self.blocks():
                kept[rows] = block
            self._kept = kept

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Slices of the used rows with their standardised features, each (m, n_features)."""
        if self._kept is not None:
            for start in range(0, self.n_rows, self._block_rows):
                rows = slice(start, min(start + self._block_rows, self.n_rows))
                yield rows, self._kept[rows]
            return
        mean, stretch = self.mean.astype(self.dtype), (1 / self.scale).astype(self.dtype)
        for rows, raw in self._raw_blocks():
            block = raw - mean
            block *= stretch
            yield rows, block

    def turned_blocks(self) -> Iterator[tuple[slice, Array]] | None:
        """The blocks in the eigenbasis, (m, rank); None where heads had better be turned instead.

        A copy of few rows is small; of many it would double the memory to save a tenth of a pass.
        """
        if self._kept is None or self.n_rows > FEW_ROWS_PER_FEATURE * self.n_features:
            return None
        if self._turned is None:
            self._turned = self._kept @ self.eigenbasis()[0]
        rows = [slice(at, at + self._block_rows) for at in range(0, self.n_rows, self._block_rows)]
        return iter([(one, self._turned[one]) for one in rows])

    def _raw_blocks(self) -> Iterator[tuple[slice, Array]]:
        """The features as they came, perhaps the caller's own memory: not to be written to."""
        first, start = 0, 0
        for part in self._parts:
            for low in range(0, len(part), self._block_rows):
                high = min(low + self._block_rows, len(part))
                used = self._all_images[first + low : first + high] >= 0
                if not used.any():
                    continue
                block = np.asarray(part[low:high], dtype=self.dtype)
                block = block if used.all() else block[used]
                yield slice(start, start + len(block)), block
                start += len(block)
            first += len(part)

    def _moments(self, standardize: bool) -> tuple[Array, Array]:
        """Mean and scale of each feature, float64, by deviations from the first block's mean."""
        total = np.zeros(self.n_features)
        squares = np.zeros(self.n_features)
        origin: Array | None = None
        bad = 0
        for _, block in self._raw_blocks():
            finite = np.isfinite(block.sum(axis=1))
            if not finite.all():
                bad += int((~finite).sum())
                continue
            if origin is None:
                origin = block.mean(axis=0, dtype=np.float64)
            deviation = block - origin
            total += deviation.sum(axis=0)
            squares += np.einsum("ij,ij->j", deviation, deviation)
        if bad:
            raise HeadError(
                f"{bad:,} of {self.n_rows:,} feature rows hold NaN or infinity: "
                "the cache is not finished; finish it with: hubretrain cache"
            )
        assert origin is not None
        shift = total / self.n_rows
        deviation = np.sqrt(np.maximum(squares / self.n_rows - shift**2, 0))
        # float32 features that are constant leave rounding noise behind.
        constant = deviation <= 1e-7 * np.abs(origin + shift)
        scale = np.where(constant, 1, deviation) if standardize else np.ones(self.n_features)
        return origin + shift, scale

    def eigenbasis(self) -> tuple[Array, Array]:
        """An orthonormal basis in which the features are about uncorrelated.

        Returns:
            basis float (n_features, rank) with rank = min(n_rows, n_features), which spans
            every row; and the mean square along each of its columns, float64 (rank,).
        """
        if self._eigenbasis is None:
            self._eigenbasis = self._decomposed()
        return self._eigenbasis

    def _decomposed(self) -> tuple[Array, Array]:
        if self.n_rows < self.n_features:
            rows = np.concatenate([block.astype(np.float64) for _, block in self.blocks()])
            span, triangle = np.linalg.qr(rows.T)
            spectrum, turn = np.linalg.eigh(triangle @ triangle.T / self.n_rows)
            return (span @ turn).astype(self.dtype), np.maximum(spectrum, 0)
        n_blocks = -(-self.n_rows // self._block_rows)
        wanted = -(-SAMPLE_ROWS_PER_FEATURE * self.n_features // self._block_rows)
        every = max(1, n_blocks // wanted)
        gram, n_seen = np.zeros((self.n_features, self.n_features)), 0
        for index, (_, block) in enumerate(self.blocks()):
            if index % every == 0:
                gram += block.T @ block
                n_seen += len(block)
        spectrum, basis = np.linalg.eigh(gram / n_seen)
        return np.ascontiguousarray(basis, dtype=self.dtype), np.maximum(spectrum, 0)
