"""Views of a bottleneck file, to slice like arrays without holding them in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray, IntArray
from hubretrain.bottlenecks.layout import rows_per_block

_GAP_BYTES = 2**17  # one HDF5 call costs about as much as reading so much that is not needed


class StoredView:
    """One view of every row of a bottleneck file, read as it is sliced.

    It is like an array of shape (n_images, n_features) in the dtype of the file; NaN is still to
    do.

    Args:
        output: The HDF5 dataset of the module's own output.
        inner: That of the inner layers; None where none of their columns are wanted.
        columns: First and stop of each run of its columns that are wanted, ascending.
    """

    def __init__(
        self,
        output: h5py.Dataset,
        inner: h5py.Dataset | None = None,
        columns: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._output, self._inner, self._columns = output, inner, columns
        n_features = int(output.shape[1]) + sum(stop - first for first, stop in columns)
        self.shape = (int(output.shape[0]), n_features)
        self.dtype: np.dtype[Any] = np.dtype(output.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | np.integer[Any] | slice) -> AnyArray:
        """Read a row or a slice of rows."""
        chosen = range(len(self))[rows]
        if isinstance(chosen, int):
            return self.take(np.array([chosen]))[0]
        if chosen.step != 1:
            return self.take(np.array(chosen, dtype=np.int64))
        values = np.empty((len(chosen), self.shape[1]), dtype=self.dtype)
        n_rows = rows_per_block(self.shape[1], self.dtype)
        for first in range(0, len(chosen), n_rows):
            block = values[first : first + n_rows]
            self._read(chosen.start + first, block)
        return values

    def take(self, rows: IntArray, dtype: npt.DTypeLike | None = None) -> AnyArray:
        """Read rows in any order.

        Args:
            rows: Their numbers; one may occur several times.
            dtype: The dtype to return; by default that of the file.
        """
        values = np.empty((len(rows), self.shape[1]), dtype=dtype or self.dtype)
        order = np.argsort(rows, kind="stable")
        for span in self._spans(rows[order]):
            wanted = order[span]
            first, last = int(rows[wanted[0]]), int(rows[wanted[-1]])
            block = np.empty((last - first + 1, self.shape[1]), dtype=self.dtype)
            self._read(first, block)
            values[wanted] = block[rows[wanted] - first]
        return values

    def _spans(self, rows: IntArray) -> Iterator[slice]:
        """Cut ascending row numbers where a gap is wide or where a block is full.

        HDF5's own selections of many rows are far slower than one call for each span.
        """
        n_bytes = max(1, self.shape[1] * self.dtype.itemsize)
        n_rows = rows_per_block(self.shape[1], self.dtype)
        starts = [0, *np.flatnonzero(np.diff(rows) > 1 + _GAP_BYTES // n_bytes) + 1, len(rows)]
        for start, stop in itertools.pairwise(starts):
            while start < stop:
                end = int(np.searchsorted(rows[:stop], rows[start] + n_rows))
                yield slice(start, end)
                start = end

    def _read(self, first: int, values: AnyArray) -> None:
        """Read the rows from `first` on into `values`."""
        last = first + len(values)
        n = int(self._output.shape[1])
        values[:, :n] = self._output[first:last]
        if self._inner is None or not self._columns:
            return
        start = self._columns[0][0]
        span = self._inner[first:last, start : self._columns[-1][1]]
        for left, right in self._columns:
            values[:, n : n + right - left] = span[:, left - start : right - start]
            n += right - left
