"""Handles `FILE.onnx?option=value&...`: an ONNX file or its URL, and what it does not say itself.

    net.onnx                                        all that is needed stands in or beside the file
    net.onnx?value_range=0,1&mean=0.485,0.456,0.406&std=0.229,0.224,0.225
    https://example.org/net.onnx?output=embedding   one of several outputs, or a tensor inside

This file imports no ONNX.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

from hubretrain.errors import ModuleError
from hubretrain.files import file_sha256

SUFFIX = ".onnx"
MODEL, DESCRIPTION = "model.onnx", "input.json"  # in the store; see `network`
CONFIG = "preprocessor_config.json"
LAYOUTS, ORDERS = ("NCHW", "NHWC"), ("RGB", "BGR")
_LARGEST = 4096  # pixels


@dataclass(frozen=True)
class OnnxHandle:
    """A parsed handle; an option that was not given is None or empty.

    Attributes:
        source: Absolute path of the file, or its URL.
        output: Name of the output, or of a tensor inside, that holds the features.
        image_size: Height and width of the input, pixels.
        value_range: What black and white become before `mean` and `std`.
        mean: What is subtracted, for each channel as the network takes them, or for all.
        std: By what is divided then.
        layout: `NCHW` or `NHWC`.
        channels: `RGB` or `BGR`.
    """

    source: str
    output: str = ""
    image_size: int | None = None
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = ""
    channels: str = ""

    def __str__(self) -> str:
        """Return the handle in its one canonical form."""
        options = []
        for field in _OPTIONS:
            if value := getattr(self, field):
                text = ",".join(f"{v:.9g}" for v in value) if isinstance(value, tuple) else value
                options.append(f"{field}={quote(str(text), safe='/:,')}")
        if not options:
            return self.source
        return f"{self.source}{'&' if '?' in self.source else '?'}{'&'.join(options)}"

    @property
    def file(self) -> Path | None:
        """The file; None of a URL."""
        return None if "://" in self.source else Path(self.source)

    @property
    def is_bare(self) -> bool:
        """Whether no option is given."""
        return str(self) == self.source

    @property
    def name(self) -> str:
        """Name that serves as a file name: the file's, and the output's where one is chosen."""
        stem = Path(self.source.split("?")[0]).name[: -len(SUFFIX)]
        parts = (re.sub(r"[^A-Za-z0-9._-]+", "_", text) for text in (stem, self.output))
        return "-".join(filter(None, (part.strip("._-") for part in parts))) or "module"


_OPTIONS = tuple(field.name for field in fields(OnnxHandle) if field.name != "source")


def is_onnx(name: str) -> bool:
    """Return whether a name means an ONNX file, existing or not, or the URL of one."""
    return name.split("?")[0].lower().endswith(SUFFIX) and not Path(name).is_dir()


def is_network(folder: Path) -> bool:
    """Return whether a folder holds an ONNX network as the store does."""
    return (folder / DESCRIPTION).is_file() and (folder / MODEL).is_file()


def license_in(folder: Path) -> str:
    """Return the licence that a network in the store came with; empty where none was named."""
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        return str(description.get("license") or "")
    except (OSError, ValueError, AttributeError):  # none, or damaged, which using it reports
        return ""


def config_beside(path: Path) -> Path | None:
    """Return the `preprocessor_config.json` of a file: beside it, or above a folder `onnx`."""
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "onnx" else [])]
    return next((f / CONFIG for f in folders if (f / CONFIG).is_file()), None)


def source_sha256(file: Path) -> str:
    """Return a digest of all that a module of an ONNX file is made of, without reading its graph.

    Those are the file, files beside it that begin with its name, and `preprocessor_config.json`.
    """
    config = config_beside(file)
    beside = sorted(p for p in file.parent.iterdir() if p.name.startswith(file.name))
    files = [p for p in (*beside, *([config] if config else [])) if p.is_file()]
    digests = [f"{p.name} {file_sha256(p)}" for p in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def parse_handle(handle: str) -> OnnxHandle:
    """Parse a handle.

    Options that a URL has of its own stay a part of it.

    Raises:
        ModuleError: An option is unknown, or its value is not as expected.
    """
    source, _, query = handle.partition("?")
    pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
    options = {name: value for name, value in pairs if name in _OPTIONS}
    others = [(name, value) for name, value in pairs if name not in _OPTIONS]
    if "://" not in source:
        if others:
            raise ModuleError(
                f"{handle}: the option {others[0][0]!r} does not exist; expected "
                f"{', '.join(_OPTIONS)}."
            )
        source = str(Path(source).expanduser().resolve())
    elif others:
        source += "?" + urlencode(others)
    size = _numbers(handle, "image_size", options, (1,))
    value_range = _numbers(handle, "value_range", options, (2,))
    if size and not (8 <= size[0] <= _LARGEST and size[0] == int(size[0])):
        raise ModuleError(f"{handle}: image_size is {size[0]:g}; expected 8 to {_LARGEST}.")
    if value_range and not value_range[0] < value_range[1]:
        raise ModuleError(f"{handle}: value_range is not ascending; expected such as 0,255.")
    std = _numbers(handle, "std", options, (1, 3))
    if any(value <= 0 for value in std):
        raise ModuleError(f"{handle}: std holds {min(std):g}; expected numbers above 0.")
    return OnnxHandle(
        source,
        options.get("output", ""),
        int(size[0]) if size else None,
        (value_range[0], value_range[1]) if value_range else None,
        _numbers(handle, "mean", options, (1, 3)),
        std,
        _one_of(handle, "layout", options, LAYOUTS),
        _one_of(handle, "channels", options, ORDERS),
    )


def _numbers(
    handle: str, name: str, options: dict[str, str], lengths: tuple[int, ...]
) -> tuple[float, ...]:
    """Return the numbers of an option, () where it is not given."""
    if name not in options:
        return ()
    try:
        numbers = tuple(float(text) for text in options[name].split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in lengths or not all(map(math.isfinite, numbers)):
        raise ModuleError(
            f"{handle}: {name} is {options[name]!r}; expected {' or '.join(map(str, lengths))} "
            "numbers, separated by commas."
        )
    return numbers


def _one_of(handle: str, name: str, options: dict[str, str], choices: tuple[str, ...]) -> str:
    value = options.get(name, "").upper()
    if value and value not in choices:
        raise ModuleError(
            f"{handle}: {name} is {options[name]!r}; expected {' or '.join(choices)}."
        )
    return value
