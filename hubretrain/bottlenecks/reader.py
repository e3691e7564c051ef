"""Reading bottlenecks: an open file, and cached views of chosen images to slice like arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain.arrays import BoolArray, Float32Array, IntArray
from hubretrain.bottlenecks.layout import (
    RowIndex,
    attributes_of,
    digest_of,
    open_file,
    todo_of,
    view_name,
)
from hubretrain.errors import CacheError


class Bottlenecks:
    """An open bottleneck file, to read from.

    Args:
        path: The file.

    Attributes:
        path: The file.
        attributes: Its root attributes.
        paths: A path of each row's image, relative to the data set.
        sha256s: The content that each row belongs to.
        n_views_of: int16 of shape (n_images,), the views of each row; 0: cannot be decoded.

    Raises:
        CacheError: The file is missing or is no bottleneck file of this version.

    Examples:
        >>> from hubretrain import Bottlenecks
        >>> with Bottlenecks("cache/digits/small.h5") as bottlenecks:
        ...     features = bottlenecks.rows(bottlenecks.sha256s[:100])
        >>> features.shape, features.dtype
        ((100, 5), dtype('float32'))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = open_file(self.path, "r")
        try:
            self.attributes = attributes_of(self._file)
            self.paths: list[str] = list(self._file["images/path"].asstr()[:])
            self.sha256s: list[str] = [s.decode() for s in self._file["images/sha256"][:]]
            self.n_views_of: npt.NDArray[np.int16] = self._file["images/n_views"][:]
            self._views = [self._file[view_name(v)] for v in range(len(self._file["digests"]))]
        except (KeyError, OSError) as error:
            self._file.close()
            raise CacheError(
                f"{self.path} is damaged ({error}); remove it and cache again."
            ) from error
        self._row_of = {sha256: row for row, sha256 in enumerate(self.sha256s)}

    def __enter__(self) -> Bottlenecks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def n_images(self) -> int:
        """Number of rows: distinct image contents."""
        return len(self.sha256s)

    @property
    def n_views(self) -> int:
        """Number of views that the file has room for."""
        return len(self._views)

    @property
    def n_features(self) -> int:
        """Length of a bottleneck."""
        return int(self._views[0].shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """How features are stored: float32 or float16."""
        return np.dtype(self._views[0].dtype)

    @property
    def index(self) -> RowIndex:
        """The file's rows."""
        return RowIndex(tuple(self.paths), tuple(self.sha256s), self.n_views_of)

    def view(self, view: int) -> h5py.Dataset:
        """Return one view of every row, (n_images, n_features), read as it is sliced."""
        return self._views[view]

    def rows(self, sha256s: Sequence[str], view: int = 0) -> Float32Array:
        """Read one view of the images with these contents.

        Args:
            sha256s: The contents.
            view: Number of the view.

        Returns:
            float32 of shape (len(sha256s), n_features).

        Raises:
            CacheError: A content has no row, or its row is not finished.
        """
        try:
            index = np.array([self._row_of[sha256] for sha256 in sha256s], dtype=np.int64)
        except KeyError as error:
            raise CacheError(
                f"{self.path} has no row for an image with sha256 {error.args[0][:12]}; "
                f"run `hubretrain cache` again for module {self.attributes['module']}."
            ) from None
        # One read of the span and a gather in memory: HDF5's own selections are far slower.
        first, last = (int(index.min()), int(index.max())) if len(index) else (0, -1)
        features = np.asarray(self._views[view][first : last + 1], dtype=np.float32)[index - first]
        n_without = int((self.n_views_of[index] <= view).sum())
        if n_without:
            raise CacheError(
                f"{self.path} has no view {view} of {n_without} of {len(index)} images; expected "
                "only images whose `n_views_of` is greater."
            )
        n_missing = int(np.isnan(features).any(axis=1).sum())
        if n_missing:
            raise CacheError(
                f"{self.path}: view {view} is not finished ({n_missing} of {len(index)} images "
                "are still to do); run the same `hubretrain cache` command again."
            )
        return features

    def todo(self) -> BoolArray:
        """Return which views of which rows are wanted and missing: bool (n_images, n_views)."""
        return todo_of(self._file, self.n_views_of)

    def verify(self) -> list[str]:
        """Return what is wrong with the file, as sentences; none if it is finished and intact."""
        todo = self.todo()
        unfinished = [
            f"{view_name(v)}: {int(todo[:, v].sum())} of {self.n_images} rows to do; run the same "
            "`hubretrain cache` command again"
            for v in np.flatnonzero(todo.any(axis=0)).tolist()
        ]
        finished = np.flatnonzero(~todo.any(axis=0)).tolist()
        return unfinished + self.damaged(finished, sealed=True)

    def damaged(self, views: Iterable[int], *, sealed: bool = False) -> list[str]:
        """Return a sentence for each view whose bytes are not those that were written.

        Args:
            views: Numbers of the views to check.
            sealed: Whether a view without a digest is damaged too; else it is not finished.
        """
        sentences = []
        for v in views:
            stored = self._file["digests"][v].decode()
            if (stored or sealed) and stored != digest_of(self._views[v]):
                sentences.append(
                    f"{view_name(v)}: its bytes are not those that were written; remove the file "
                    "and cache again"
                )
        return sentences


class CachedView:
    """One view of some images, to slice like an array (n_images, n_features) of float32.

    It holds no features itself, so heads can be fitted on a cache larger than memory.

    Args:
        bottlenecks: An open bottleneck file.
        sha256s: The contents of the images, in the order of the rows to be.
        view: Number of the view.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bottlenecks: Bottlenecks, sha256s: Sequence[str], view: int) -> None:
        self._bottlenecks, self._sha256s, self._view = bottlenecks, list(sha256s), view
        self.shape = (len(self._sha256s), bottlenecks.n_features)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Float32Array:
        """Read a slice of rows.

        Raises:
            CacheError: See `Bottlenecks.rows`.
        """
        return self._bottlenecks.rows(self._sha256s[rows], self._view)


def cached_views(
    bottlenecks: Bottlenecks, sha256s: Sequence[str], *, all_views: bool
) -> tuple[list[CachedView], IntArray]:
    """Return the cached views of some images, and the image that each row is of.

    An image has as many rows as views were cached of it; images may differ in that.

    Args:
        bottlenecks: An open bottleneck file.
        sha256s: The contents of the images.
        all_views: Whether to take every view; else only view 0.

    Returns:
        One `CachedView` per view, and for each of their rows, one after another, the position of
        its image in `sha256s`.
    """
    n_views_of = dict(zip(bottlenecks.sha256s, bottlenecks.n_views_of.tolist(), strict=True))
    # View 0 of every image is read, so that an image without a row is an error that says so.
    n_views = np.array([max(1, n_views_of.get(sha256, 1)) for sha256 in sha256s])
    parts, image_of = [], []
    for view in range(bottlenecks.n_views if all_views else 1):
        images = np.flatnonzero(n_views > view)
        if len(images):
            parts.append(CachedView(bottlenecks, [sha256s[i] for i in images.tolist()], view))
            image_of.append(images)
    return parts, np.concatenate(image_of)
