"""Legacy PyTorch state dicts as numpy arrays, read without torch and without running their code.

The format (`torch.save` before PyTorch 1.6, or with `_use_new_zipfile_serialization=False`)
is the one that `_legacy_load` reads in
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py:

    pickle  magic number 0x1950A86A20F9469CFC6C
    pickle  protocol version 1001
    pickle  properties of the system, of which `little_endian` matters
    pickle  the state dict; a tensor is a call of `_rebuild_tensor_v2`, a storage a persistent id
    pickle  the storages' keys, in the order in which their contents follow
    raw     for each key: the number of elements (int64), then the elements

A pickle is a program, so the file is read with an unpickler that knows only what a state dict
needs. The objects that it returns are tuples and strings, which a pickle cannot change afterwards
 (its BUILD instruction sets attributes and calls `__setstate__`).
"""

from __future__ import annotations

import collections
import math
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from hubretrain.errors import ModuleError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

#: What a storage type of torch holds. BFloat16 is missing because numpy has no such dtype.
STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}

_ALLOWED = "only OrderedDict, _rebuild_tensor_v2 and torch's storage types are allowed"


class _Storage(NamedTuple):
    """A run of elements of one type; its contents follow the pickles."""

    key: str
    dtype: str
    n_elements: int


class _Tensor(NamedTuple):
    """A strided view into a storage; offset, size and stride count elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _TensorRebuilder:
    """Stands in for `torch._utils._rebuild_tensor_v2`.

    An object without a `__dict__`, because a pickle could write into a function's.
    """

    __slots__ = ()

    def __call__(
        self, storage: _Storage, offset: int, size: Any, stride: Any, *_autograd: object
    ) -> _Tensor:
        return _Tensor(storage, offset, tuple(size), tuple(stride))


class _StateDictUnpickler(pickle.Unpickler):
    """Unpickler that refuses every name that a state dict does not need."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _TensorRebuilder()
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        wanted = f"{module}.{name}"
        raise ModuleError(
            f"{self._path}: the pickle asks for {wanted!r:.100}, which is refused; {_ALLOWED}."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        # Torch before 0.4 wrote storages that are views of others as a sixth, filled, element.
        if not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage" or pid[5] is not None:
            raise ModuleError(
                f"{self._path}: the pickle refers to {pid!r:.80}; only whole storages, "
                "('storage', type, key, device, number of elements, None), are allowed."
            )
        _, storage_type, key, _, n_elements, _ = pid
        return _Storage(key, STORAGE_DTYPES[storage_type], n_elements)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a legacy PyTorch state dict by name, in the file's order.

    Args:
        path: A `.pth` file in the legacy format, that is, not a zip archive.

    Returns:
        C-contiguous arrays that own their memory, in native byte order and with the file's dtype
        and shape; a scalar has shape `()`. Convolution kernels keep torch's axis order.

    Raises:
        ModuleError: The file is missing, truncated, damaged, in another format, or asks for
            anything but tensors; nothing that it asks for is run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _read_header(file, path)
            state = _unpickle(file, path)
            keys = _unpickle(file, path)
            tensors = _checked_tensors(state, path)
            storages = _read_storages(file, keys, tensors, path)
    except OSError as error:
        raise ModuleError(f"{path}: the weights cannot be read: {error.strerror}.") from error
    return {
        name: _strided_copy(storages[tensor.storage.key], tensor, name, path)
        for name, tensor in tensors.items()
    }


def _unpickle(file: BinaryIO, path: Path) -> Any:
    """Return the next object of the file.

    By its documentation, pickle may raise any exception on damaged data, so all are caught.
    """
    try:
        return _StateDictUnpickler(file, path).load()
    except (ModuleError, OSError):
        raise
    except Exception as error:
        raise ModuleError(
            f"{path}: a pickle of the file is truncated or damaged "
            f"({type(error).__name__}: {error}); download the file again."
        ) from error


def _read_header(file: BinaryIO, path: Path) -> None:
    """Raise unless the file has the legacy header.

    Here and below no message shows an object of the file, because its `repr` may be endless.
    """
    if file.read(4) == b"PK\x03\x04":
        raise ModuleError(
            f"{path}: this is a zip archive, as PyTorch 1.6 and later write; only the legacy "
            "format (_use_new_zipfile_serialization=False) can be read."
        )
    file.seek(0)
    expected = {"magic number": MAGIC_NUMBER, "protocol version": PROTOCOL_VERSION}
    for field, value in expected.items():
        if _unpickle(file, path) != value:
            raise ModuleError(
                f"{path}: the {field} is not {value}; this is not a legacy PyTorch file."
            )
    system = _unpickle(file, path)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ModuleError(f"{path}: the data are not little-endian; no other order can be read.")


def _checked_tensors(state: Any, path: Path) -> dict[str, _Tensor]:
    """Return the tensors of the state dict, their types and counts checked."""
    if not isinstance(state, dict):
        raise ModuleError(f"{path}: holds a {type(state).__name__}; a state dict is expected.")
    # A pickle may have hidden the methods of an OrderedDict behind attributes of its own.
    tensors = dict(dict.items(state))
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ModuleError(
                f"{path}: holds a {type(tensor).__name__} under a {type(name).__name__}; "
                "a state dict holds tensors by their names."
            )
        storage = tensor.storage
        counts = (*tensor.size, *tensor.stride, tensor.offset)
        if (
            not isinstance(storage, _Storage)
            or not isinstance(storage.key, str)
            or not _are_counts((storage.n_elements, *counts))
            or len(tensor.size) != len(tensor.stride)
        ):
            raise ModuleError(f"{path}: the tensor {name} is not described as torch does it.")
    return tensors


def _are_counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _read_storages(
    file: BinaryIO, keys: Any, tensors: Mapping[str, _Tensor], path: Path
) -> dict[str, np.ndarray]:
    """Read the raw storages that follow the pickles: key to flat array."""
    expected = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if any(expected[tensor.storage.key] != tensor.storage for tensor in tensors.values()):
        raise ModuleError(f"{path}: one storage is described in two ways; the file is damaged.")
    are_names = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not are_names or sorted(keys) != sorted(expected):
        raise ModuleError(
            f"{path}: the storages that are listed and those that the tensors use differ; "
            "the file is damaged."
        )
    storages = {key: _read_storage(file, expected[key], path) for key in keys}
    if file.read(1):
        raise ModuleError(f"{path}: bytes follow the last storage; the file is damaged.")
    return storages


def _read_storage(file: BinaryIO, storage: _Storage, path: Path) -> np.ndarray:
    header = file.read(8)
    n_elements = int.from_bytes(header, "little", signed=True)
    if len(header) == 8 and n_elements != storage.n_elements:
        raise ModuleError(
            f"{path}: storage {storage.key} has {n_elements} elements and should have "
            f"{storage.n_elements}; the file is damaged."
        )
    dtype = np.dtype(storage.dtype)
    n_bytes = storage.n_elements * dtype.itemsize
    # Compared before reading, so that an absurd count cannot ask for absurd memory.
    n_left = path.stat().st_size - file.tell()
    if len(header) < 8 or n_left < n_bytes:
        raise ModuleError(
            f"{path}: the file is truncated; storage {storage.key} needs {n_bytes} bytes and "
            f"{n_left} are left; download the file again."
        )
    return np.frombuffer(file.read(n_bytes), dtype=dtype)


def _strided_copy(storage: np.ndarray, tensor: _Tensor, name: str, path: Path) -> np.ndarray:
    """Return the tensor as an array of its own, its extent checked before memory is touched."""
    n_elements = math.prod(tensor.size)
    extent = tensor.offset + 1
    extent += sum((n - 1) * stride for n, stride in zip(tensor.size, tensor.stride, strict=True))
    # A stride of 0 would let a small file ask for a tensor of any size.
    if n_elements and (extent > storage.size or n_elements > storage.size):
        raise ModuleError(
            f"{path}: the tensor {name} reaches outside its storage of {storage.size} elements; "
            "the file is damaged."
        )
    native = storage.dtype.newbyteorder("=")
    try:
        if not n_elements:
            return np.empty(tensor.size, native)
        strides = [stride * storage.itemsize for stride in tensor.stride]
        view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.size, strides)
        return np.array(view, dtype=native, order="C", copy=True)
    except (ValueError, OverflowError) as error:  # more axes or longer ones than numpy can count
        raise ModuleError(f"{path}: the tensor {name} is of no possible shape: {error}.") from error
