"""What images an ONNX network takes: from its graph, its metadata, a file beside it, and options.

What none of them says is an error that tells what to set; nothing is guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubretrain.errors import ModuleError, first_line
from hubretrain.files import read_regular
from hubretrain.modules.onnx.graphs import FLOATING, onnx
from hubretrain.modules.onnx.handles import CONFIG, LAYOUTS, ORDERS, OnnxHandle

_IMAGENET: dict[str, Any] = {
    "value_range": (0.0, 1.0),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_LEVELS = 255.0
# https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md
_RANGES = {
    "nominalrange_0_255": (0.0, _LEVELS),
    "normalized_0_1": (0.0, 1.0),
    "normalized_1_1": (-1.0, 1.0),
}


@dataclass(frozen=True)
class Facts:
    """What a source tells about an input; None and () where it is silent.

    Attributes:
        image_size: Height and width, pixels.
        value_range: What black and white become.
        mean: What is subtracted then, for each channel or for all.
        std: By what is divided then.
        layout: `NCHW` or `NHWC`.
        channels: `RGB` or `BGR`.
    """

    image_size: int | None = None
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = ""
    channels: str = ""

    def over(self, other: Facts) -> Facts:
        """Return these facts, those of another source where these are silent."""
        names = ("image_size", "value_range", "mean", "std", "layout", "channels")
        return Facts(**{name: getattr(self, name) or getattr(other, name) for name in names})


@dataclass(frozen=True)
class ImageInput:
    """How RGB images in [0, 1] become the input of a network.

    Attributes:
        name: Name of the input in the graph.
        dtype: Its type, as ONNX numbers types.
        image_size: Height and width, pixels.
        value_range: What black and white become.
        mean: What is subtracted then, for each channel as the network takes them, or for all.
        std: By what is divided then.
        layout: `NCHW` or `NHWC`.
        channels: `RGB`, `BGR` or `grey`.
        one_by_one: Whether it takes one image at a time only.
    """

    name: str
    dtype: int
    image_size: int
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NHWC"
    channels: str = "RGB"
    one_by_one: bool = False

    @property
    def takes_levels(self) -> bool:
        """Whether its numbers are whole."""
        return self.dtype not in FLOATING

    def notes(self) -> list[str]:
        """Return what is done to images, clauses; none where they are taken as they are."""
        changes = []
        if self.channels != "RGB":
            changes.append("made grey" if self.channels == "grey" else "put into BGR")
        if self.value_range != (0.0, 1.0):
            low, high = self.value_range
            changes.append(f"brought to [{low:g}, {high:g}]")
        if (self.mean, self.std) != ((0.0,), (1.0,)):
            mean, std = (",".join(f"{v:g}" for v in of) for of in (self.mean, self.std))
            changes.append(f"standardised by mean {mean} and deviation {std}")
        if self.dtype != onnx.TensorProto.FLOAT:
            changes.append(f"cast to {_type_name(self.dtype)}")
        if self.layout == "NCHW":
            changes.append("put into NCHW")
        notes = [f"images are {', '.join(changes)}"] if changes else []
        if self.one_by_one:
            notes.append("it is run image by image, which is slow")
        return notes


_WHOLE = {
    *(onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.UINT16),
    *(onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.UINT32),
    *(onnx.TensorProto.INT64, onnx.TensorProto.UINT64),
}


def image_input(model: Any, handle: OnnxHandle, config: Mapping[str, Any] | None) -> ImageInput:
    """Return what images a network takes.

    Options come first, then what the graph fixes, a `preprocessor_config.json`, and the metadata.

    Args:
        model: The network.
        handle: The options.
        config: Contents of a `preprocessor_config.json` beside the file; None where there is none.

    Raises:
        ModuleError: It takes no images, or others than square RGB or grey ones, or something is
            neither said nor given.
    """
    given = _tensor_input(model, handle)
    tensor = given.type.tensor_type
    shape = [d.dim_value or None for d in tensor.shape.dim] if tensor.HasField("shape") else None
    facts = Facts(
        *(handle.image_size, handle.value_range, handle.mean, handle.std),
        *(handle.layout, handle.channels),
    )
    facts = facts.over(_of_config(config or {}, handle)).over(_of_metadata(model, handle))
    n, axes, layout = _axes(shape or [None] * 4, facts.layout, handle)
    channels, height, width = axes
    size = _size(height, width, facts.image_size, handle)
    found = ImageInput(
        given.name,
        tensor.elem_type,
        size,
        layout=layout,
        channels="grey" if channels == 1 else facts.channels or "RGB",
        one_by_one=n == 1,
    )
    _check_values(facts, 1 if channels == 1 else 3, handle)
    if found.takes_levels:
        if facts.mean or facts.std:
            raise ModuleError(
                f"{handle.source} takes whole numbers ({_type_name(found.dtype)}), so it "
                "standardises its input itself; leave out `mean` and `std`."
            )
        return replace(found, value_range=facts.value_range or (0.0, _LEVELS))
    if not (facts.value_range or facts.mean or facts.std):
        raise ModuleError(
            f"{handle.source} does not say which values its input takes, nor does a {CONFIG} "
            "beside it; set `value_range`, such as 0 1, and `mean` and `std` where it has them, or "
            f"name it as '{replace(handle, **_IMAGENET)}', which is right for most networks from "
            "PyTorch."
        )
    return replace(
        found,
        value_range=facts.value_range or (0.0, 1.0),
        mean=facts.mean or (0.0,),
        std=facts.std or (1.0,),
    )


def _check_values(facts: Facts, n_channels: int, handle: OnnxHandle) -> None:
    """Raise unless mean and deviation are one number or one for each channel."""
    for name, values in (("mean", facts.mean), ("std", facts.std)):
        if len(values) not in (0, 1, n_channels):
            raise ModuleError(
                f"{handle.source} takes images of {n_channels} channels, but `{name}` holds "
                f"{len(values)} numbers; expected one, or one for each channel."
            )
    if any(not 0 < value < math.inf for value in facts.std):
        raise ModuleError(f"{handle.source}: `std` holds {min(facts.std):g}; expected more than 0.")


def _tensor_input(model: Any, handle: OnnxHandle) -> Any:
    """Return the one input that may be images."""
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = [given for given in model.graph.input if given.name not in constant]
    if len(inputs) != 1:
        names = ", ".join(f"{given.name} {_described(given)}" for given in inputs) or "none"
        raise ModuleError(
            f"{handle.source} takes {len(inputs)} inputs ({names}); expected one, of images."
        )
    (given,) = inputs
    tensor = given.type.tensor_type
    kind = tensor.elem_type if given.type.HasField("tensor_type") else None
    if kind == onnx.TensorProto.STRING:
        raise ModuleError(
            f"{handle.source} takes strings, so it is a text module or decodes image files itself; "
            "expected a module of images."
        )
    rank = len(tensor.shape.dim) if tensor.HasField("shape") else None
    if kind not in {*FLOATING, *_WHOLE} or rank not in (None, 4):
        raise ModuleError(
            f"{handle.source} takes {_described(given)}; expected a module of images."
        )
    return given


def _described(value: Any) -> str:
    """Return type and shape of an input or output, in words."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"of type {str(kind).removesuffix('_type')}"
    tensor = value.type.tensor_type
    dims = [str(d.dim_value or d.dim_param or "?") for d in tensor.shape.dim]
    return f"{_type_name(tensor.elem_type)} of shape ({', '.join(dims)})"


def _type_name(dtype: int) -> str:
    return str(onnx.TensorProto.DataType.Name(dtype)).lower()


def _axes(
    shape: list[int | None], layout: str, handle: OnnxHandle
) -> tuple[int | None, tuple[int | None, int | None, int | None], str]:
    """Return number of images, (channels, height, width) and layout of the input."""
    n, *axes = shape
    if not layout:
        first, last = axes[0] in (1, 3), axes[2] in (1, 3)
        if first == last:
            raise ModuleError(
                f"{handle.source} does not say whether it takes channels first or last; set "
                "`layout`, NCHW or NHWC."
            )
        layout = "NCHW" if first else "NHWC"
    channels, height, width = axes if layout == "NCHW" else (axes[2], axes[0], axes[1])
    if channels not in (None, 1, 3):
        raise ModuleError(
            f"{handle.source} takes images of {channels} channels; expected 3, RGB, or 1, grey."
        )
    if n not in (None, 1):
        raise ModuleError(
            f"{handle.source} takes exactly {n} images at a time; expected any number, or one: "
            "export it again with a dynamic batch axis."
        )
    return n, (channels, height, width), layout


def _size(height: int | None, width: int | None, size: int | None, handle: OnnxHandle) -> int:
    if None not in (height, width) and height != width:
        raise ModuleError(
            f"{handle.source} takes images of height {height} and width {width}, pixels; expected "
            "a square, which every view is: export it again for one, or for any size."
        )
    fixed = height or width
    if fixed and handle.image_size and handle.image_size != fixed:
        raise ModuleError(
            f"{handle.source} takes images of {fixed} x {fixed} pixels, not of "
            f"{handle.image_size} x {handle.image_size}; leave out `image_size`."
        )
    if not (fixed or size):
        raise ModuleError(
            f"{handle.source} takes images of any size; set `image_size`, such as 224."
        )
    return int(fixed or size or 0)


def _of_metadata(model: Any, handle: OnnxHandle) -> Facts:
    """Return what `metadata_props` say: ONNX's own keys of images, or mean, std and the like."""
    props = {p.key.lower(): p.value for p in model.metadata_props}
    values = {
        name: _listed(props[key], handle.source, key)
        for name, keys in (("mean", ("mean", "image_mean")), ("std", ("std", "image_std")))
        for key in keys
        if key in props
    }
    layout, order = (props.get(key, "").upper() for key in ("layout", "channels"))
    pixels = props.get("image.bitmappixelformat", "").lower()
    if not order and pixels.startswith(("rgb", "bgr")):
        order = pixels[:3].upper()
    value_range = _RANGES.get(props.get("image.nominalpixelrange", "").lower())
    if "value_range" in props:
        ends = _listed(props["value_range"], handle.source, "value_range")
        value_range = (ends[0], ends[-1])
    return Facts(
        None,
        value_range,
        values.get("mean", ()),
        values.get("std", ()),
        layout if layout in LAYOUTS else "",
        order if order in ORDERS else "",
    )


def _listed(text: Any, where: str, key: str) -> tuple[float, ...]:
    """Return one to three numbers that a list, or its text, holds."""
    try:
        values = json.loads(f"[{text.strip(' []()')}]") if isinstance(text, str) else text
        numbers = tuple(float(v) for v in (values if isinstance(values, list) else [values]))
        if len(numbers) not in (1, 2, 3):
            raise ValueError(f"{len(numbers)} numbers")
    except (TypeError, ValueError) as error:
        raise ModuleError(
            f"{where}: {key} is {str(text)[:60]!r} ({first_line(error)}); expected numbers for "
            "each channel."
        ) from error
    return numbers


def read_config(path: Path) -> dict[str, Any]:
    """Return the contents of a `preprocessor_config.json`.

    Raises:
        ModuleError: It cannot be read.
    """
    try:
        config = json.loads(read_regular(path))
        if not isinstance(config, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise ModuleError(
            f"{path} cannot be read ({first_line(error)}); fix it, or remove it and give what it "
            "holds as options."
        ) from error
    return config


def _of_config(config: Mapping[str, Any], handle: OnnxHandle) -> Facts:
    """Return what a Hugging Face configuration says; an image is `x * rescale_factor` first.

    https://huggingface.co/docs/transformers/main_classes/image_processor; what it says of
    cropping is not followed: a view is the whole image, see `docs/modules.md`.
    """
    if not config:
        return Facts()
    where = f"{CONFIG} of {handle.source}"
    factor, scales = config.get("rescale_factor", 1 / _LEVELS), config.get("do_rescale", True)
    if not isinstance(factor, int | float) or factor <= 0:
        raise ModuleError(f"{where}: rescale_factor is {factor!r}; expected a number above 0.")
    value_range = (0.0, round(_LEVELS * factor, 9) if scales else _LEVELS)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if config.get("do_normalize", "image_mean" in config):
        mean = _listed(config.get("image_mean", [0.0]), where, "image_mean")
        std = _listed(config.get("image_std", [1.0]), where, "image_std")
    size = _edge(config.get("crop_size") if config.get("do_center_crop", True) else None)
    return Facts(size or _edge(config.get("size")), value_range, mean, std)


def _edge(size: Any) -> int | None:
    """Return height and width of `size` or `crop_size`, which are a number or an object."""
    if isinstance(size, dict):
        ends = [size.get("height"), size.get("width")]
        edges = {edge for edge in ends if edge} or {size.get("shortest_edge")}
        size = next(iter(edges)) if len(edges) == 1 else None
    return size if isinstance(size, int) and size > 0 else None
