"""The bottleneck file: one module's features of every view of every image, in HDF5.

::

    /images/path     {n}     UTF-8 strings
    /images/sha256   {n}     64 ASCII characters: the image file's bytes; a row belongs to these
    /images/n_views  {n}     int16: views wanted of the image; 0: it cannot be decoded
    /view_000        {n, d}  float32 (or float16): the images as they are
    /view_001 ...    {n, d}  augmented
    /digests         {v}     64 ASCII characters: sha256 of a finished view's rows, '' before
    root attributes          one attribute each: format, module, image size, seed, ...

Everything is allocated and filled with NaN when the file is made; from then on only raw rows
are written, with a flush after each batch. So a file opens after kill -9 at any moment, and
NaN itself says what is still to do: nothing else records progress, so nothing can disagree.
To grow, rows are copied to a new file that is renamed over the old one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain._version import __version__
from hubretrain.errors import CacheError

FORMAT = "hubretrain bottlenecks"
FORMAT_VERSION = 1
Attribute = str | int | float | bool

# Attributes that view 0 depends on; the others (augmentation, seed) concern augmented views alone.
CONTENT_ATTRIBUTES = (
    "module_sha256",
    "image_size",
    "value_range",
    "resize",
    "engine",
    "precision",
    "batch_size",
    "calibration_images",
    "calibration_sha256",
    "nncf",
    "quantised_sha256",
)


@dataclass(frozen=True)
class RowIndex:
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

    def select(self, kept: Sequence[bool]) -> RowIndex:
        """Only some of the rows."""
        paths = tuple(itertools.compress(self.path, kept))
        sha256s = tuple(itertools.compress(self.sha256, kept))
        return RowIndex(paths, sha256s, self.n_views[np.asarray(kept, dtype=bool)])


def view_name(view: int) -> str:
    """The data set that holds one view."""
    return f"view_{view:03d}"


def format_attributes() -> dict[str, Attribute]:
    """The root attributes that every bottleneck file of this version has."""
    return {
        "about": "Bottleneck features; rows of /view_NNN are the images of /images. NaN: to do.",
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": f"hubretrain {__version__}",
    }


def open_file(path: Path, mode: str) -> h5py.File:
    """Opens a bottleneck file.

    Raises:
        CacheError: It is missing or is no bottleneck file of this version.
    """
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


def attributes_of(file: h5py.File) -> dict[str, Attribute]:
    """The root attributes, as Python's own types."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}


def todo_of(file: h5py.File, n_views_of: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """Wanted and not finished. A row that a kill tore has a NaN left somewhere."""
    n_views = len(file["digests"])
    todo = np.zeros((len(n_views_of), n_views), dtype=bool)
    n_views_of = np.minimum(n_views_of, file["images/n_views"][:] if n_views else 0)
    for v in range(n_views):
        if not file["digests"][v]:
            for first, rows in blocks_of(file[view_name(v)]):
                todo[first : first + len(rows), v] = np.isnan(rows).any(axis=1)
    return todo & (np.arange(n_views) < n_views_of[:, None])


def digest_of(dataset: h5py.Dataset) -> str:
    """The sha256 of a view's rows, as lower-case hex."""
    digest = hashlib.sha256()
    for _, rows in blocks_of(dataset):
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()


def blocks_of(dataset: h5py.Dataset) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Reads a view in blocks of 16 MiB: the number of the first row, and the rows."""
    block = max(1, 2**24 // max(1, dataset.shape[1] * dataset.dtype.itemsize))
    for first in range(0, dataset.shape[0], block):
        yield first, dataset[first : first + block]
