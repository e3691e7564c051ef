"""ONNX files, read and checked, and the one door to the library `onnx`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from hubretrain.errors import EngineError, ModuleError, first_line
from hubretrain.files import read_regular

__all__ = ["FLOATING", "OLDEST_OPSET", "at_opset", "data_files", "load", "onnx", "opset_of"]

OLDEST_OPSET = 9  # of January 2019, and the oldest that PyTorch has exported since
_LARGEST = 2**31 - 2**20  # bytes that protobuf, and so ONNX, can hold in one message

try:
    import onnx
    from onnx import external_data_helper, version_converter
except ImportError as _error:
    raise EngineError(
        f"ONNX modules need onnx, which is not installed ({_error}); install it with: pip install "
        "'hubretrain[onnx]'"
    ) from None

#: Types of floating numbers, as ONNX numbers types.
FLOATING = (
    *(onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16),
    *(onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16),
)


def load(path: Path, handle: str, *, weights: bool = True) -> Any:
    """Read an ONNX file, with the weights that lie in files beside it.

    Args:
        path: The file.
        handle: What it is called in messages.
        weights: Whether weights in other files are needed.

    Raises:
        ModuleError: It is missing, no ONNX file, damaged, or too large.
    """
    try:
        n_bytes = path.stat().st_size
        if n_bytes > _LARGEST:
            raise _too_large(handle, n_bytes)
        model = onnx.load_model_from_string(read_regular(path, _LARGEST))
    except OSError as error:
        raise ModuleError(f"{handle} cannot be read ({error.strerror}).") from error
    except ModuleError:
        raise
    except Exception as error:  # protobuf has several types, by implementation
        raise ModuleError(
            f"{handle} is no ONNX file, or is truncated ({first_line(error)}); copy or download it "
            "again."
        ) from error
    if not model.graph.node or not model.opset_import:
        raise ModuleError(f"{handle} is no ONNX file, or is truncated: it holds no graph.")
    if opset_of(model) < OLDEST_OPSET:
        raise ModuleError(
            f"{handle} is of opset {opset_of(model)}; expected {OLDEST_OPSET} or later: convert it "
            "by onnx.version_converter."
        )
    if weights and (names := data_files(model, handle)):
        _read_weights(model, path.parent, names, handle)
    return model


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operators that a model is made of."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def at_opset(model: Any, opset: int, name: str) -> Any:
    """Return a model of the operators of a later version, or itself where it is of that.

    Raises:
        ModuleError: onnx cannot convert it.
    """
    if opset_of(model) == opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:  # it raises types of its own
        raise ModuleError(
            f"{name} is of opset {opset_of(model)} and cannot be brought to {opset}, that of the "
            f"other modules ({first_line(error)}); export the network again with opset {opset}, or "
            "the head of one module by `head`."
        ) from error


def data_files(model: Any, handle: str) -> list[str]:
    """Return the names of the files, beside the model's, that hold weights of it.

    Raises:
        ModuleError: One is in another folder than the model or below it.
    """
    names = {
        external_data_helper.ExternalDataInfo(tensor).location
        for tensor in _tensors(model.graph)
        if external_data_helper.uses_external_data(tensor)
    }
    for name in names:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ModuleError(
                f"{handle} has weights in {name!r}, outside of its folder, which is not read; "
                "save it as one file."
            )
    return sorted(names)


def _read_weights(model: Any, folder: Path, names: list[str], handle: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModuleError(
            f"{handle} has weights in {missing[0]}, which is not beside it; copy both."
        )
    n_bytes = sum((folder / name).stat().st_size for name in names)
    if n_bytes > _LARGEST:
        raise _too_large(handle, n_bytes)
    try:
        external_data_helper.load_external_data_for_model(model, str(folder))
    except Exception as error:  # it raises types of its own
        raise ModuleError(
            f"{handle} cannot be read with its weights in {', '.join(names)} "
            f"({first_line(error)}); copy all of it again."
        ) from error


def _too_large(handle: str, n_bytes: int) -> ModuleError:
    return ModuleError(
        f"{handle} holds {n_bytes / 2**30:.1f} GiB; ONNX modules of up to 2 GiB can be run: "
        "compute its features with its own library and take them in by `hubretrain cache import`."
    )


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield all constant tensors of a graph, and of the graphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _tensors(inner)
