"""The prediction stage: image files in, the most probable classes of each out; no TensorFlow."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubretrain.data.images import IMAGE_SUFFIXES, decode, to_unit, view
from hubretrain.errors import DataError
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import Runtime, open_runtime
from hubretrain.files import StrPath
from hubretrain.parallel import ahead
from hubretrain.storage import is_remote, read_bytes

BATCH_SIZE = 16  # views
MAX_IMAGES_AHEAD = 64  # images that wait for the model, so that memory stays bounded

_Pixels = Mapping[int, npt.NDArray[np.uint8]]  # size: (size, size, 3)
_PixelsOrError = _Pixels | str


@dataclass(frozen=True)
class Prediction:
    """Prediction of one image.

    Attributes:
        path: The image file, or its URL.
        classes: (class name, probability in [0, 1]) of the most probable classes, in that order;
            of several labels per image at least of those that are decided on.
        decision: The class that the decision rule chooses; without logit adjustment the top-1. Of
            several labels per image those of `labels`, in class order, joined by `|`.
        error: Why there is no prediction, or ''.
        labels: Of several labels per image those whose probability is above their threshold, the
            most probable first; None of a model that chooses one class.
    """

    path: str
    classes: tuple[tuple[str, float], ...] = ()
    decision: str = ""
    error: str = ""
    labels: tuple[str, ...] | None = None


def predict_images(
    export: StrPath,
    images: Iterable[StrPath],
    top: int = 3,
    *,
    tta: int | None = None,
    format: str | None = None,
) -> Iterator[Prediction]:
    """Predict the most probable classes of images, in the order of `images`.

    Images are read some tens ahead of the predictions, so `images` may be a stream.

    Args:
        export: An export folder.
        images: Image files, folders of them (searched recursively), or URLs. An image that cannot
            be read gets an error in place of its prediction; the others are predicted.
        top: Number of classes per image; of several labels per image there are more where more are
            decided on.
        tta: Test-time augmentation: number of views per image whose probabilities are averaged,
            1 to 8: the image itself, then flips, quarter turns and centred crops such as the model
            was trained on. By default as many as the export was made with.
        format: One of `hubretrain.export.runtimes.FORMATS`; by default LiteRT, or TensorFlow where
            the export has no LiteRT model.

    Raises:
        RunError: The folder holds no export, or a damaged one, or one that averages over another
            number of views.
        DataError: The augmentation that the model was trained on has fewer views than `tta`.
        EngineError: The library that runs the format is not installed.

    Examples:
        >>> from hubretrain import predict_images
        >>> (prediction,) = predict_images("runs/digits/export", ["data/digits/0/0000.png"], top=1)
        >>> len(prediction.classes), prediction.error
        (1, '')
    """
    opened = Export.open(export)
    runtime = open_runtime(opened, format, tta)
    return _predictions(opened, runtime, images, top, tta or opened.n_views)


def _predictions(
    export: Export, runtime: Runtime, images: Iterable[StrPath], top: int, n_views: int
) -> Iterator[Prediction]:
    """Read images ahead, and run them in batches of about `BATCH_SIZE` views."""
    read = _reader(export)
    files = image_files(images)
    first = list(itertools.islice(files, 2))
    pixels_of: Iterable[tuple[str, _PixelsOrError]]
    if len(first) == 1:  # read here: a thread would have to be started for it
        pixels_of = [(first[0], read(first[0]))]
    else:
        pixels_of = ahead(read, itertools.chain(first, files), MAX_IMAGES_AHEAD)
    batch: list[tuple[str, _PixelsOrError]] = []
    n_readable = 0
    for path, pixels in pixels_of:
        batch.append((path, pixels))
        n_readable += not isinstance(pixels, str)
        if n_readable * n_views >= BATCH_SIZE:
            yield from _predict_batch(export, runtime, batch, top)
            batch, n_readable = [], 0
    yield from _predict_batch(export, runtime, batch, top)


def image_files(images: Iterable[StrPath]) -> Iterator[str]:
    """List image files, and those below folders in the order of their paths.

    A folder without images is listed itself, and so is each that cannot be read.
    """
    for image in images:
        files: list[Path] = []
        if not is_remote(str(image)) and os.path.isdir(image):  # Path.is_dir raises on a long name
            unread: list[OSError] = []
            walk = os.walk(image, onerror=unread.append)
            below = [Path(folder, name) for folder, _, names in walk for name in names]
            files = [path for path in below if path.suffix.lower() in IMAGE_SUFFIXES]
            files = sorted([*files, *(Path(error.filename) for error in unread)])
        yield from map(str, files) if files else [str(image)]


def _reader(export: Export) -> Callable[[str], _PixelsOrError]:
    """Return a function from a path to its pixels, or to a sentence on the error."""

    def read(path: str) -> _PixelsOrError:
        try:
            image = decode(read_bytes(path), export.reading)
        except IsADirectoryError:
            return _why_empty(path)
        except OSError as error:
            return error.strerror or str(error)
        except (DataError, ValueError) as error:  # ValueError: no valid file name
            return str(error)
        return {size: view(image, size) for size in export.sizes}

    return read


def _why_empty(folder: str) -> str:
    """Return why no image of a folder is predicted."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        return f"a folder that cannot be read ({error.strerror})"
    return "a folder without images"


def _predict_batch(
    export: Export, runtime: Runtime, batch: Sequence[tuple[str, _PixelsOrError]], top: int
) -> Iterator[Prediction]:
    readable = [pixels for _, pixels in batch if not isinstance(pixels, str)]
    rows: Iterator[npt.NDArray[np.float32]] = iter(())
    if readable:
        stacked = {size: np.stack([pixels[size] for pixels in readable]) for size in export.sizes}
        rows = iter(runtime({size: to_unit(images) for size, images in stacked.items()}))
    names = export.class_names
    for path, pixels in batch:
        if isinstance(pixels, str):
            yield Prediction(path, error=pixels)
            continue
        probs = next(rows)
        order = np.argsort(-probs, kind="stable")
        (decision,) = export.decisions(probs[np.newaxis])
        if not export.multi_label:
            classes = tuple((names[c], float(probs[c])) for c in order[:top])
            yield Prediction(path, classes, names[int(decision)])
            continue
        from hubretrain.data import join_labels  # imports pandas, which one class does without

        shown = (c for rank, c in enumerate(order) if rank < top or decision[c])
        yield Prediction(
            path,
            tuple((names[c], float(probs[c])) for c in shown),
            join_labels(name for c, name in enumerate(names) if decision[c]),
            labels=tuple(names[c] for c in order if decision[c]),
        )
