"""An open bottleneck file, to read from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain.bottlenecks.layout import attributes_of, digest_of, open_file, todo_of, view_name
from hubretrain.errors import CacheError


class Bottlenecks:
    """An open bottleneck file, to read from.

    Args:
        path: The file.

    Attributes:
        attributes: The root attributes.
        paths: A path of each row's image.
        sha256s: The content that each row belongs to.
        n_views_of: int16 of shape (n_images,), the views of each row; 0: not decodable.

    Raises:
        CacheError: The file is missing or is no bottleneck file of this version.
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
                f"bring it up to date with: hubretrain cache --module {self.attributes['module']}"
            ) from None
        # One read of the span and a gather in memory: HDF5's own selections are far slower.
        first, last = (int(index.min()), int(index.max())) if len(index) else (0, -1)
        features = np.asarray(self._views[view][first : last + 1], dtype=np.float32)[index - first]
        without = int((self.n_views_of[index] <= view).sum())
        if without:
            raise CacheError(
                f"{self.path}: view {view} is not there for {without} of {len(index)} images; "
                "n_views_of says how many each has."
            )
        missing = int(np.isnan(features).any(axis=1).sum())
        if missing:
            raise CacheError(
                f"{self.path}: view {view} is not finished ({missing} of {len(index)} images "
                "are still to do); finish it by running the same hubretrain cache command again."
            )
        return features

    def todo(self) -> npt.NDArray[np.bool_]:
        """Which views of which rows are wanted and not there: bool (n_images, n_views)."""
        return todo_of(self._file, self.n_views_of)

    def verify(self) -> list[str]:
        """What is wrong with the file, a sentence each; empty if it is finished and undamaged."""
        todo = self.todo()
        unfinished = [
            f"{view_name(v)}: {int(todo[:, v].sum())} of {self.n_images} rows to do; run the same "
            "hubretrain cache command again"
            for v in np.flatnonzero(todo.any(axis=0)).tolist()
        ]
        finished = np.flatnonzero(~todo.any(axis=0)).tolist()
        return unfinished + self.damaged(finished, sealed=True)

    def damaged(self, views: Iterable[int], *, sealed: bool = False) -> list[str]:
        """Which of some views do not have the bytes that were written, a sentence each.

        Args:
            views: Numbers of views.
            sealed: A view without a digest is damaged too; otherwise it is not finished.
        """
        wrong = []
        for v in views:
            stored = self._file["digests"][v].decode()
            if (stored or sealed) and stored != digest_of(self._views[v]):
                wrong.append(
                    f"{view_name(v)}: its bytes are not those that were written; remove the file "
                    "and cache again"
                )
        return wrong


class CachedView:
    """One view of some images, to slice like an array (n_images, n_features) of float32.

    Nothing is kept: a cache larger than memory can be fitted on.

    Args:
        bottlenecks: An open bottleneck file.
        sha256s: The contents of the images, in the order that is wanted.
        view: Which view.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bottlenecks: Bottlenecks, sha256s: Sequence[str], view: int) -> None:
        self._bottlenecks, self._sha256s, self._view = bottlenecks, list(sha256s), view
        self.shape = (len(self._sha256s), bottlenecks.n_features)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        """Reads a slice.

        Raises:
            CacheError: A row is missing or not finished; the message says what to do.
        """
        return self._bottlenecks.rows(self._sha256s[rows], self._view)


def cached_views(
    bottlenecks: Bottlenecks, sha256s: Sequence[str], *, all_views: bool
) -> tuple[list[CachedView], npt.NDArray[np.int64]]:
    """The views of some images, one part a view, and the image that each row is of.

    An image has as many rows as views were cached of it; images may differ in that.

    Returns:
        What `fit_path` takes as `features` and `rows`.
    """
    n_views_of = dict(zip(bottlenecks.sha256s, bottlenecks.n_views_of.tolist(), strict=True))
    # View 0 of every image is asked for, so that one without a row is an error that says so.
    n_views = np.array([max(1, n_views_of.get(sha256, 1)) for sha256 in sha256s])
    parts, rows = [], []
    for view in range(bottlenecks.n_views if all_views else 1):
        images = np.flatnonzero(n_views > view)
        if len(images):
            parts.append(CachedView(bottlenecks, [sha256s[i] for i in images.tolist()], view))
            rows.append(images)
    return parts, np.concatenate(rows)
