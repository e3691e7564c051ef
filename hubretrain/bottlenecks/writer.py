"""The one writer of a bottleneck file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import Float32Array
from hubretrain.bottlenecks.comparison import check_nothing_lost, compare_file, is_up_to_date
from hubretrain.bottlenecks.layout import (
    Attribute,
    RowIndex,
    digest_of,
    format_attributes,
    open_file,
    todo_of,
    view_name,
)
from hubretrain.bottlenecks.reader import Bottlenecks
from hubretrain.bottlenecks.rebuild import make_file, rebuild_file
from hubretrain.errors import CacheError
from hubretrain.locks import only_writer


class BottleneckWriter:
    """The one writer of a bottleneck file: makes or rebuilds it, then fills it.

    Args:
        path: The file; its folder is made.
        rows: The rows that the file is to hold.
        n_features: Length of a bottleneck.
        attributes: What the features depend on; see `CONTENT_ATTRIBUTES`.
        overwrite: Whether to drop what was computed with other attributes instead of refusing.
        dtype: float32, or float16 to halve the file; by default that of the file, else float32.

    Attributes:
        path: The file.
        rows: The rows that the file holds: `rows`, and views beyond them that it had already.
        todo: Which views of which rows are still to do: bool (n_images, n_views).

    Raises:
        CacheError: The file was made with other attributes, or the disk is full.
        LockedError: Another process is writing it.
        WriteError: The folder cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rows: RowIndex,
        n_features: int,
        attributes: Mapping[str, Attribute],
        *,
        overwrite: bool = False,
        dtype: npt.DTypeLike | None = None,
    ) -> None:
        self.path = Path(path)
        attributes = {**format_attributes(), **attributes}
        with contextlib.ExitStack() as stack:
            stack.enter_context(only_writer(self.path))
            self.rows = _prepare_file(self.path, rows, n_features, attributes, overwrite, dtype)
            self._file = open_file(self.path, "r+")
            self.todo = todo_of(self._file, self.rows.n_views)
            self._lock = stack.pop_all()

    def __enter__(self) -> BottleneckWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock, contextlib.suppress(OSError, RuntimeError):
            self._file.close()  # fails on a full disk, which write() has reported

    def write(self, views: Sequence[int], rows: Sequence[int], features: Float32Array) -> None:
        """Write a batch and flush it, so that a kill loses at most this batch.

        Args:
            views: The view of each feature vector.
            rows: The row of each feature vector.
            features: float32 of shape (len(rows), n_features), finite.

        Raises:
            CacheError: The disk is full, or a feature is beyond the range of float16.
        """
        v, r = np.asarray(views), np.asarray(rows)
        order = np.lexsort((r, v))
        dtype = self._file[view_name(0)].dtype
        v, r, features = v[order], r[order], features[order].astype(dtype)
        if not np.isfinite(features).all():
            raise CacheError(
                f"{self.path}: a feature is beyond the range of {dtype}; cache again with `dtype` "
                "float32 and `overwrite`."
            )
        # Neighbouring rows of a view go in one write: one HDF5 call costs as much as 20 rows.
        breaks = np.flatnonzero((np.diff(v) != 0) | (np.diff(r) != 1)) + 1
        try:
            for start, stop in zip([0, *breaks], [*breaks, len(r)], strict=True):
                self._file[view_name(v[start])][r[start] : r[stop - 1] + 1] = features[start:stop]
            self._file.flush()
            self.todo[r, v] = False
        except (OSError, RuntimeError) as error:
            raise CacheError(
                f"{self.path} cannot be written ({error}); free disk space and rerun the command: "
                "completed work is kept."
            ) from error

    def quarantine(self, row: int) -> None:
        """Mark a row as an image that cannot be decoded: no view of it is wanted."""
        self._file["images/n_views"][row] = 0
        self.todo[row] = False

    def seal(self) -> None:
        """Store the digest of each view that is finished.

        Digests are stored once, by the run that finished the view: storing them again would
        certify damage.
        """
        for v in range(self.todo.shape[1]):
            if not self._file["digests"][v] and not self.todo[:, v].any():
                self._file["digests"][v] = digest_of(self._file[view_name(v)]).encode()
        self._file.flush()


def _prepare_file(
    path: Path,
    rows: RowIndex,
    n_features: int,
    attributes: Mapping[str, Attribute],
    overwrite: bool,
    dtype: npt.DTypeLike | None,
) -> RowIndex:
    """Make the file, or rebuild it where it does not have just these rows and attributes."""
    if not path.exists():
        make_file(path, rows, n_features, attributes, np.dtype(dtype or np.float32))
        return rows
    with Bottlenecks(path) as old:
        stored_dtype = old.dtype if dtype is None else np.dtype(dtype)
        comparison = compare_file(old, rows, attributes, stored_dtype)
        if not is_up_to_date(old, comparison.rows, attributes, stored_dtype):
            if not overwrite:
                check_nothing_lost(old, comparison)
            rebuild_file(old, comparison, n_features, attributes, stored_dtype)
    return comparison.rows


def seal_file(path: Path) -> None:
    """Store the digests of a file that was made whole.

    Raises:
        CacheError: It is no bottleneck file.
        LockedError: Another process is writing it.
    """
    with Bottlenecks(path) as file:
        rows, n_features = file.index, file.n_features
        attributes, dtype = file.attributes, file.dtype
    with BottleneckWriter(path, rows, n_features, attributes, dtype=dtype) as writer:
        writer.seal()
