"""The one writer of a bottleneck file."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray, Float32Array
from hubretrain.bottlenecks.comparison import check_nothing_lost, compare_file, is_up_to_date
from hubretrain.bottlenecks.layout import (
    Attribute,
    RowIndex,
    datasets_of,
    digest_of,
    format_attributes,
    layers_name,
    open_file,
    seal_of,
    todo_of,
    view_name,
)
from hubretrain.bottlenecks.reader import Bottlenecks
from hubretrain.bottlenecks.rebuild import make_file, rebuild_file
from hubretrain.bottlenecks.segments import Segment, output_segment
from hubretrain.errors import CacheError
from hubretrain.locks import only_writer


class BottleneckWriter:
    """The one writer of a bottleneck file: makes or rebuilds it, then fills it.

    Args:
        path: The file; its folder is made.
        rows: The rows that the file is to hold.
        n_features: Length of the module's own output.
        attributes: What the features depend on; see `CONTENT_ATTRIBUTES`.
        overwrite: Whether to drop what was computed with other attributes instead of refusing.
        dtype: float32, or float16 to halve the file; by default that of the file, else float32.
        layers: Segments of the inner layers that the file is to hold besides the output, see
            `layer_segments`; by default those of the file, else none. A file of the last layer
            alone keeps its output, also while the inner layers of its rows are still to do.
        begin_with: Another bottleneck file, of which a new file takes what holds; none of it where
            it is missing, damaged or was made with other attributes.

    Attributes:
        path: The file.
        segments: Which columns of a feature vector are which.
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
        layers: Sequence[Segment] | None = None,
        begin_with: Path | None = None,
    ) -> None:
        self.path = Path(path)
        attributes = {**format_attributes(), **attributes}
        with contextlib.ExitStack() as stack:
            stack.enter_context(only_writer(self.path))
            self.rows, inner = _prepare_file(
                self.path, rows, n_features, attributes, overwrite, dtype, layers, begin_with
            )
            self.segments = (output_segment(n_features), *inner)
            self._file = open_file(self.path, "r+")
            self._dtype = self._file[view_name(0)].dtype
            self.todo = todo_of(self._file, self.rows.n_views)
            if self.todo.any():
                self._file["seal"][()] = b""
                self._file.flush()
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
            features: Whole vectors, float32 of shape (len(rows), columns of all segments),
                finite.

        Raises:
            CacheError: The disk is full, or a feature is beyond the range of float16.
        """
        if features.shape != (len(rows), self.segments[-1].stop):
            raise ValueError(f"{features.shape} features, expected {self.segments[-1].stop} each")
        v, r = np.asarray(views), np.asarray(rows)
        order = np.lexsort((r, v))
        v, r = v[order], r[order]
        features = self._stored(features[order])
        # Neighbouring rows of a view go in one write: one HDF5 call costs as much as 20 rows.
        breaks = np.flatnonzero((np.diff(v) != 0) | (np.diff(r) != 1)) + 1
        spans = itertools.pairwise([0, *breaks, len(r)])
        runs = [(v[i], slice(r[i], r[j - 1] + 1), slice(i, j)) for i, j in spans]
        n = self.segments[0].stop
        try:
            for names, columns in ((view_name, features[:, :n]), (layers_name, features[:, n:])):
                if columns.shape[1]:
                    for view, to_rows, from_rows in runs:
                        self._file[names(view)][to_rows] = columns[from_rows]
                    # The output before the inner layers: where it stood already, as in a file
                    # that is given layers, their NaN alone says that the row is to do.
                    self._file.flush()
            self.todo[r, v] = False
        except (OSError, RuntimeError) as error:
            raise CacheError(
                f"{self.path} cannot be written ({error}); free disk space and rerun the command: "
                "completed work is kept."
            ) from error

    def _stored(self, features: Float32Array) -> AnyArray:
        """Return features in the dtype of the file.

        Raises:
            CacheError: One is beyond its range.
        """
        with np.errstate(over="ignore"):  # said below
            stored = features.astype(self._dtype, copy=False)
        finite = np.isfinite(stored).all(axis=0)
        if not finite.all():
            column = int(np.argmin(finite))
            (segment,) = (s for s in self.segments if s.first <= column < s.stop)
            raise CacheError(
                f"{self.path}: a feature of layer {segment.layer} is beyond the range of "
                f"{self._dtype}; cache again with `dtype` float32 and `overwrite`."
            )
        return stored

    def quarantine(self, row: int) -> None:
        """Mark a row as an image that cannot be decoded: no view of it is wanted."""
        self._file["images/n_views"][row] = 0
        self.todo[row] = False

    def seal(self) -> None:
        """Store the digest of each view that is finished, and the seal once all are.

        Digests are stored once, by the run that finished the view: storing them again would
        certify damage.
        """
        for v in range(self.todo.shape[1]):
            for name, digests in datasets_of(self._file, v):
                if not self._file[digests][v] and not self.todo[:, v].any():
                    self._file[digests][v] = digest_of(self._file[name]).encode()
        self._file.flush()
        if not self.todo.any() and not self._file["seal"][()]:
            self._file["seal"][()] = seal_of(self._file).encode()
            self._file.flush()


def _prepare_file(
    path: Path,
    rows: RowIndex,
    n_features: int,
    attributes: Mapping[str, Attribute],
    overwrite: bool,
    dtype: npt.DTypeLike | None,
    layers: Sequence[Segment] | None,
    begin_with: Path | None,
) -> tuple[RowIndex, tuple[Segment, ...]]:
    """Make the file, or rebuild it where it does not have just these rows, attributes and layers.

    Returns:
        Its rows and the segments of its inner layers.
    """
    if not path.exists():
        layers = tuple(layers or ())
        stored_dtype = np.dtype(dtype or np.float32)
        if begin_with is not None and begin_with.exists():
            with contextlib.suppress(CacheError), Bottlenecks(begin_with) as other:
                comparison = compare_file(other, rows, attributes, stored_dtype, layers)
                rebuild_file(other, comparison, n_features, attributes, stored_dtype, path)
                return comparison.rows, comparison.layers
        make_file(path, rows, n_features, attributes, stored_dtype, layers=layers)
        return rows, layers
    with Bottlenecks(path) as old:
        stored_dtype = old.dtype if dtype is None else np.dtype(dtype)
        comparison = compare_file(old, rows, attributes, stored_dtype, layers)
        if not is_up_to_date(old, comparison, attributes, stored_dtype):
            if not overwrite:
                check_nothing_lost(old, comparison)
            rebuild_file(old, comparison, n_features, attributes, stored_dtype)
    return comparison.rows, comparison.layers


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
