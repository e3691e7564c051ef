"""Making a bottleneck file, or making it anew with what can be kept of the one before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.filesize import decimal

from hubretrain.arrays import AnyArray
from hubretrain.bottlenecks.comparison import FileComparison, check_nothing_lost, compare_file
from hubretrain.bottlenecks.layout import (
    Attribute,
    RowIndex,
    empty_views,
    layers_name,
    rows_per_block,
    view_name,
    write_digest,
    write_digests,
)
from hubretrain.bottlenecks.reader import Bottlenecks
from hubretrain.bottlenecks.segments import Segment, output_segment, write_segments
from hubretrain.errors import CacheError, WriteError, first_line
from hubretrain.files import reserve
from hubretrain.hdf5 import digest_block_size
from hubretrain.locks import only_writer

_BYTES_PER_ROW = 128  # at least what HDF5 stores for a row besides its path and features


def make_file(
    path: Path,
    rows: RowIndex,
    n_features: int,
    attributes: Mapping[str, Attribute],
    dtype: np.dtype[Any],
    fill: Callable[[int, int, int, AnyArray], None] | None = None,
    layers: Sequence[Segment] = (),
) -> None:
    """Write a whole bottleneck file beside `path` and move it into place.

    Args:
        path: The file.
        rows: Its rows.
        n_features: Length of the module's own output.
        attributes: Its root attributes.
        dtype: The dtype of its views.
        fill: `fill(view, first, last, values)` puts the features that are known of the rows from
            `first` to `last` into `values`, which is NaN before, of shape (last - first, length of
            the output and of inner layers).
        layers: Segments of the inner layers that it is to hold.

    Raises:
        CacheError: The disk is full, or the folder cannot be written.
    """
    n_views = int(rows.n_views.max(initial=1))
    longest = max((len(os.fsencode(name)) for name in rows.path), default=0)
    block_size = digest_block_size(2 * (n_views + 4))
    n_bytes = len(rows) * (longest + _BYTES_PER_ROW) + block_size + 2**16
    n_all = layers[-1].stop if layers else n_features
    n_bytes += len(rows) * n_views * n_all * dtype.itemsize
    aside = path.with_name(f".{path.name}.new")
    try:
        reserve(aside, n_bytes)
        with h5py.File(aside, "w", locking=False, userblock_size=block_size) as file:
            for name, value in sorted(attributes.items()):
                file.attrs[name] = value
            paths = [os.fsencode(name) for name in rows.path]
            text = h5py.string_dtype("utf-8", max(map(len, paths), default=0) or 1)
            file["images/path"] = np.array(paths, dtype=text)
            file["images/sha256"] = np.array(rows.sha256, dtype="S64")
            file["images/n_views"] = rows.n_views.astype(np.int16)
            file["digests"] = np.zeros(n_views, dtype="S64")
            file["seal"] = np.zeros((), dtype="S64")
            if layers:
                file["layer_digests"] = np.zeros(n_views, dtype="S64")
                write_segments(file, [output_segment(n_features), *layers])
            n_rows = rows_per_block(n_all, dtype)
            for v in range(n_views):
                view = file.create_dataset(view_name(v), (len(rows), n_features), dtype)
                inner = None
                if layers:
                    shape = (len(rows), n_all - n_features)
                    inner = file.create_dataset(layers_name(v), shape, dtype)
                for first in range(0, len(rows), n_rows):
                    last = min(first + n_rows, len(rows))
                    values = np.full((last - first, n_all), np.nan, dtype=dtype)
                    if fill is not None:
                        fill(v, first, last, values)
                    view[first:last] = values[:, :n_features]
                    if inner is not None:
                        inner[first:last] = values[:, n_features:]
                if fill is not None:
                    write_digests(file, v, rows.n_views)
        write_digest(aside)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # HDF5 reports a failed close as the latter
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CacheError(
            f"{path} ({decimal(n_bytes)}) cannot be written ({reason}); free disk space, fix "
            "permissions, choose another `cache` folder, or decrease `n_views`."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def rebuild_file(
    old: Bottlenecks,
    comparison: FileComparison,
    n_features: int,
    attributes: Mapping[str, Attribute],
    dtype: np.dtype[Any],
    path: Path | None = None,
) -> None:
    """Make a file anew, with the rows, views and layers of it that still hold.

    Args:
        old: The file.
        comparison: The file beside what it is to hold.
        n_features: Length of the module's own output; another one than before only if no view is
            kept.
        attributes: Its root attributes to be.
        dtype: Its dtype to be.
        path: Where to make it; by default in the place of the file.

    Raises:
        CacheError: The disk is full, the folder cannot be written, or `old` is damaged.
    """
    kept_views = min(comparison.kept_views, old.n_views)
    rows = comparison.rows
    kept_layers = "all" if old.segments[1:] == comparison.layers != () else "last"

    def copy(view: int, first: int, last: int, values: AnyArray) -> None:
        if view < kept_views:
            from_row = comparison.from_row[first:last]
            kept = np.flatnonzero((from_row >= 0) & (rows.n_views[first:last] > view))
            stored = old.view(view, kept_layers)
            values[kept, : stored.shape[1]] = stored.take(from_row[kept])

    make_file(path or old.path, rows, n_features, attributes, dtype, copy, comparison.layers)


@dataclass(frozen=True)
class Shrinkage:
    """What shrinking drops from a bottleneck file.

    Attributes:
        n_gone: Rows of images that are gone.
        n_before: Most views of an image, before.
        n_after: Most views of an image, after.
        n_bytes: Bytes of bottlenecks that are freed.
    """

    n_gone: int
    n_before: int
    n_after: int
    n_bytes: int


def shrink_file(
    path: Path, present: Set[str], n_views: int | None, *, dry_run: bool
) -> Shrinkage | None:
    """Drop the rows of contents that are gone, and views beyond a number.

    Args:
        path: The file.
        present: The contents that the data set has, by sha256.
        n_views: Number of views of each image to keep; by default all.
        dry_run: Only say what would be dropped.

    Returns:
        What is dropped, or None if nothing is.

    Raises:
        CacheError: The file cannot be written, or it is of another data set.
        LockedError: Another process is writing it.
    """
    with Bottlenecks(path) as old:
        _, shrinkage = _plan_shrinking(old, present, n_views)
    if shrinkage is None or dry_run:
        return shrinkage
    with only_writer(path), Bottlenecks(path) as old:  # it may have grown before the lock
        comparison, shrinkage = _plan_shrinking(old, present, n_views)
        rebuild_file(old, comparison, old.n_features, old.attributes, old.dtype)
    return shrinkage


def _plan_shrinking(
    old: Bottlenecks, present: Set[str], n_views: int | None
) -> tuple[FileComparison, Shrinkage | None]:
    kept = np.array([sha256 in present for sha256 in old.sha256s], dtype=bool)
    rows = replace(old.index, n_views=np.minimum(old.n_views_of, n_views or old.n_views))
    rows = rows.select(kept.tolist())
    # compare_file adds views that the file has beyond those required; here they are to go.
    comparison = replace(compare_file(old, rows, old.attributes), rows=rows)
    if comparison.n_gone == old.n_images > 0:
        check_nothing_lost(old, comparison)
    n_after = int(rows.n_views.max(initial=1))
    if kept.all() and n_after == old.n_views:
        return comparison, None
    n_dropped = old.n_images * old.n_views - len(rows) * n_after
    n_bytes = n_dropped * old.segments[-1].stop * old.dtype.itemsize
    return comparison, Shrinkage(int((~kept).sum()), old.n_views, n_after, n_bytes)


def repair_file(path: Path, module: str) -> list[str]:
    """Take out of a file what is damaged, so that the next run computes it again.

    Args:
        path: The file.
        module: Name of the module that it is to hold.

    Returns:
        What was done, as sentences; none where nothing was damaged.

    Raises:
        LockedError: Another process is writing the file.
        WriteError: It cannot be written.
    """
    then = "run the same `hubretrain cache` command again"
    with only_writer(path):
        try:
            with Bottlenecks(path) as bottlenecks:
                bottlenecks.check_module(module)
                damaged = bottlenecks.damaged()
        except CacheError as error:
            return [_moved_aside(path, error) + f"; {then}"] if path.exists() else [str(error)]
        try:
            empty_views(path, damaged)
        except (OSError, RuntimeError) as error:
            raise _unwritable(path, error) from error
    return [f"{name} was damaged and is empty now; {then}" for name in damaged]


def _moved_aside(path: Path, error: CacheError) -> str:
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, aside)
    except OSError as failure:
        raise _unwritable(path, failure) from failure
    reason = str(error).removeprefix(f"{path} ").partition(";")[0]
    return f"{reason}: moved to {aside.name}"


def _unwritable(path: Path, error: Exception) -> WriteError:
    reason = getattr(error, "strerror", None) or first_line(error)
    return WriteError(f"{path} cannot be written ({reason}); free disk space or fix permissions.")
