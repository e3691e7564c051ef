"""The bottleneck file: one module's features of every view of every image, in HDF5.

    /images/path     {n}     UTF-8 strings of fixed length
    /images/sha256   {n}     64 ASCII characters: the image file's bytes, which identify the row
    /images/n_views  {n}     int16: views wanted of the image; 0: it cannot be decoded
    /view_000        {n, d}  float32 (or float16): the module's own output for the images
    /view_001 ...    {n, d}  for augmented views
    /digests         {v}     64 ASCII characters: sha256 of a finished view's rows, '' before
    /layers_000 ...  {n, D}  of each view, mean and standard deviation of inner layers' maps
    /layer_digests   {v}     as `/digests`, of `/layers_NNN`
    /seal            {}      64 ASCII characters: sha256 of `/images/n_views` and the digests of a
                             finished file, '' while it is written
    /segments                columns, layer and statistic; see `hubretrain.bottlenecks.segments`
    root attributes          format, module, image size, seed, ... (see `CONTENT_ATTRIBUTES`)

A file of the last layer alone has no `/layers_NNN`, `/layer_digests` and `/segments`.

Everything is allocated and filled with NaN when the file is made; from then on only raw rows
are written, with a flush after each batch. So a file opens after kill -9 at any moment, and
NaN itself says what is still to do: nothing else records progress, so nothing can disagree.
The bytes before the HDF5 hold the digest of all that never changes, and say where the rest is: so
the HDF5 library, which can loop for ever on damaged bytes, only sees those that were written.
A row is to do if there is NaN in its output or in its inner features, which are written last.
To grow, rows are copied to a new file that is renamed over the old one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain._version import __version__
from hubretrain.arrays import AnyArray, BoolArray
from hubretrain.errors import CacheError
from hubretrain.files import open_regular
from hubretrain.hdf5 import array_in, check_digest_block, open_hdf5, write_digest_but

FORMAT = "hubretrain bottlenecks"
FORMAT_VERSION = 2
OLD_VERSION = 1  # without digest block and seal; paths are of variable length
BLOCK_BYTES = 2**24  # what is read or written of a view at a time, so that memory stays flat
AGAIN = "repair it by `hubretrain cache verify --repair`, then run `hubretrain cache` again"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
Attribute = str | int | float | bool

# Attributes that view 0 depends on; the others (augmentation, seed) concern augmented views alone.
CONTENT_ATTRIBUTES = (
    "module_sha256",
    "image_size",
    "value_range",
    "bits",
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
    """Rows of a bottleneck file: one for each distinct image content.

    Attributes:
        path: One of the files with this content, as the data set names it.
        sha256: Hex digest of the content, distinct.
        n_views: Views wanted of each row, int16; 0 for an image that cannot be decoded.
    """

    path: tuple[str, ...]
    sha256: tuple[str, ...]
    n_views: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.sha256)

    def select(self, kept: Sequence[bool]) -> RowIndex:
        """Return the rows that `kept` marks."""
        paths = tuple(itertools.compress(self.path, kept))
        sha256s = tuple(itertools.compress(self.sha256, kept))
        return RowIndex(paths, sha256s, self.n_views[np.asarray(kept, dtype=bool)])


def bottleneck_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Return the bottleneck files in a folder, sorted.

    Args:
        folder: The folder.
        recursive: Whether to search its subfolders too.

    Raises:
        CacheError: There is none.
    """
    pattern = "[!.]*.h5"  # a leading dot: one that is being rebuilt
    files = sorted(folder.rglob(pattern) if recursive else folder.glob(pattern))
    if not files:
        raise CacheError(f"{folder}/ holds no bottlenecks; run `hubretrain cache` first.")
    return files


def view_name(view: int) -> str:
    """Return the name of the HDF5 dataset that holds one view."""
    return f"view_{view:03d}"


def layers_name(view: int) -> str:
    """Return the name of the HDF5 dataset that holds one view's features of inner layers."""
    return f"layers_{view:03d}"


def datasets_of(file: h5py.File, view: int) -> list[tuple[str, str]]:
    """Return the names of the datasets that hold one view, and of those with their digests."""
    names = [(view_name(view), "digests")]
    if "segments" in file:
        names.append((layers_name(view), "layer_digests"))
    return names


def format_attributes() -> dict[str, Attribute]:
    """Return the root attributes that every bottleneck file of this version has."""
    return {
        "about": "Bottleneck features; rows of /view_NNN are the images of /images. NaN: to do.",
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": f"hubretrain {__version__}",
    }


def open_file(path: Path, mode: Literal["r", "r+"]) -> h5py.File:
    """Open a bottleneck file, whose bytes are checked first but for those of views.

    Raises:
        CacheError: It is missing, damaged, or no bottleneck file of this version or the one before.
    """
    try:
        is_old = is_of_old_format(path)
        if not is_old:
            check_digest_block(path)
        # The lock beside the file keeps writers apart; HDF5's own fails on network file systems.
        file = open_hdf5(path, mode, locking=False)
    except FileNotFoundError:
        raise CacheError(f"{path} does not exist; run `hubretrain cache` to make it.") from None
    except ValueError as error:
        raise CacheError(f"{path} is damaged ({error}); {AGAIN}.") from error
    except OSError as error:
        raise CacheError(f"{path} cannot be opened as HDF5 ({error}); {AGAIN}.") from error
    try:
        attributes = attributes_of(file)
        written = attributes.get("format"), attributes.get("format_version")
        if written != (FORMAT, OLD_VERSION if is_old else FORMAT_VERSION):
            raise CacheError(
                f"{path} is no bottleneck file of format version {FORMAT_VERSION}; "
                "remove it, or choose another `cache` folder."
            )
        _check_types(file)
    except Exception as error:  # h5py raises nearly every type on a damaged file
        file.close()
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"{path} is damaged ({error}); {AGAIN}.") from error
    return file


def _check_types(file: h5py.File) -> None:
    """Raise OSError where a data set is missing, or of another type or number of axes."""
    array_in(file, "images/path", "OS", 1)
    array_in(file, "images/sha256", "S", 1)
    array_in(file, "images/n_views", "i", 1)
    if attributes_of(file)["format_version"] != OLD_VERSION:
        array_in(file, "seal", "S", 0)
    n_views = len(array_in(file, "digests", "S", 1))
    has_layers = "segments" in file
    if has_layers:
        array_in(file, "layer_digests", "S", 1)
    for v in range(n_views):
        for name in [view_name(v), *([layers_name(v)] if has_layers else [])]:
            array_in(file, name, "f", 2)


def is_of_old_format(path: Path) -> bool:
    """Return whether a file is HDF5 from its first byte on, as those of the version before.

    Raises:
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def write_digest(path: Path) -> None:
    """Write the digest block of a file that was just made."""
    with h5py.File(path, "r", locking=False) as file:
        names = [name for v in range(len(file["digests"])) for name, _ in datasets_of(file, v)]
        names += ["digests", "layer_digests", "images/n_views", "seal"]
        changing = [name for name in names if name in file]
    write_digest_but(path, changing)


def write_digests(file: h5py.File, view: int, n_views_of: npt.NDArray[np.int16]) -> None:
    """Write the digests of a view that have none yet, where all that is wanted of it is there."""
    for name, digests in datasets_of(file, view):
        if not file[digests][view] and not _lacks_rows(file[name], n_views_of > view):
            file[digests][view] = digest_of(file[name]).encode()


def _lacks_rows(dataset: h5py.Dataset, wanted: BoolArray) -> bool:
    """Return whether a row that is wanted has a NaN."""
    return any(
        bool(np.isnan(rows[wanted[first : first + len(rows)]]).any())
        for first, rows in blocks_of(dataset)
    )


def empty_views(path: Path, names: Sequence[str]) -> None:
    """Fill datasets of views with NaN and remove their digests, so that they are to do.

    Raises:
        OSError: The file cannot be written.
        RuntimeError: Likewise, as HDF5 reports it.
    """
    with open_file(path, "r+") as file:
        for v in range(len(file["digests"])):
            for name, digests in datasets_of(file, v):
                if name in names:
                    if "seal" in file:
                        file["seal"][()] = b""
                    file[digests][v] = b""
                    file.flush()
                    for first, rows in blocks_of(file[name]):
                        file[name][first : first + len(rows)] = np.nan


def seal_of(file: h5py.File) -> str:
    """Return what `/seal` is to hold: the digest of the number of views and of all digests."""
    digest = hashlib.sha256()
    for name in ("images/n_views", "digests", "layer_digests"):
        if name in file:
            digest.update(file[name][:].tobytes())
    return digest.hexdigest()


def attributes_of(file: h5py.File) -> dict[str, Attribute]:
    """Return the root attributes, as Python's own types."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}


def todo_of(
    file: h5py.File, n_views_of: npt.NDArray[np.int16], *, output_only: bool = False
) -> BoolArray:
    """Return which views of which rows are wanted and not finished: bool (n_images, n_views).

    Args:
        file: An open bottleneck file.
        n_views_of: Views wanted of each row; never more than the file itself wants.
        output_only: Whether a view is finished if the module's own output is.
    """
    n_views = len(file["digests"])
    todo = np.zeros((len(n_views_of), n_views), dtype=bool)
    n_views_of = np.minimum(n_views_of, file["images/n_views"][:] if n_views else 0)
    for v in range(n_views):
        for name, digests in datasets_of(file, v)[: 1 if output_only else None]:
            if not file[digests][v]:
                for first, rows in blocks_of(file[name]):
                    # A row that a kill tore has a NaN left somewhere.
                    todo[first : first + len(rows), v] |= np.isnan(rows).any(axis=1)
    return todo & (np.arange(n_views) < n_views_of[:, None])


def digest_of(dataset: h5py.Dataset) -> str:
    """Return the sha256 of a view's rows, as lower-case hex."""
    digest = hashlib.sha256()
    for _, rows in blocks_of(dataset):
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()


def rows_per_block(n_features: int, dtype: np.dtype[Any]) -> int:
    """Return how many rows of a view make a block of `BLOCK_BYTES`."""
    return max(1, BLOCK_BYTES // max(1, n_features * dtype.itemsize))


def blocks_of(dataset: h5py.Dataset) -> Iterator[tuple[int, AnyArray]]:
    """Yield a view in blocks: the number of the first row, and the rows."""
    n_rows = rows_per_block(dataset.shape[1], dataset.dtype)
    for first in range(0, dataset.shape[0], n_rows):
        yield first, dataset[first : first + n_rows]
