"""The one writer of a bottleneck file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

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
from hubretrain.bottlenecks.rebuild import compare_file, holds, rebuild, refuse_to_lose
from hubretrain.errors import CacheError
from hubretrain.locks import only_writer


class BottleneckWriter:
    """The one writer of a bottleneck file: makes or grows it, then fills it.

    Args:
        path: The file; its folder is made.
        rows: What the file is to hold.
        n_features: Length of a bottleneck.
        attributes: What the features depend on; see `CONTENT_ATTRIBUTES`.
        overwrite: Drop what was computed with other attributes instead of refusing.
        dtype: float32, or float16 to halve the file; by default that of the file, else float32.

    Attributes:
        rows: What the file holds: `rows`, and views beyond them that it had already.
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
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(only_writer(self.path))
        try:
            self.rows = _brought_up(self.path, rows, n_features, attributes, overwrite, dtype)
            self._file = open_file(self.path, "r+")
            self.todo = todo_of(self._file, self.rows.n_views)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> BottleneckWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # A full disk was reported by write() already.
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()
        finally:
            self._lock.close()

    def write(
        self, views: Sequence[int], rows: Sequence[int], features: npt.NDArray[np.float32]
    ) -> None:
        """Writes a batch and flushes it, so that a kill loses at most this batch.

        Args:
            views: The view of each feature vector.
            rows: The row of each feature vector.
            features: float32 of shape (len(rows), n_features), finite.

        Raises:
            CacheError: The disk is full.
        """
        v, r = np.asarray(views), np.asarray(rows)
        order = np.lexsort((r, v))
        stored = self._file[view_name(0)].dtype
        v, r, features = v[order], r[order], features[order].astype(stored)
        if not np.isfinite(features).all():
            raise CacheError(
                f"{self.path}: a feature is beyond the range of {stored}; cache with "
                "--dtype float32 --overwrite."
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
                f"{self.path} cannot be written ({error}); make room and run the same command "
                "again: what is finished is kept."
            ) from error

    def quarantine(self, row: int) -> None:
        """Marks a row as not decodable: nothing of it is wanted."""
        self._file["images/n_views"][row] = 0
        self.todo[row] = False

    def seal(self) -> None:
        """Stores the digest of each view that is finished."""
        for v in range(self.todo.shape[1]):
            if not self._file["digests"][v] and not self.todo[:, v].any():
                self._file["digests"][v] = digest_of(self._file[view_name(v)]).encode()
        self._file.flush()


def _brought_up(
    path: Path,
    rows: RowIndex,
    n_features: int,
    attributes: Mapping[str, Attribute],
    overwrite: bool,
    dtype: npt.DTypeLike | None,
) -> RowIndex:
    """Makes the file, or makes it anew where it does not have just these rows and attributes."""
    if not path.exists():
        rebuild(path, rows, n_features, attributes, np.dtype(dtype or np.float32))
        return rows
    with Bottlenecks(path) as old:
        wide = old.view(0).dtype if dtype is None else np.dtype(dtype)
        found = compare_file(old, rows, attributes, wide)
        if not holds(old, found, attributes, wide):
            if not overwrite:
                refuse_to_lose(old, found)
            rebuild(path, found.rows, n_features, attributes, wide, old, found)
    return found.rows


def seal_file(path: Path) -> None:
    """Stores the digests of a file that was made whole.

    Raises:
        CacheError: It is no bottleneck file.
        LockedError: Another process is writing it.
    """
    with Bottlenecks(path) as made:
        rows = RowIndex(tuple(made.paths), tuple(made.sha256s), made.n_views_of)
        n_features, attributes, dtype = made.n_features, made.attributes, made.view(0).dtype
    with BottleneckWriter(path, rows, n_features, attributes, dtype=dtype) as writer:
        writer.seal()
