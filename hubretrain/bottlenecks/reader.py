"""Reading bottlenecks: an open file, and cached views of chosen images to slice like arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import BoolArray, Float32Array, IntArray
from hubretrain.bottlenecks.layout import (
    AGAIN,
    RowIndex,
    attributes_of,
    blocks_of,
    datasets_of,
    digest_of,
    layers_name,
    open_file,
    seal_of,
    todo_of,
    view_name,
)
from hubretrain.bottlenecks.segments import Segment, layer_names, read_segments
from hubretrain.bottlenecks.views import StoredView
from hubretrain.errors import CacheError

DAMAGED = "its bytes are not those that were written"
_ROWS = 4096  # that are read at a time
Layers: TypeAlias = str | Sequence[str]


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
        segments: Which columns of a feature vector of all layers are which: the module's own
            output, then mean and standard deviation of each inner layer, shallow to deep.

    Several methods take `layers`: `last` is the module's own output; `all` is that and all inner
    layers that are cached; names of inner layers are the output and these, in the file's order.

    Raises:
        CacheError: The file is missing or is no bottleneck file of this version.

    Examples:
        >>> from hubretrain import Bottlenecks
        >>> with Bottlenecks("cache/digits/small.h5") as bottlenecks:
        ...     features = bottlenecks.rows(bottlenecks.sha256s[:100])
        >>> features.shape, features.dtype
        ((100, 5), dtype('float32'))
        >>> with Bottlenecks("cache/digits/small.h5") as bottlenecks:
        ...     features = bottlenecks.view(0, layers="all")[:]
        ...     segments = bottlenecks.segments
        >>> features.shape
        (120, 21)
        >>> [(s.statistic, s.first, s.stop) for s in segments]
        [('output', 0, 5), ('mean', 5, 13), ('standard deviation', 13, 21)]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = open_file(self.path, "r")
        try:
            self.attributes = attributes_of(self._file)
            paths = self._file["images/path"].asstr(errors="surrogateescape")
            self.paths: list[str] = list(paths[:])
            self.sha256s: list[str] = [s.decode() for s in self._file["images/sha256"][:]]
            self.n_views_of: npt.NDArray[np.int16] = self._file["images/n_views"][:]
            n_views = len(self._file["digests"])
            self._views = [self._file[view_name(v)] for v in range(n_views)]
            self.segments: tuple[Segment, ...] = read_segments(self._file)
            n_inner = n_views if self.has_layers else 0
            self._layers = [self._file[layers_name(v)] for v in range(n_inner)]
            self._check_shapes()
            self._check_seal()
        except (KeyError, OSError, TypeError, ValueError) as error:
            self._file.close()
            raise CacheError(f"{self.path} is damaged ({error}); {AGAIN}.") from error
        self._checked: set[str] = set()
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
        """Length of the module's own output."""
        return self.segments[0].stop

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the inner layers whose features are cached, shallow to deep."""
        return layer_names(self.segments)

    @property
    def has_layers(self) -> bool:
        """Whether features of inner layers are cached."""
        return len(self.segments) > 1

    @property
    def lacks_layers(self) -> bool:
        """Whether inner layers were never requested, so that `hubretrain cache` may add them."""
        return not self.has_layers and self.attributes.get("layers", "last") == "last"

    def n_features_of(self, layers: Layers) -> int:
        """Return the length of a feature vector of some layers.

        Raises:
            CacheError: See `view`.
        """
        return self.n_features + sum(stop - first for first, stop in self._columns(layers))

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of all views, and then of their inner layers; '' of what is not finished."""
        names = [digests for _, digests in datasets_of(self._file, 0)]
        return tuple(digest.decode() for name in names for digest in self._file[name][:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """How features are stored: float32 or float16."""
        return np.dtype(self._views[0].dtype)

    @property
    def index(self) -> RowIndex:
        """The file's rows."""
        return RowIndex(tuple(self.paths), tuple(self.sha256s), self.n_views_of)

    def view(self, view: int, layers: Layers = "last") -> StoredView:
        """Return one view of every row, like an array of shape (n_images, n_features_of(layers)).

        Args:
            view: Number of the view.
            layers: `last`, `all`, or names of inner layers; see `Bottlenecks`.

        Returns:
            The view, which is read as it is sliced; NaN is still to do. Its bytes are compared with
            their digest first, once for all calls.

        Raises:
            CacheError: A layer is not in the file, or the view is damaged.
        """
        columns = self._columns(layers)
        for name, digests in self._datasets_of(view, layers):
            self._check(name, digests, view)
        return StoredView(self._views[view], self._layers[view] if columns else None, columns)

    def rows(self, sha256s: Sequence[str], view: int = 0, layers: Layers = "last") -> Float32Array:
        """Read one view of the images with these contents.

        Args:
            sha256s: The contents.
            view: Number of the view.
            layers: `last`, `all`, or names of inner layers; see `Bottlenecks`.

        Returns:
            float32 of shape (len(sha256s), n_features_of(layers)).

        Raises:
            CacheError: A content has no row, or its row is not finished, or a layer is not in the
                file.
        """
        stored = self.view(view, layers)
        try:
            index = np.array([self._row_of[sha256] for sha256 in sha256s], dtype=np.int64)
        except KeyError as error:
            raise CacheError(
                f"{self.path} has no row for an image with sha256 {error.args[0][:12]}; "
                f"{self._how_to_fill()}."
            ) from None
        n_without = int((self.n_views_of[index] <= view).sum())
        if n_without and not view:  # as where the list of them is gone
            raise CacheError(
                f"{self.path} records {n_without} of {len(index)} images as ones that cannot be "
                "decoded, but quarantine.csv beside it does not; run the same `hubretrain cache` "
                "command again."
            )
        if n_without:
            raise CacheError(
                f"{self.path} has no view {view} of {n_without} of {len(index)} images; expected "
                "only images whose `n_views_of` is greater."
            )
        features: Float32Array = stored.take(index, np.float32)
        n_missing = sum(int(np.isnan(block).any(axis=1).sum()) for _, block in blocks_of(features))
        if n_missing:
            raise CacheError(
                f"{self.path}: view {view} is not finished ({n_missing} of {len(index)} images "
                "are still to do); run the same `hubretrain cache` command again."
            )
        if "" in self._digests_of(view, layers):
            raise CacheError(
                f"{self.path}: view {view} is not finished (what wrote it was stopped before its "
                "digest); run the same `hubretrain cache` command again."
            )
        return features

    def check(self, sha256s: Sequence[str], of_view_0: Sequence[str] = ()) -> None:
        """Read all views of some images, and view 0 of others.

        Args:
            sha256s: The contents of the images.
            of_view_0: The contents of the others.

        Raises:
            CacheError: What reading them later would raise.
        """
        layers = "all" if self.has_layers else "last"
        n_views_of = dict(zip(self.sha256s, self.n_views_of.tolist(), strict=True))
        for view in range(self.n_views):
            # View 0 of every image, so that one without a row is an error that says so.
            wanted = [sha256 for sha256 in sha256s if n_views_of.get(sha256, 1) > view or not view]
            wanted += [] if view else of_view_0
            for first in range(0, len(wanted), _ROWS):
                self.rows(wanted[first : first + _ROWS], view, layers)

    def todo(self, layers: Literal["last", "all"] = "all") -> BoolArray:
        """Return which views of which rows are wanted and missing: bool (n_images, n_views).

        Args:
            layers: `last` if a view is finished as soon as the module's own output is.
        """
        return todo_of(self._file, self.n_views_of, output_only=layers == "last")

    def check_module(self, name: str) -> None:
        """Raise where the file holds another module than the one that it is named after.

        Raises:
            CacheError: It does.
        """
        if (module := self.attributes.get("module")) != name:
            raise CacheError(f"{self.path} holds bottlenecks of {module}, not of {name}; {AGAIN}.")

    def verify(self) -> list[str]:
        """Return what is wrong with the file, as sentences; none if it is finished and intact."""
        todo = self.todo().sum(axis=0).tolist()
        again = "run the same `hubretrain cache` command again"
        sentences = [
            f"{view_name(v)}: {n} of {self.n_images} rows to do; {again}"
            for v, n in enumerate(todo)
            if n
        ]
        if "" in self.digests and not sentences:
            sentences = [f"what wrote it was stopped before its digests; {again}"]
        return sentences + [f"{name}: {DAMAGED}; {AGAIN}" for name in self.damaged()]

    def damaged(self) -> list[str]:
        """Return the names of the datasets whose bytes are not those of their digests."""
        return [
            name
            for v in range(self.n_views)
            for name, digests in datasets_of(self._file, v)
            if (stored := self._file[digests][v].decode())
            if stored != digest_of(self._file[name])
        ]

    def _datasets_of(self, view: int, layers: Layers) -> list[tuple[str, str]]:
        """Return the datasets that hold some layers of a view, and those of their digests."""
        return datasets_of(self._file, view)[: 2 if self._columns(layers) else 1]

    def _digests_of(self, view: int, layers: Layers) -> list[str]:
        names = [digests for _, digests in self._datasets_of(view, layers)]
        return [self._file[name][view].decode() for name in names]

    def _check(self, name: str, digests: str, view: int) -> None:
        """Compare a view with its digest, if it is finished and was not compared yet.

        Raises:
            CacheError: They differ.
        """
        stored = self._file[digests][view].decode()
        if stored and name not in self._checked and stored != digest_of(self._file[name]):
            raise CacheError(f"{self.path}: {name}: {DAMAGED}; {AGAIN}.")
        self._checked.add(name)

    def _check_seal(self) -> None:
        """Raise ValueError where numbers of views or digests are not those that were sealed."""
        seal = self._file["seal"][()] if "seal" in self._file else b""
        if seal and seal.decode() != seal_of(self._file):
            raise ValueError("its digests are not those that were written")

    def _how_to_fill(self) -> str:
        """Return what to do about images that the file lacks, a clause."""
        if source := self.attributes.get("imported_from"):
            return (
                f"it was imported from {source}: run `hubretrain cache import` with vectors of all "
                "images and `overwrite`"
            )
        return f"run `hubretrain cache` again for module {self.attributes['module']}"

    def _columns(self, layers: Layers) -> list[tuple[int, int]]:
        """Return the runs of columns of `/layers_NNN` that hold some inner layers, ascending."""
        if layers == "all" and self.lacks_layers:
            raise CacheError(
                f"{self.path} holds features of the last layer alone; run `hubretrain cache` for "
                f"module {self.attributes['module']}, which adds those of inner layers, or choose "
                "`layers` last."
            )
        if isinstance(layers, str):
            if layers not in ("last", "all"):
                raise CacheError(
                    f"`layers` is {layers!r}; expected last, all, or a list of names of layers."
                )
            layers = self.layers if layers == "all" else ()
        if unknown := [name for name in layers if name not in self.layers]:
            raise CacheError(
                f"{self.path} holds no layer {unknown[0]}; it holds "
                f"{', '.join(self.layers) or 'the last layer alone'}."
            )
        runs: list[tuple[int, int]] = []
        for segment in self.segments[1:]:
            if segment.layer in layers:
                first, stop = segment.first - self.n_features, segment.stop - self.n_features
                if runs and runs[-1][1] == first:
                    first = runs.pop()[0]
                runs.append((first, stop))
        return runs

    def _check_shapes(self) -> None:
        """Raise ValueError where a dataset does not have the shape that the others require."""
        n_views = len(self._views)
        expected = {
            "images/n_views": (self.n_images,),
            **{view_name(v): (self.n_images, self.n_features) for v in range(n_views)},
        }
        if self.has_layers:
            n_inner = self.segments[-1].stop - self.n_features
            expected["layer_digests"] = (n_views,)
            expected |= {layers_name(v): (self.n_images, n_inner) for v in range(n_views)}
        for name, shape in expected.items():
            if self._file[name].shape != shape:
                raise ValueError(f"/{name} has shape {self._file[name].shape}, expected {shape}")


class CachedView:
    """One view of some images, to slice like an array (n_images, n_features) of float32.

    It holds no features itself, so heads can be fitted on a cache larger than memory.

    Args:
        bottlenecks: An open bottleneck file.
        sha256s: The contents of the images, in the order of the rows to be.
        view: Number of the view.
        layers: `last`, `all`, or names of inner layers; see `Bottlenecks`.

    Raises:
        CacheError: A layer is not in the file.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        bottlenecks: Bottlenecks,
        sha256s: Sequence[str],
        view: int,
        layers: Layers = "last",
    ) -> None:
        self._bottlenecks, self._sha256s, self._view = bottlenecks, list(sha256s), view
        self._layers = layers
        self.shape = (len(self._sha256s), bottlenecks.n_features_of(layers))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Float32Array:
        """Read a slice of rows.

        Raises:
            CacheError: See `Bottlenecks.rows`.
        """
        return self._bottlenecks.rows(self._sha256s[rows], self._view, self._layers)


def cached_views(
    bottlenecks: Bottlenecks, sha256s: Sequence[str], *, all_views: bool, layers: Layers = "last"
) -> tuple[list[CachedView], IntArray]:
    """Return the cached views of some images, and the image that each row is of.

    An image has as many rows as views were cached of it; images may differ in that.

    Args:
        bottlenecks: An open bottleneck file.
        sha256s: The contents of the images.
        all_views: Whether to take every view; else only view 0.
        layers: `last`, `all`, or names of inner layers; see `Bottlenecks`.

    Raises:
        CacheError: A layer is not in the file.

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
            chosen = [sha256s[i] for i in images.tolist()]
            parts.append(CachedView(bottlenecks, chosen, view, layers))
            image_of.append(images)
    return parts, np.concatenate(image_of)
