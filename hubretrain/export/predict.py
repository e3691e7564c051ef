"""The prediction stage: image files in, the most probable classes of each out; no TensorFlow."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubretrain.data.images import IMAGE_SUFFIXES, Augmentation, Draw, decode, to_unit, view
from hubretrain.errors import DataError
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import Runtime, open_runtime
from hubretrain.parallel import ahead
from hubretrain.storage import is_remote, read_bytes

BATCH_SIZE = 16
MAX_VIEWS_AHEAD = 64  # views that wait for the model, so that memory stays bounded

_Views = Mapping[int, npt.NDArray[np.uint8]]  # size: (n_views, size, size, 3)
_ViewsOrError = _Views | str


@dataclass(frozen=True)
class Prediction:
    """Prediction of one image.

    Attributes:
        path: The image file, or its URL.
        classes: (class name, probability in [0, 1]) of the most probable classes, in that order.
        decision: The class that the decision rule chooses; without logit adjustment the top-1.
        error: Why there is no prediction, or ''.
    """

    path: str
    classes: tuple[tuple[str, float], ...] = ()
    decision: str = ""
    error: str = ""


def predict_images(
    export: str | Path,
    images: Iterable[str | Path],
    top: int = 3,
    *,
    tta: int = 1,
    format: str | None = None,
) -> Iterator[Prediction]:
    """Predict the most probable classes of images, in the order of `images`.

    Images are read some tens ahead of the predictions, so `images` may be a stream.

    Args:
        export: An export folder.
        images: Image files, folders of them (searched recursively), or URLs. An image that cannot
            be read gets an error in place of its prediction; the others are predicted.
        top: Number of classes per image.
        tta: Test-time augmentation: number of views per image whose mean is taken, the image
            itself first and then views augmented as in training; 1 for the image alone.
        format: One of `hubretrain.export.runtimes.FORMATS`; by default LiteRT, or TensorFlow where
            the export has no LiteRT model.

    Raises:
        RunError: The folder holds no export, or a damaged one.
        EngineError: The library that runs the format is not installed.

    Examples:
        >>> from hubretrain import predict_images
        >>> (prediction,) = predict_images("runs/digits/export", ["data/digits/0/0000.png"], top=1)
        >>> len(prediction.classes), prediction.error
        (1, '')
    """
    opened = Export.open(export)
    return _predictions(opened, open_runtime(opened, format), images, top, tta)


def _predictions(
    export: Export, runtime: Runtime, images: Iterable[str | Path], top: int, tta: int
) -> Iterator[Prediction]:
    """Read images ahead, and run them in batches of about `BATCH_SIZE` views."""
    read = _reader(export, tta)
    files = image_files(images)
    first = list(itertools.islice(files, 2))
    views_of: Iterable[tuple[str, _ViewsOrError]]
    if len(first) == 1:  # read here: a thread would have to be started for it
        views_of = [(first[0], read(first[0]))]
    else:
        views_of = ahead(read, itertools.chain(first, files), max(2, MAX_VIEWS_AHEAD // tta))
    batch: list[tuple[str, _ViewsOrError]] = []
    n_readable = 0
    for path, views in views_of:
        batch.append((path, views))
        n_readable += not isinstance(views, str)
        if n_readable * tta >= BATCH_SIZE:
            yield from _predict_batch(export, runtime, batch, top)
            batch, n_readable = [], 0
    yield from _predict_batch(export, runtime, batch, top)


def image_files(images: Iterable[str | Path]) -> Iterator[str]:
    """List image files, and those below folders in the order of their paths.

    A folder without images, or one that cannot be read, is listed itself.
    """
    for image in images:
        files: list[Path] = []
        if not is_remote(str(image)) and os.path.isdir(image):  # Path.is_dir raises on a long name
            below = (Path(folder, name) for folder, _, names in os.walk(image) for name in names)
            files = sorted(path for path in below if path.suffix.lower() in IMAGE_SUFFIXES)
        yield from map(str, files) if files else [str(image)]


def _reader(export: Export, tta: int) -> Callable[[str], _ViewsOrError]:
    """Return a function from a path to the pixels of its views, or to a sentence on the error."""
    augmentation = Augmentation(**(export.manifest.get("augmentation") or {}))

    def read(path: str) -> _ViewsOrError:
        try:
            data = read_bytes(path)
            image = decode(data)
        except IsADirectoryError:
            return "a folder without images"
        except OSError as error:
            return error.strerror or str(error)
        except (DataError, ValueError) as error:  # ValueError: no valid file name
            return str(error)
        draws: list[Draw | None] = [None]
        if tta > 1:
            sha256 = hashlib.sha256(data).hexdigest()
            draws += [augmentation.draw(sha256, number, 0) for number in range(1, tta)]
        return {
            size: np.stack([view(image, size, draw) for draw in draws]) for size in export.sizes
        }

    return read


def _predict_batch(
    export: Export, runtime: Runtime, batch: Sequence[tuple[str, _ViewsOrError]], top: int
) -> Iterator[Prediction]:
    readable = [views for _, views in batch if not isinstance(views, str)]
    rows: Iterator[npt.NDArray[np.float32]] = iter(
        _probabilities(export, runtime, readable) if readable else ()
    )
    names = export.class_names
    for path, views in batch:
        if isinstance(views, str):
            yield Prediction(path, error=views)
            continue
        probs = next(rows)
        order = np.argsort(-probs, kind="stable")[:top]
        classes = tuple((names[c], float(probs[c])) for c in order)
        (decision,) = export.decisions(probs[np.newaxis])
        yield Prediction(path, classes, names[int(decision)])


def _probabilities(
    export: Export, runtime: Runtime, images: Sequence[_Views]
) -> npt.NDArray[np.float32]:
    """Return the mean probabilities over the views of each image: float32 (n_images, n_classes)."""
    pixels = {
        size: to_unit(np.concatenate([views[size] for views in images])) for size in export.sizes
    }
    probs = runtime(pixels)
    mean: npt.NDArray[np.float32] = probs.reshape(len(images), -1, probs.shape[1]).mean(axis=1)
    return mean
