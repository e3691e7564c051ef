"""Cached features of chosen images, read from the bottleneck file as they are sliced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hubretrain.bottlenecks import Bottlenecks


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
