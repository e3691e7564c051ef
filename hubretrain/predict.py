"""The prediction stage: image files in, the likeliest classes of each out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hubretrain.errors import DataError, RunError
from hubretrain.exported import read_facts
from hubretrain.images import decode
from hubretrain.runs import Run

BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        path: The image file.
        classes: (class name, probability in [0, 1]), likeliest first.
        error: Why there are none, or ''.
    """

    path: Path
    classes: tuple[tuple[str, float], ...]
    error: str = ""


def predict_images(export: Path, images: Sequence[Path], top: int = 3) -> list[Prediction]:
    """The likeliest classes of some images.

    Args:
        export: An export folder, or a run folder that holds one.
        images: Image files. One that cannot be read gets its error, and the rest go on.
        top: How many classes of each.

    Raises:
        RunError: There is no export there, or it is damaged.
    """
    if not (export / "export.json").exists() and Run(export).export_folder.is_dir():
        export = Run(export).export_folder
    class_names = read_facts(export)["class_names"]
    contents: dict[Path, bytes] = {}
    errors: dict[Path, str] = {}
    for path in images:
        try:
            data = path.read_bytes()
            decode(data)
            contents[path] = data
        except OSError as error:
            errors[path] = error.strerror or str(error)
        except DataError as error:
            errors[path] = str(error)
    found: dict[Path, tuple[tuple[str, float], ...]] = {}
    if contents:
        for path, row in zip(
            contents, _probabilities(export, list(contents.values())), strict=True
        ):
            order = np.argsort(-row, kind="stable")[:top]
            found[path] = tuple((class_names[c], float(row[c])) for c in order)
    return [Prediction(path, found.get(path, ()), errors.get(path, "")) for path in images]


def _probabilities(export: Path, contents: list[bytes]) -> np.ndarray:
    from hubretrain.tensorflow_door import tf

    try:
        serve = tf.saved_model.load(str(export)).signatures["serving_default"]
    except (OSError, KeyError, tf.errors.OpError) as error:
        raise RunError(f"{export} holds no SavedModel that serves ({error}).") from error
    batches = [
        serve(image_bytes=tf.constant(contents[i : i + BATCH_SIZE]))["probabilities"].numpy()
        for i in range(0, len(contents), BATCH_SIZE)
    ]
    return np.concatenate(batches)
