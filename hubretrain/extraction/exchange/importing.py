"""Embeddings that another tool computed become a bottleneck file, which `fit` ranks."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hubretrain.arrays import AnyArray, IntArray
from hubretrain.bottlenecks import Attribute, BottleneckWriter, RowIndex
from hubretrain.data import ImageDataset, Quarantine
from hubretrain.errors import CacheError
from hubretrain.extraction.exchange.vectors import Vectors, read_vectors
from hubretrain.extraction.plan import file_name, wanted_rows
from hubretrain.files import StrPath

_BLOCK_ROWS = 4096  # that are written at a time
_SHA256 = re.compile("[0-9a-f]{64}")
# Two vectors of one content may differ by as much as a network run in 16 bits does.
_TOLERANCE = 2.0**-8


@dataclass(frozen=True)
class ImportedModule:
    """Summary of an import.

    Attributes:
        file: The bottleneck file.
        module: The name that the vectors have as a module.
        n_images: Number of distinct image contents in it.
        n_views: Most views of an image.
        n_features: Length of a vector.
        n_left_out: Number of ids that are no image of the data set.
    """

    file: Path
    module: str
    n_images: int
    n_views: int
    n_features: int
    n_left_out: int


def import_vectors(
    dataset: ImageDataset,
    features: StrPath,
    ids: StrPath,
    *,
    name: str | None = None,
    cache: StrPath = "cache",
    id_column: str | None = None,
    vector_column: str | None = None,
    overwrite: bool = False,
) -> ImportedModule:
    """Make a bottleneck file of feature vectors that another tool computed.

    Args:
        dataset: The images.
        features: The vectors; see `read_vectors`, as for the columns.
        ids: A path, as the data set names it or as it is on this machine, or the sha256 of an image
            file, for each vector.
        name: Name of the module to be; by default that of the file.
        cache: The cache folder.
        id_column: Column of the ids.
        vector_column: Column of the vectors.
        overwrite: Whether to replace a file of other vectors.

    Raises:
        CacheError: The vectors cannot be read, an image lacks one or has two, or the cache holds
            others under this name.
        DataError: The table of ids or an image cannot be read.
        LockedError: Another process is writing the file.
    """
    path = Path(features)
    name = path.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise CacheError(
            f"`name` is {name!r}; expected letters, digits, dots, underscores and hyphens."
        )
    vectors = read_vectors(path, str(ids), id_column=id_column, vector_column=vector_column)
    digests = dataset.digests(cache)
    row_of_vector, contents = _contents(vectors, dataset, digests, path)
    rows = wanted_rows(dataset, digests, Quarantine(dataset.cache_folder(cache)), 1)
    position = _positions(vectors, row_of_vector, contents, path)
    rows = _with_views(rows, position, path)
    views, row, chosen = _to_write(rows, position)
    attributes: dict[str, Attribute] = {
        "module": name,
        "handle": f"imported from {path.name}",
        "imported_from": path.name,
        "module_sha256": _digest(rows, vectors.features[chosen], views),
        "image_size": 0,
        "value_range": "[0, 1]",
        "layers": 0,
        "resize": "unknown",
        "engine": "imported",
        "precision": "f32",
        "seed": 0,
    }
    file = dataset.cache_folder(cache) / file_name(name)
    n_features = vectors.features.shape[1]
    with BottleneckWriter(file, rows, n_features, attributes, overwrite=overwrite) as writer:
        todo = np.flatnonzero(writer.todo[row, views])
        for first in range(0, len(todo), _BLOCK_ROWS):
            part = todo[first : first + _BLOCK_ROWS]
            writer.write(views[part].tolist(), row[part].tolist(), vectors.features[chosen[part]])
        writer.seal()
    n_left_out = int((row_of_vector < 0).sum())
    n_views = int(rows.n_views.max(initial=0))
    return ImportedModule(file, name, len(rows), n_views, n_features, n_left_out)


def _contents(
    vectors: Vectors, dataset: ImageDataset, digests: list[str], file: Path
) -> tuple[IntArray, list[str]]:
    """Return the number of each vector's content, -1 for an id that is no image, and the contents.

    Raises:
        CacheError: No id is an image of the data set.
    """
    contents = list(dict.fromkeys(digests))
    number_of = {sha256: number for number, sha256 in enumerate(contents)}
    by_path = {
        path: number_of[sha256]
        for path, sha256 in zip(dataset.images["path"], digests, strict=True)
    }
    root = os.path.abspath(dataset.root)

    def number(id_: str) -> int:
        if id_ in by_path:
            return by_path[id_]
        if _SHA256.fullmatch(id_.lower()):
            return number_of.get(id_.lower(), -1)
        relative = os.path.relpath(os.path.abspath(id_), root).replace(os.sep, "/")
        slashes = id_.replace("\\", "/").removeprefix("./")
        return by_path.get(slashes, by_path.get(relative, -1))

    numbers = np.array([number(id_) for id_ in vectors.ids], dtype=np.int64)
    if (numbers < 0).all():
        raise CacheError(
            f"{file}: none of {len(numbers):,} ids is an image of {dataset.root} (first: "
            f"{vectors.ids[0]!r}); expected paths such as {dataset.images['path'].iloc[0]!r}, or "
            "the sha256 of image files."
        )
    return numbers, contents


def _positions(
    vectors: Vectors, content_of: IntArray, contents: list[str], file: Path
) -> dict[tuple[str, int], int]:
    """Return the position of the vector of each content and view.

    Raises:
        CacheError: A view of a content has two vectors that differ.
    """
    position: dict[tuple[str, int], int] = {}
    for i in np.flatnonzero(content_of >= 0).tolist():
        key = contents[content_of[i]], int(vectors.views[i])
        first = position.setdefault(key, i)
        if first != i and not _same(vectors.features[first], vectors.features[i]):
            names = dict.fromkeys((vectors.ids[first], vectors.ids[i]))
            raise CacheError(
                f"{file} has two different vectors of view {key[1]} of {' and '.join(names)}, "
                "one image; expected one vector for each image file, and ids in their order."
            )
    return position


def _same(first: AnyArray, second: AnyArray) -> bool:
    scale = float(np.abs(first).max())
    return bool(np.abs(first - second).max() <= _TOLERANCE * scale)


def _with_views(rows: RowIndex, position: Mapping[tuple[str, int], int], file: Path) -> RowIndex:
    """Return the rows with the number of views that each has.

    Raises:
        CacheError: An image that can be decoded has no vector, or lacks one below another.
    """
    n_views_of: dict[str, int] = {}
    for sha256, view in position:
        n_views_of[sha256] = max(n_views_of.get(sha256, 0), view + 1)
    n_views = np.array([n_views_of.get(sha256, 0) for sha256 in rows.sha256], dtype=np.int16)
    n_views[rows.n_views == 0] = 0
    lacking = [
        (path, view)
        for path, sha256, n, wanted in zip(
            rows.path, rows.sha256, n_views, rows.n_views, strict=True
        )
        if wanted
        for view in range(max(1, n))
        if (sha256, view) not in position
    ]
    if lacking:
        n_images = len({path for path, _ in lacking})
        path, view = lacking[0]
        raise CacheError(
            f"{file} has no vector of view {view} of {n_images:,} of {len(rows):,} images (first: "
            f"{path}); expected one for each, or take these images out of the data set."
        )
    return replace(rows, n_views=n_views)


def _to_write(
    rows: RowIndex, position: Mapping[tuple[str, int], int]
) -> tuple[IntArray, IntArray, IntArray]:
    """Return view, row and position of each vector to write, ascending by view and row."""
    triples = [
        (view, row, position[rows.sha256[row], view])
        for view in range(int(rows.n_views.max(initial=0)))
        for row in np.flatnonzero(rows.n_views > view).tolist()
    ]
    views, row, chosen = np.array(triples, dtype=np.int64).reshape(-1, 3).T
    return views, row, chosen


def _digest(rows: RowIndex, features: AnyArray, views: IntArray) -> str:
    """Return the sha256 of what was imported: contents in order of path, and their vectors."""
    digest = hashlib.sha256("\n".join(rows.sha256).encode())
    digest.update(np.ascontiguousarray(views).tobytes())
    digest.update(np.ascontiguousarray(features).tobytes())
    return digest.hexdigest()
