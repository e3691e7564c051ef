"""Making a bottleneck file, or making it anew with what can be kept of the one that is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain.bottlenecks.layout import CONTENT_ATTRIBUTES, Attribute, RowIndex, view_name
from hubretrain.bottlenecks.reader import Bottlenecks
from hubretrain.errors import CacheError, first_line
from hubretrain.files import reserve
from hubretrain.locks import only_writer

# The digest says which module it is; these say only what it is called and what it costs.
_NAMES = {"about", "written_by", "module", "handle", "n_parameters", "gflops"}


@dataclass(frozen=True)
class FileComparison:
    """A bottleneck file against what is asked of it.

    Attributes:
        from_row: The file's row of each row asked for, int64; -1: it has none.
        n_new: Rows asked for that the file has not.
        n_edited: Those of them whose path the file knows with another content.
        n_gone: Rows of the file that are not asked for.
        differing: Attributes that are not the same: name, the file's, the one asked for.
        kept_views: How many views still hold: all, only view 0, or none.
        rows: What is asked for, and views that the file has finished beyond that.
    """

    from_row: npt.NDArray[np.int64]
    n_new: int
    n_edited: int
    n_gone: int
    differing: tuple[tuple[str, Attribute | None, Attribute | None], ...]
    kept_views: int
    rows: RowIndex

    def of_rows(self, values: npt.NDArray[Any], missing: int) -> npt.NDArray[Any]:
        """What the file has for each row asked for, of one value for each row of the file."""
        found = np.full(len(self.from_row), missing, dtype=values.dtype)
        found[self.from_row >= 0] = values[self.from_row[self.from_row >= 0]]
        return found


def compare_file(
    old: Bottlenecks,
    rows: RowIndex,
    attributes: Mapping[str, Attribute],
    dtype: np.dtype[Any] | None = None,
) -> FileComparison:
    """Says what a bottleneck file has of what is asked for.

    A wider dtype than the file's counts as a attribute that differs: what was rounded stays so.
    """
    row_of = {sha256: row for row, sha256 in enumerate(old.sha256s)}
    from_row = np.array([row_of.get(sha256, -1) for sha256 in rows.sha256], dtype=np.int64)
    known, asked = set(old.paths), set(rows.sha256)
    new = [path for path, row in zip(rows.path, from_row, strict=True) if row < 0]
    differing = differing_attributes(old.attributes, attributes)
    has = old.view(0).dtype
    if dtype is not None and dtype.itemsize > has.itemsize:
        differing = (("dtype", has.name, dtype.name), *differing)
    kept_views = 1 if differing else old.n_views
    if any(name in (*CONTENT_ATTRIBUTES, "dtype") for name, _, _ in differing):
        kept_views = 0
    found = FileComparison(
        from_row,
        n_new=len(new),
        n_edited=sum(path in known for path in new),
        n_gone=sum(sha256 not in asked for sha256 in old.sha256s),
        differing=differing,
        kept_views=kept_views,
        rows=rows,
    )
    n_views = rows.n_views.astype(np.int16)
    if kept_views == old.n_views:
        n_views = np.maximum(n_views, found.of_rows(_finished(old, n_views), 0))
    n_views = np.where(rows.n_views == 0, 0, n_views)  # quarantine.csv alone says what is
    return replace(found, rows=replace(rows, n_views=n_views.astype(np.int16)))


def differing_attributes(
    one: Mapping[str, Attribute], two: Mapping[str, Attribute]
) -> tuple[tuple[str, Attribute | None, Attribute | None], ...]:
    """Return the attributes that bottlenecks depend on and that differ: name, one, two."""
    names = [name for name in {**one, **two} if name not in _NAMES]
    return tuple((n, one.get(n), two.get(n)) for n in names if one.get(n) != two.get(n))


def _finished(old: Bottlenecks, n_views: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Leading views of each row of a file that are there, if some may be beyond those asked for."""
    if old.n_views_of.max(initial=0) <= n_views.min(initial=0):
        return np.zeros_like(old.n_views_of)
    done = ~old.todo() & (np.arange(old.n_views) < old.n_views_of[:, None])
    return np.cumprod(done, axis=1).sum(axis=1).astype(np.int16)


def holds(
    old: Bottlenecks,
    found: FileComparison,
    attributes: Mapping[str, Attribute],
    dtype: np.dtype[Any],
) -> bool:
    """Whether the file has exactly these rows, views and attributes, and needs only filling."""
    rows = found.rows
    return (
        old.attributes == dict(attributes)
        and old.n_views == int(rows.n_views.max(initial=1))
        and old.view(0).dtype == dtype
        and old.sha256s == list(rows.sha256)
        and old.paths == list(rows.path)
        and bool(np.array_equal(old.n_views_of, rows.n_views))
    )


def refuse_to_lose(old: Bottlenecks, found: FileComparison) -> None:
    """Raises where growing the file would drop what was computed with other attributes.

    Raises:
        CacheError: The file is of another data set, or was made with other attributes.
    """
    remedy = "use another --cache folder, or --overwrite to compute it again."
    if old.n_images and found.n_gone == old.n_images:
        raise CacheError(
            f"{old.path} holds {old.n_images} images of another data set, "
            f"none of this one; {remedy}"
        )
    if found.differing:
        name, before, now = found.differing[0]
        raise CacheError(
            f"{old.path} was made with {name} = {before}, now {now} is asked for; {remedy}"
        )


def rebuild(
    path: Path,
    rows: RowIndex,
    n_features: int,
    attributes: Mapping[str, Attribute],
    dtype: np.dtype[Any],
    old: Bottlenecks | None = None,
    found: FileComparison | None = None,
) -> None:
    """Makes the file anew, with those rows of `old` that `found` says hold.

    Raises:
        CacheError: The disk is full, the folder cannot be written, or `old` is damaged.
    """
    if old is not None and found is not None:
        damaged = old.damaged(range(min(found.kept_views, old.n_views)))
        if damaged:
            raise CacheError(f"{path}: {damaged[0]}")

    def rows_of(v: int, first: int, last: int, values: npt.NDArray[Any]) -> None:
        if old is None or found is None or v >= min(found.kept_views, old.n_views):
            return
        index = found.from_row[first:last]
        kept = np.flatnonzero((index >= 0) & (rows.n_views[first:last] > v))
        gather(old.view(v), index[kept], values, kept)

    make(path, rows, n_features, attributes, dtype, rows_of)


def make(
    path: Path,
    rows: RowIndex,
    n_features: int,
    attributes: Mapping[str, Attribute],
    dtype: np.dtype[Any],
    rows_of: Callable[[int, int, int, npt.NDArray[Any]], None],
) -> None:
    """Writes a whole bottleneck file aside and moves it into place.

    Args:
        path: The file.
        rows: Its rows.
        n_features: Length of a bottleneck.
        attributes: Its root attributes.
        dtype: Of the views.
        rows_of: `rows_of(view, first, last, values)` puts what is known of the rows from
            `first` to `last` into `values`, (last - first, n_features), NaN before.

    Raises:
        CacheError: The disk is full, or the folder cannot be written.
    """
    n_views = int(rows.n_views.max(initial=1))
    names = sum(len(name.encode()) + 128 for name in rows.path)
    needed = len(rows) * n_views * n_features * dtype.itemsize + names + 2**16
    aside = path.with_name(f".{path.name}.new")
    try:
        reserve(aside, needed)
        with h5py.File(aside, "w", locking=False) as new:
            for name, value in sorted(attributes.items()):
                new.attrs[name] = value
            new["images/path"] = np.array(rows.path, dtype=h5py.string_dtype())
            new["images/sha256"] = np.array(rows.sha256, dtype="S64")
            new["images/n_views"] = rows.n_views.astype(np.int16)
            new["digests"] = np.zeros(n_views, dtype="S64")
            block = max(1, 2**24 // max(1, n_features * dtype.itemsize))
            for v in range(n_views):
                target = new.create_dataset(view_name(v), (len(rows), n_features), dtype)
                for first in range(0, len(rows), block):
                    last = min(first + block, len(rows))
                    values = np.full((last - first, n_features), np.nan, dtype=dtype)
                    rows_of(v, first, last, values)
                    target[first:last] = values
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # HDF5 reports a failed close as the latter
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CacheError(
            f"{path} ({needed / 1e6:,.1f} MB) cannot be written ({reason}); make room, mend its "
            "rights, choose another --cache folder, or fewer --views."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def gather(
    source: h5py.Dataset,
    index: npt.NDArray[np.int64],
    values: npt.NDArray[Any],
    into: npt.NDArray[np.int64],
) -> None:
    """Puts the rows `index` of a view into the rows `into` of `values`."""
    if not len(index):
        return
    first, last = int(index.min()), int(index.max())
    if last - first < 4 * len(values):
        values[into] = source[first : last + 1][index - first]
    else:  # rows from all over: read them one by one, so that memory stays flat
        for i, row in zip(into.tolist(), index.tolist(), strict=True):
            values[i] = source[row]


@dataclass(frozen=True)
class Shrinking:
    """What a bottleneck file is rid of.

    Attributes:
        n_gone: Rows of images that are gone.
        n_before: Most views of an image, before.
        n_after: And after.
        n_bytes: Room of the bottlenecks that it gives back.
    """

    n_gone: int
    n_before: int
    n_after: int
    n_bytes: int


def shrink_file(
    path: Path, present: Set[str], n_views: int | None, *, dry_run: bool
) -> Shrinking | None:
    """Drops the rows of contents that are gone, and views beyond a number.

    Args:
        path: The file.
        present: The contents that are there.
        n_views: How many views of each image stay; by default all.
        dry_run: Only say what would go.

    Returns:
        What goes, or None if nothing does.

    Raises:
        CacheError: The file cannot be written, or it is of another data set.
        LockedError: Another process is writing it.
    """
    with Bottlenecks(path) as old:
        _, shrinking = _shrunk(old, present, n_views)
    if shrinking is None or dry_run:
        return shrinking
    with only_writer(path), Bottlenecks(path) as old:  # it may have grown before the lock
        found, shrinking = _shrunk(old, present, n_views)
        rebuild(path, found.rows, old.n_features, old.attributes, old.view(0).dtype, old, found)
    return shrinking


def _shrunk(
    old: Bottlenecks, present: Set[str], n_views: int | None
) -> tuple[FileComparison, Shrinking | None]:
    kept = np.array([sha256 in present for sha256 in old.sha256s], dtype=bool)
    views = np.minimum(old.n_views_of, n_views or old.n_views)
    rows = RowIndex(tuple(old.paths), tuple(old.sha256s), views).select(kept.tolist())
    found = replace(compare_file(old, rows, old.attributes), rows=rows)
    if found.n_gone == old.n_images > 0:
        refuse_to_lose(old, found)
    n_after = int(rows.n_views.max(initial=1))
    if kept.all() and n_after == old.n_views:
        return found, None
    of_bytes = old.n_images * old.n_views - len(rows) * n_after
    n_bytes = of_bytes * old.n_features * old.view(0).dtype.itemsize
    return found, Shrinking(int((~kept).sum()), old.n_views, n_after, n_bytes)
