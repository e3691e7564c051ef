"""Handles `keras:NAME?option=value&...`: a network of Keras Applications, and how to make it.

    keras:VGG16                                     ImageNet weights, which Keras downloads
    keras:MobileNet?alpha=0.75&weights=FILE.h5      weights from a file, for offline use
    keras:DenseNet121?weights=none                  random weights: the control to compare with
    keras:MobileNet?alpha=0.25&image_size=128       another image size

This file imports no TensorFlow.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote

from hubretrain.errors import ModuleError

PREFIX = "keras:"
IMAGENET, NONE = "imagenet", "none"
_OPTIONS = ("alpha", "weights", "image_size", "seed")
_WITH_ALPHA = ("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large")


@dataclass(frozen=True)
class Application:
    """A network of `tf_keras.applications`.

    Attributes:
        image_size: Height and width that it was trained on, pixels.
        range: What its `preprocess_input` turns pixels in [0, 255] into. `tf`: [-1, 1]; `caffe`:
            BGR less ImageNet's mean; `torch`: [0, 1] less ImageNet's mean, divided by ImageNet's
            standard deviation; `none`: unchanged, as the network begins with its own scaling.
        license: SPDX identifier of the licence of its ImageNet weights, as Keras' documentation
            or that of their source states it; empty where neither does.
    """

    image_size: int
    range: str
    license: str = ""


def _family(names: str, sizes: str, value_range: str, license_: str = "") -> dict[str, Application]:
    """Return applications of one range; `sizes` is one for all of them or one for each."""
    size_list = sizes.split() if " " in sizes else [sizes] * len(names.split())
    pairs = zip(names.split(), size_list, strict=True)
    return {name: Application(int(size), value_range, license_) for name, size in pairs}


def _prefixed(prefix: str, members: str) -> str:
    return " ".join(prefix + member for member in members.split())


_REGNETS = "002 004 006 008 016 032 040 064 080 120 160 320"

#: Every image network of `tf_keras.applications`. Licences: "License" of each network in
#: https://github.com/keras-team/keras, docs/templates/applications.md (2019), and for ConvNeXt,
#: whose weights Keras took over, https://github.com/facebookresearch/ConvNeXt.
APPLICATIONS: dict[str, Application] = {
    **_family("VGG16 VGG19", "224", "caffe", "CC-BY-4.0"),
    **_family("ResNet50 ResNet101 ResNet152", "224", "caffe", "MIT"),
    **_family("DenseNet121 DenseNet169 DenseNet201", "224", "torch", "BSD-3-Clause"),
    **_family("MobileNet MobileNetV2", "224", "tf", "Apache-2.0"),
    **_family("ResNet50V2 ResNet101V2 ResNet152V2", "224", "tf"),
    **_family("InceptionV3 InceptionResNetV2", "299", "tf", "Apache-2.0"),
    **_family("Xception", "299", "tf", "MIT"),
    **_family("NASNetMobile NASNetLarge", "224 331", "tf", "Apache-2.0"),
    **_family("MobileNetV3Small MobileNetV3Large", "224", "none"),
    **_family(
        _prefixed("EfficientNetB", "0 1 2 3 4 5 6 7"), "224 240 260 300 380 456 528 600", "none"
    ),
    **_family(
        _prefixed("EfficientNetV2", "B0 B1 B2 B3 S M L"), "224 240 260 300 384 480 480", "none"
    ),
    **_family(_prefixed("ConvNeXt", "Tiny Small Base Large XLarge"), "224", "none", "MIT"),
    **_family(_prefixed("RegNetX", _REGNETS), "224", "none"),
    **_family(_prefixed("RegNetY", _REGNETS), "224", "none"),
    **_family(_prefixed("ResNetRS", "50 101 152 200 270 350 420"), "224", "none"),
}


@dataclass(frozen=True)
class KerasHandle:
    """A parsed handle.

    Attributes:
        application: Name of the network in `tf_keras.applications`.
        alpha: Width multiplier, or None where the network has none.
        weights: `imagenet`, `none`, or the absolute path of a file.
        image_size: Height and width of the input, pixels.
        seed: Random seed of random weights.
    """

    application: str
    alpha: float | None
    weights: str
    image_size: int
    seed: int

    def __str__(self) -> str:
        """Return the handle in its one canonical form, without default values."""
        options = []
        if self.alpha not in (None, 1.0):
            options.append(f"alpha={self.alpha:g}")
        if self.weights != IMAGENET:
            options.append(f"weights={quote(self.weights, safe='/~')}")
        if self.image_size != APPLICATIONS[self.application].image_size:
            options.append(f"image_size={self.image_size}")
        if self.seed:
            options.append(f"seed={self.seed}")
        return PREFIX + self.application + ("?" + "&".join(options) if options else "")

    def name(self, base: str | None = None) -> str:
        """Return a name that serves as a file name, such as `MobileNet_alpha0.75_random`.

        Args:
            base: Name of the application in the catalogue, where it has one.
        """
        parts = [base or self.application]
        if self.alpha not in (None, 1.0):
            parts.append(f"alpha{self.alpha:g}")
        if self.image_size != APPLICATIONS[self.application].image_size:
            parts.append(f"{self.image_size}px")
        if self.seed:
            parts.append(f"seed{self.seed}")
        if self.weights == NONE:  # the ending by which the leaderboard recognises controls
            parts.append("random")
        name = "_".join(parts)
        if self.weights_file is not None:
            stem = self.weights_file.name.split(".weights")[0].split(".h5")[0]
            name += "-" + re.sub(r"[^A-Za-z0-9._]+", "_", stem)
        return name

    @property
    def license(self) -> str:
        """SPDX identifier of its weights' licence; empty where it is not known."""
        return APPLICATIONS[self.application].license if self.weights == IMAGENET else ""

    @property
    def weights_file(self) -> Path | None:
        """File of weights; None where they are ImageNet's or random."""
        return Path(self.weights) if self.weights not in (IMAGENET, NONE) else None


def parse(handle: str) -> KerasHandle:
    """Parse a handle.

    Raises:
        ModuleError: It names no network of Keras Applications, or has an unknown option or value.
    """
    network, _, query = handle.removeprefix(PREFIX).partition("?")
    application = _application(handle, network)
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ModuleError(
            f"{handle}: the option {unknown[0]!r} does not exist; expected {', '.join(_OPTIONS)}."
        )
    alpha = 1.0 if application in _WITH_ALPHA else None
    if "alpha" in options:
        if alpha is None:
            raise ModuleError(f"{handle}: {application} has no alpha; only MobileNets do.")
        alpha = _number(handle, "alpha", options["alpha"], 0.01, 4.0)
    size = APPLICATIONS[application].image_size
    if "image_size" in options:
        size = int(_number(handle, "image_size", options["image_size"], 32, 2048))
    seed = int(_number(handle, "seed", options.get("seed", "0"), 0, 2**31 - 1))
    weights = options.get("weights") or IMAGENET
    if weights not in (IMAGENET, NONE):
        weights = str(Path(weights).expanduser().resolve())
    if seed and weights != NONE:
        raise ModuleError(f"{handle}: a seed is for random weights; add weights=none.")
    return KerasHandle(application, alpha, weights, size, seed)


def _application(handle: str, network: str) -> str:
    """Return the name of an application as Keras spells it."""
    by_lower = {name.lower(): name for name in APPLICATIONS}
    if network.lower() in by_lower:
        return by_lower[network.lower()]
    near = difflib.get_close_matches(network.lower(), by_lower, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(by_lower[n] for n in near)}?" if near else ""
    raise ModuleError(f"{handle}: Keras Applications has no {network!r}.{hint}")


def _number(handle: str, name: str, text: str, low: float, high: float) -> float:
    """Return an option's value, a whole number unless the option is `alpha`."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (name != "alpha" and value != int(value)):
        raise ModuleError(f"{handle}: {name} is {text!r}; expected {low:g} to {high:g}.")
    return value
