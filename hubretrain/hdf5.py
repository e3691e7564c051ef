"""HDF5 files: opened so that none leads to another file, and bound by a digest of their bytes.

A file that others are computed from holds its digest in the bytes before the HDF5 itself
(`write_digest_block`), which are compared before the HDF5 library sees any byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hubretrain.errors import first_line
from hubretrain.files import open_regular

if TYPE_CHECKING:
    import h5py

_BLOCK = 2**20

_LONGEST_LINE = 2**24


def write_digest_block(path: Path, n_bytes: int, changing: Sequence[tuple[int, int]] = ()) -> None:
    """Write the digest of a file into its first bytes, as one line of JSON.

    Args:
        path: The file.
        n_bytes: Number of bytes at its start that nothing else uses, enough for the line.
        changing: First byte and length of each part that the digest does not cover.
    """
    block: dict[str, object] = {
        "n_bytes": n_bytes,
        "size": path.stat().st_size,
        "changing": [list(part) for part in changing],
    }
    block["sha256"] = _digest_but(path, block)
    line = json.dumps(block).encode()
    if len(line) >= n_bytes:
        raise ValueError(f"the digest block takes {len(line)} bytes, expected less than {n_bytes}")
    with path.open("r+b") as file:
        file.write(line.ljust(n_bytes - 1) + b"\n")


def digest_block_size(n_changing: int) -> int:
    """Return the bytes before the HDF5 of a file: a power of two, as HDF5 requires.

    Each dataset that changes takes two numbers of at most 20 digits in the block.
    """
    return max(512, 1 << (256 + n_changing * 48).bit_length())


def write_digest_but(path: Path, names: Iterable[str]) -> None:
    """Write the digest block of a closed HDF5 file, which does not cover some of its datasets.

    Args:
        path: The file, made with a user block.
        names: The datasets whose values may change; all are contiguous.
    """
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        stored = [file[name].id for name in names]
        parts = [(d.get_offset(), d.get_storage_size()) for d in stored]
        n_bytes = file.userblock_size
    # HDF5 marks a file that is open for writing, and a kill leaves the mark: the consistency flags
    # of the superblock (HDF5 file format specification, version 0 of the superblock).
    flags = (n_bytes + 20, 4)
    write_digest_block(path, n_bytes, [flags, *sorted(part for part in parts if part[1])])


def check_digest_block(path: Path) -> None:
    """Compare a file with the digest in its first bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It has no such digest, or other bytes.
    """
    with io.BufferedReader(open_regular(path)) as file:
        line = file.readline(_LONGEST_LINE)
    try:
        block = json.loads(line)
        n_bytes, digest = block["n_bytes"], block.pop("sha256")
        is_sound = (
            len(line) == n_bytes
            and block["size"] == path.stat().st_size
            and digest == _digest_but(path, block)
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise ValueError("its first bytes are no digest") from None
    if not is_sound:
        raise ValueError("its bytes are not those that were written")


def _digest_but(path: Path, block: Mapping[str, Any]) -> str:
    """Return the digest of a file without its digest block and the parts that may change."""
    digest = hashlib.sha256(json.dumps(block).encode())
    with path.open("rb") as file:
        position = int(block["n_bytes"])
        for first, n_bytes in [*block["changing"], [block["size"], 0]]:
            file.seek(position)
            left = first - position
            while left > 0 and (data := file.read(min(left, _BLOCK))):
                digest.update(data)
                left -= len(data)
            position = first + n_bytes
    return digest.hexdigest()


def open_hdf5(
    path: Path, mode: Literal["r", "r+"] = "r", *, is_ours: bool = True, locking: bool = True
) -> h5py.File:
    """Open an HDF5 file after checking that reading or writing it touches no other file.

    HDF5 follows links, external storage and virtual data sets to any file of this machine, and
    allocates what a header claims. So there may be none of these, nor references; and in a file of
    ours data sets are contiguous and no larger than the file.

    Args:
        path: The file.
        mode: `r`, or `r+` to write too.
        is_ours: Whether hubretrain wrote it; others may have data sets in chunks.
        locking: Whether HDF5 locks the file.

    Raises:
        OSError: It is missing, damaged, or holds what is refused; the text says what.
    """
    import h5py

    with open_regular(path) as raw:
        n_bytes = os.fstat(raw.fileno()).st_size
    file = h5py.File(path, mode, locking=locking)
    try:
        _check_group(file.id, n_bytes, is_ours)
    except OSError:
        file.close()
        raise
    except Exception as error:  # h5py raises nearly every type on a damaged file
        file.close()
        raise OSError(first_line(error)) from error
    return file


def array_in(group: h5py.Group, name: str, kinds: str, n_axes: int) -> h5py.Dataset:
    """Return a data set of a group of an open HDF5 file, not yet read.

    Args:
        group: The group.
        name: Name of the data set.
        kinds: Kinds that its type may have, letters of `numpy.dtype.kind`; `O` is text.
        n_axes: Number of its axes.

    Raises:
        OSError: It is missing, or not such an array.
    """
    import h5py

    try:
        dataset = group.get(name)
    except Exception as error:  # of a damaged file
        raise OSError(f"{name} cannot be read ({first_line(error)})") from error
    if not isinstance(dataset, h5py.Dataset):
        raise OSError(f"{name} is missing")
    if dataset.dtype.kind not in kinds or len(dataset.shape or ()) != n_axes:
        raise OSError(f"{name} is of type {dataset.dtype} and shape {dataset.shape}")
    return dataset


def _check_group(root: Any, n_bytes: int, is_ours: bool) -> None:
    """Raise OSError where an object below an HDF5 group is not plain data of the file itself."""
    import h5py

    todo, visited = [(root, "")], set()
    while todo:
        group, path = todo.pop()
        address = h5py.h5o.get_info(group).addr
        if address in visited:  # hard links may form a cycle
            continue
        visited.add(address)
        _check_attributes(group, path or "/")
        for name in group:
            inner = f"{path}/{name.decode('utf-8', 'backslashreplace')}"
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise OSError(f"{inner} is a link, not data of this file")
            member = h5py.h5o.open(group, name)
            if isinstance(member, h5py.h5g.GroupID):
                todo.append((member, inner))
            elif isinstance(member, h5py.h5d.DatasetID):
                _check_attributes(member, inner)
                _check_dataset(member, inner, n_bytes, is_ours)
            else:
                raise OSError(f"{inner} is neither a group nor a data set")


def _check_attributes(owner: Any, path: str) -> None:
    import h5py

    for i in range(h5py.h5a.get_num_attrs(owner)):
        attribute = h5py.h5a.open(owner, index=i)
        _check_type(attribute.get_type(), f"the attribute {attribute.name!r} of {path}")


def _check_dataset(dataset: Any, path: str, n_bytes: int, is_ours: bool) -> None:
    import h5py

    created = dataset.get_create_plist()
    layout = created.get_layout()
    if created.get_external_count() or layout == h5py.h5d.VIRTUAL:
        raise OSError(f"{path} is stored in another file")
    kind = dataset.get_type()
    _check_type(kind, path)
    if not is_ours:
        return
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise OSError(f"{path} is stored in chunks")
    needed = math.prod(dataset.shape) * kind.get_size()
    first = (dataset.get_offset() or 0) if layout == h5py.h5d.CONTIGUOUS else 0
    if needed > dataset.get_storage_size() or first + needed > n_bytes:
        raise OSError(f"{path} should have {needed:,} bytes, which the file does not hold")


def _check_type(kind: Any, path: str) -> None:
    """Raise OSError unless a type is of numbers, text and truth values, or columns of these."""
    import h5py

    h5t = h5py.h5t
    if kind.get_class() == h5t.COMPOUND:
        for i in range(kind.get_nmembers()):
            _check_type(kind.get_member_type(i), path)
    elif kind.get_class() not in (h5t.INTEGER, h5t.FLOAT, h5t.STRING, h5t.ENUM):
        raise OSError(f"{path} is neither numbers nor text")
