"""An ONNX network in the store: its file as it was, and what is done to images and outputs.

    <folder>/model.onnx     the file, byte for byte, and beside it the files of its weights
    <folder>/input.json     a `Description`

Both are a part of the module's digest.
"""

from __future__ import annotations

import contextlib
import shutil
import urllib.request
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hubretrain.arrays import AnyArray, Pixels
from hubretrain.errors import HubretrainError, ModuleError
from hubretrain.files import read_json, write_record
from hubretrain.modules.network import network, reason_of
from hubretrain.modules.onnx.adapted import FEATURES, PIXELS, adapted
from hubretrain.modules.onnx.graphs import data_files, load, onnx
from hubretrain.modules.onnx.handles import CONFIG, DESCRIPTION, MODEL, OnnxHandle, config_beside
from hubretrain.modules.onnx.images import ImageInput, image_input, read_config
from hubretrain.modules.onnx.outputs import choose_output, pooling_of
from hubretrain.modules.onnx.runtime import open_session, reason


@dataclass(frozen=True)
class Description:
    """What is done around a network.

    Attributes:
        image: What images it takes.
        output: The tensor that holds the features.
        pooling: Axes of a mean over it, [0] for its first token, [] for vectors.
        license: Licence of its weights, where its `preprocessor_config.json` names one.
    """

    image: ImageInput
    output: str
    pooling: list[int]
    license: str = ""

    @property
    def notes(self) -> list[str]:
        """All of that in words, which are not stored: the file is a part of the module's digest."""
        words = {(): [], (0,): ["the class token is taken"], (1,): ["tokens are averaged"]}
        pooled = words.get(tuple(self.pooling), ["maps are averaged over positions"])
        return [*self.image.notes(), f"its features are the tensor {self.output}", *pooled]


def fetch(handle: OnnxHandle, folder: Path) -> None:
    """Put a network into a folder, with its description.

    Raises:
        ModuleError: It cannot be read or downloaded, is no network of images, or does not say what
            images it takes and nor does the handle.
        EngineError: onnx or ONNX Runtime is not installed.
    """
    folder.mkdir()
    config = _download(handle, folder) if handle.file is None else _copy(handle.file, folder)
    model = load(folder / MODEL, handle.source)
    values = read_config(config) if config else None
    described = asdict(_describe(model, handle, values))
    described["license"] = (values or {}).get("license")
    # Without an empty licence: the digests of modules that have none stay what they were.
    write_record(folder / DESCRIPTION, {k: v for k, v in described.items() if k != "license" or v})


def read_description(folder: Path) -> Description:
    """Return the description in a folder.

    Raises:
        ModuleError: It is damaged.
    """
    return read_json(folder / DESCRIPTION, Description, ModuleError, "fetch the module again")


def _copy(file: Path, folder: Path) -> Path | None:
    """Copy a file and the files of its weights; return the config beside it."""
    if not file.is_file():
        raise ModuleError(f"{file} does not exist; expected an ONNX file.")
    names = data_files(load(file, str(file), weights=False), str(file))
    try:
        shutil.copyfile(file, folder / MODEL)
        for name in names:
            if not (file.parent / name).is_file():
                raise ModuleError(
                    f"{file} has weights in {name}, which is not beside it; copy both."
                )
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.parent / name, folder / name)
    except OSError as error:
        raise ModuleError(f"{file} cannot be copied ({error.strerror or error}).") from error
    return config_beside(file)


def _download(handle: OnnxHandle, folder: Path) -> Path | None:
    """Download a file, and the config beside it if the server has one."""
    url = handle.source
    try:
        with network():
            _get(url, folder / MODEL)
            path, _, query = url.partition("?")
            parent = path.rpartition("/")[0]
            places = [parent, *([parent.removesuffix("/onnx")] if parent.endswith("/onnx") else [])]
            config = folder / CONFIG
            for place in places:
                if config.exists():
                    break
                with contextlib.suppress(OSError):  # most servers have none
                    _get(f"{place}/{CONFIG}{'?' + query if query else ''}", config)
    except (OSError, ValueError) as error:
        raise ModuleError(f"{url} cannot be downloaded ({reason_of(error)}).") from error
    if data_files(load(folder / MODEL, url, weights=False), url):
        raise ModuleError(
            f"{url} has weights in other files; download all of them into a folder and name the "
            "file in it."
        )
    return config if config.exists() else None


def _get(url: str, path: Path) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("expected http:// or https://")
    with urllib.request.urlopen(url) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file)


def _describe(model: Any, handle: OnnxHandle, config: dict[str, Any] | None) -> Description:
    """Return what is to be done around a network, after it was run once on noise."""
    with contextlib.suppress(Exception):  # shapes that cannot be inferred stay unknown
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    image = image_input(model, handle, config)
    output = choose_output(model, handle)
    n_images = 1 if image.one_by_one else 2
    raw = replace(image, one_by_one=False)
    features = run_on_noise(
        adapted(model, raw, output, None), raw.image_size, handle.source, n_images
    )
    if features.ndim and features.shape[0] != n_images:
        raise ModuleError(
            f"{handle.source} gives shape {features.shape} for {n_images} images; expected one "
            "vector, map or row of tokens for each."
        )
    return Description(image, output, pooling_of(features.shape, image.layout, handle.source))


def run_on_noise(model: Any, size: int, source: str, n_images: int = 2) -> AnyArray:
    """Return what an adapted model gives for images of noise.

    Raises:
        ModuleError: It cannot be run.
        EngineError: ONNX Runtime is not installed.
    """
    noise: Pixels = np.random.default_rng(0).integers(
        0, 256, (n_images, size, size, 3), dtype=np.uint8
    )
    try:
        session = open_session(model.SerializeToString(), quiet=True)
        (features,) = session.run([FEATURES], {PIXELS: noise})
    except HubretrainError:
        raise
    except Exception as error:  # ONNX Runtime raises types of its own
        raise ModuleError(
            f"{source} cannot be run on {n_images} images of {size} x {size} pixels "
            f"({reason(error)})."
        ) from error
    if not isinstance(features, np.ndarray):
        raise ModuleError(f"{source} gives no tensor; expected features, floating numbers.")
    return features
