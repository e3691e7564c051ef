"""The bottleneck file: one module's features of every view of every image, in HDF5.

::

    /images/path     {n}     UTF-8 strings
    /images/sha256   {n}     64 ASCII characters: the image file's bytes; a row belongs to these
    /images/n_views  {n}     int16: views wanted of the image; 0: it cannot be decoded
    /view_000        {n, d}  float32 (or float16): the images as they are
    /view_001 ...    {n, d}  augmented
    /digests         {v}     64 ASCII characters: sha256 of a finished view's rows, '' before
    root attributes          one fact each: format, module, image size, seed, ...

Everything is allocated and filled with NaN when the file is made; from then on only raw rows
are written, with a flush after each batch. So a file opens after kill -9 at any moment, and
NaN itself says what is still to do: nothing else records progress, so nothing can disagree.
To grow, rows are copied to a new file that is renamed over the old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain import __version__
from hubretrain.errors import CacheError
from hubretrain.locks import only_writer

FORMAT = "hubretrain bottlenecks"
FORMAT_VERSION = 1
Fact = str | int | float | bool

# Facts that view 0 depends on; the others (augmentation, seed) concern augmented views alone.
CONTENT_FACTS = ("module_sha256", "image_size", "value_range", "resize", "engine", "precision")


@dataclass(frozen=True)
class Rows:
    """What a bottleneck file is to hold: a row for each distinct image content.

    Attributes:
        path: One of the files with this content, as the data set names it.
        sha256: Hex digest of the content, distinct.
        n_views: Views wanted of each row, int16; 0 for what cannot be decoded.
    """

    path: tuple[str, ...]
    sha256: tuple[str, ...]
    n_views: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.sha256)


class Bottlenecks:
    """An open bottleneck file, to read from.

    Args:
        path: The file.

    Attributes:
        facts: The root attributes.
        paths: A path of each row's image.
        sha256s: The content that each row belongs to.
        n_views_of: int16 of shape (n_images,), the views of each row; 0: not decodable.

    Raises:
        CacheError: The file is missing or is no bottleneck file of this version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path, "r")
        try:
            self.facts = _facts(self._file)
            self.paths: list[str] = list(self._file["images/path"].asstr()[:])
            self.sha256s: list[str] = [s.decode() for s in self._file["images/sha256"][:]]
            self.n_views_of: npt.NDArray[np.int16] = self._file["images/n_views"][:]
            self._views = [self._file[_name(v)] for v in range(len(self._file["digests"]))]
        except (KeyError, OSError) as error:
            self._file.close()
            raise CacheError(
                f"{self.path} is damaged ({error}); remove it and cache again."
            ) from error
        self._row_of = {sha256: row for row, sha256 in enumerate(self.sha256s)}

    def __enter__(self) -> Bottlenecks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def n_images(self) -> int:
        """Rows: distinct image contents."""
        return len(self.sha256s)

    @property
    def n_views(self) -> int:
        """Views that the file has room for."""
        return len(self._views)

    @property
    def n_features(self) -> int:
        """Length of a bottleneck."""
        return int(self._views[0].shape[1])

    def view(self, view: int) -> h5py.Dataset:
        """One view of every row, (n_images, n_features), read as it is sliced."""
        return self._views[view]

    def rows(self, sha256s: Sequence[str], view: int = 0) -> npt.NDArray[np.float32]:
        """One view of the images with these contents, float32 of shape (len(sha256s), n_features).

        Raises:
            CacheError: A content has no row, or its row is not finished.
        """
        try:
            index = np.array([self._row_of[sha256] for sha256 in sha256s], dtype=np.int64)
        except KeyError as error:
            raise CacheError(
                f"{self.path} has no row for an image with sha256 {error.args[0][:12]}; "
                f"bring it up to date with: hubretrain cache --module {self.facts['module']}"
            ) from None
        # One read of the span and a gather in memory: HDF5's own selections are far slower.
        first, last = (int(index.min()), int(index.max())) if len(index) else (0, -1)
        features = np.asarray(self._views[view][first : last + 1], dtype=np.float32)[index - first]
        missing = int(np.isnan(features).any(axis=1).sum())
        if missing:
            raise CacheError(
                f"{self.path}: view {view} is not finished ({missing} of {len(index)} images "
                "are still to do); finish it by running the same hubretrain cache command again."
            )
        return features

    def todo(self) -> npt.NDArray[np.bool_]:
        """Which views of which rows are wanted and not there: bool (n_images, n_views)."""
        return _todo(self._file, self.n_views_of)

    def verify(self) -> list[str]:
        """What is wrong with the file, a sentence each; empty if it is finished and undamaged."""
        wrong = []
        todo = self.todo()
        for v, dataset in enumerate(self._views):
            stored = self._file["digests"][v].decode()
            if todo[:, v].any():
                wrong.append(f"{_name(v)}: {int(todo[:, v].sum())} of {self.n_images} rows to do")
            elif stored != _digest(dataset):
                wrong.append(f"{_name(v)}: its bytes are not those that were written")
        return wrong


class BottleneckWriter:
    """The one writer of a bottleneck file: makes or grows it, then fills it.

    Args:
        path: The file; its folder is made.
        rows: What the file is to hold.
        n_features: Length of a bottleneck.
        facts: What the features depend on; see :data:`CONTENT_FACTS`.
        overwrite: Drop what was computed with other facts instead of refusing.
        dtype: float32, or float16 to halve the file.

    Attributes:
        todo: Which views of which rows are still to do: bool (n_images, n_views).

    Raises:
        CacheError: Another process is writing, the file was made with other facts, the disk is
            full, or the folder cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rows: Rows,
        n_features: int,
        facts: Mapping[str, Fact],
        *,
        overwrite: bool = False,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.path, self.rows = Path(path), rows
        facts = {**_own_facts(), **facts}
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(only_writer(self.path))
        try:
            n_views = int(rows.n_views.max(initial=1))
            if not _holds(self.path, rows, n_views, facts, np.dtype(dtype)):
                _rebuild(self.path, rows, n_views, n_features, facts, overwrite, np.dtype(dtype))
            self._file = _open(self.path, "r+")
            self.todo = _todo(self._file, rows.n_views)
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
        v, r, features = v[order], r[order], features[order]
        # Neighbouring rows of a view go in one write: one HDF5 call costs as much as 20 rows.
        breaks = np.flatnonzero((np.diff(v) != 0) | (np.diff(r) != 1)) + 1
        try:
            for start, stop in zip([0, *breaks], [*breaks, len(r)], strict=True):
                self._file[_name(v[start])][r[start] : r[stop - 1] + 1] = features[start:stop]
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
            if not self.todo[:, v].any():
                self._file["digests"][v] = _digest(self._file[_name(v)]).encode()
        self._file.flush()


def _name(view: int) -> str:
    return f"view_{view:03d}"


def _own_facts() -> dict[str, Fact]:
    return {
        "about": "Bottleneck features; rows of /view_NNN are the images of /images. NaN: to do.",
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": f"hubretrain {__version__}",
    }


def _open(path: Path, mode: str) -> h5py.File:
    try:
        # The lock beside the file keeps writers apart; HDF5's own fails on network file systems.
        file = h5py.File(path, mode, locking=False)
    except FileNotFoundError:
        raise CacheError(f"{path} does not exist; make it with: hubretrain cache") from None
    except OSError as error:
        raise CacheError(
            f"{path} cannot be opened as HDF5 ({error}); remove it and cache again."
        ) from error
    if file.attrs.get("format") != FORMAT or file.attrs.get("format_version") != FORMAT_VERSION:
        file.close()
        raise CacheError(
            f"{path} is no bottleneck file of format version {FORMAT_VERSION}; "
            "remove it, or choose another --cache folder."
        )
    return file


def _facts(file: h5py.File) -> dict[str, Fact]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}


def _todo(file: h5py.File, n_views_of: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """Wanted and not finished. A row that a kill tore has a NaN left somewhere."""
    n_views = len(file["digests"])
    todo = np.zeros((len(n_views_of), n_views), dtype=bool)
    n_views_of = np.minimum(n_views_of, file["images/n_views"][:] if n_views else 0)
    for v in range(n_views):
        if not file["digests"][v]:
            todo[:, v] = np.isnan(file[_name(v)][:]).any(axis=1)
    return todo & (np.arange(n_views) < n_views_of[:, None])


def _digest(dataset: h5py.Dataset) -> str:
    digest = hashlib.sha256()
    block = max(1, 2**24 // max(1, dataset.shape[1] * dataset.dtype.itemsize))
    for start in range(0, dataset.shape[0], block):
        digest.update(np.ascontiguousarray(dataset[start : start + block]).tobytes())
    return digest.hexdigest()


def _holds(
    path: Path, rows: Rows, n_views: int, facts: Mapping[str, Fact], dtype: np.dtype[Any]
) -> bool:
    """Whether the file has exactly these rows, views and facts, so that it needs only filling."""
    if not path.exists():
        return False
    with Bottlenecks(path) as old:
        return (
            old.facts == dict(facts)
            and old.n_views == n_views
            and old.view(0).dtype == dtype
            and old.sha256s == list(rows.sha256)
            and old.paths == list(rows.path)
            and bool(np.all((old.n_views_of == rows.n_views) | (old.n_views_of == 0)))
        )


def _rebuild(
    path: Path,
    rows: Rows,
    n_views: int,
    n_features: int,
    facts: Mapping[str, Fact],
    overwrite: bool,
    dtype: np.dtype[Any],
) -> None:
    """Makes the file, or makes it anew with what can be kept of the one that is there."""
    names = sum(len(name) + 128 for name in rows.path)
    needed = len(rows) * n_views * n_features * dtype.itemsize + names + 2**16
    aside = path.with_name(f".{path.name}.new")
    try:
        _reserve(aside, needed)
        with contextlib.ExitStack() as stack:
            old = stack.enter_context(Bottlenecks(path)) if path.exists() else None
            kept_views = _kept_views(old, rows, facts, overwrite) if old is not None else 0
            new = stack.enter_context(h5py.File(aside, "w", locking=False))
            for name, value in facts.items():
                new.attrs[name] = value
            n_views_of = rows.n_views.astype(np.int16)
            from_row = np.full(len(rows), -1, dtype=np.int64)
            if old is not None and kept_views:
                row_of = {sha256: row for row, sha256 in enumerate(old.sha256s)}
                from_row = np.array([row_of.get(s, -1) for s in rows.sha256], dtype=np.int64)
                undecodable = (from_row >= 0) & (old.n_views_of[from_row] == 0)
                n_views_of = np.where(undecodable, np.int16(0), n_views_of)
            new["images/path"] = np.array(rows.path, dtype=h5py.string_dtype())
            new["images/sha256"] = np.array(rows.sha256, dtype="S64")
            new["images/n_views"] = n_views_of
            new["digests"] = np.zeros(n_views, dtype="S64")
            for v in range(n_views):
                target = new.create_dataset(_name(v), (len(rows), n_features), dtype)
                source = (
                    old.view(v) if old is not None and v < min(kept_views, old.n_views) else None
                )
                _fill(target, source, from_row)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # HDF5 reports a failed close as the latter
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CacheError(
            f"{path} ({needed / 1e6:,.1f} MB) cannot be written ({reason}); make room, mend its "
            "rights, choose another --cache folder, or fewer --views."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _reserve(path: Path, n_bytes: int) -> None:
    """Raises OSError if the disk has no room for so many bytes, before anything is computed."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, n_bytes)


def _kept_views(old: Bottlenecks, rows: Rows, facts: Mapping[str, Fact], overwrite: bool) -> int:
    """How many views of the old file still hold: all, only view 0, or none.

    Raises:
        CacheError: Some do not, and it was not asked to overwrite them.
    """
    ignored = {"about", "written_by", "module", "handle"}  # names; the digest says what it is
    differing = [
        name
        for name in {**old.facts, **facts}
        if name not in ignored and old.facts.get(name) != facts.get(name)
    ]
    foreign = old.n_images > 0 and not set(old.sha256s) & set(rows.sha256)
    remedy = "use another --cache folder, or --overwrite to compute it again."
    if foreign and not overwrite:
        raise CacheError(
            f"{old.path} holds {old.n_images} images of another data set, "
            f"none of this one; {remedy}"
        )
    if differing and not overwrite:
        name = differing[0]
        raise CacheError(
            f"{old.path} was made with {name} = {old.facts.get(name)}, now {facts.get(name)} "
            f"is asked for; {remedy}"
        )
    if any(name in CONTENT_FACTS for name in differing):
        return 0
    return 1 if differing else old.n_views


def _fill(
    target: h5py.Dataset, source: h5py.Dataset | None, from_row: npt.NDArray[np.int64]
) -> None:
    """Writes every row of ``target``: the row of ``source`` that it comes from, else NaN."""
    n_rows, n_features = target.shape
    block = max(1, 2**24 // max(1, n_features * target.dtype.itemsize))
    for start in range(0, n_rows, block):
        index = from_row[start : start + block]
        values = np.full((len(index), n_features), np.nan, dtype=target.dtype)
        kept = np.flatnonzero(index >= 0)
        if source is not None and len(kept):
            first, last = int(index[kept].min()), int(index[kept].max())
            if last - first < 4 * block:
                values[kept] = source[first : last + 1][index[kept] - first]
            else:  # rows from all over: read them one by one, so that memory stays flat
                for i in kept:
                    values[i] = source[int(index[i])]
        target[start : start + len(index)] = values
