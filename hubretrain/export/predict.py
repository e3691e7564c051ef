"""The prediction stage: image files in, the likeliest classes of each out. No TensorFlow needed."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.data.images import IMAGE_SUFFIXES, Augmentation, Draw, decode, to_unit, view
from hubretrain.errors import DataError
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import Runtime, open_runtime
from hubretrain.parallel import ahead
from hubretrain.storage import is_remote, read_bytes

BATCH_SIZE = 16
VIEWS_AHEAD = 64  # that wait to be run, so that memory stays flat whatever the number of views


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        path: The image file, or its URL.
        classes: (class name, probability in [0, 1]), likeliest first.
        decision: The class that the decision rule takes; without logit adjustment the likeliest.
        error: Why there is nothing of these, or ''.
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
    form: str | None = None,
) -> Iterator[Prediction]:
    """The likeliest classes of images, in their order, some tens of images behind `images`.

    Args:
        export: An export folder.
        images: Image files, folders of them (with all below), or URLs. One that cannot be read
            gets its error, and the rest go on.
        top: How many classes of each.
        tta: Test-time augmentation: the mean over so many views, the image itself first and then
            views augmented as in training; 1 for the image alone.
        form: One of `runners.FORMATS`; by default LiteRT, or TensorFlow where that is missing.

    Raises:
        RunError: There is no export there, or it is damaged.
        EngineError: What runs that format is not installed.
    """
    exported = Export.open(export)
    return _predictions(exported, open_runtime(exported, form), images, top, tta)


def _predictions(
    exported: Export, runner: Runtime, images: Iterable[str | Path], top: int, tta: int
) -> Iterator[Prediction]:
    look = _views(exported, tta)
    waiting: list[tuple[str, _Looked]] = []
    n_waiting = 0
    files = image_files(images)
    first = list(itertools.islice(files, 2))
    looked: Iterable[tuple[str, _Looked]]
    if len(first) == 1:  # looked at here: a thread would have to be started for it
        looked = [(first[0], look(first[0]))]
    else:
        looked = ahead(look, itertools.chain(first, files), max(2, VIEWS_AHEAD // tta))
    for path, found in looked:
        waiting.append((path, found))
        n_waiting += not isinstance(found, str)
        if n_waiting * tta >= BATCH_SIZE:
            yield from _said(exported, runner, waiting, top)
            waiting, n_waiting = [], 0
    yield from _said(exported, runner, waiting, top)


_Looked = Mapping[int, npt.NDArray[np.uint8]] | str


def image_files(images: Iterable[str | Path]) -> Iterator[str]:
    """Image files, and those below folders in order of their paths.

    A folder that holds none, or cannot be read, comes itself.
    """
    for one in images:
        found: list[Path] = []
        if not is_remote(str(one)) and os.path.isdir(one):  # Path.is_dir raises on a long name
            files = (Path(at, name) for at, _, names in os.walk(one) for name in names)
            found = sorted(p for p in files if p.suffix.lower() in IMAGE_SUFFIXES)
        yield from map(str, found) if found else [str(one)]


def _views(exported: Export, tta: int) -> Callable[[str], _Looked]:
    """What turns a path into the pixels of its views, or into a sentence on what is wrong."""
    facts: dict[str, Any] = exported.facts.get("augmentation") or {}
    augmentation = Augmentation(**facts)

    def look(path: str) -> _Looked:
        try:
            data = read_bytes(path)
            image = decode(data)
        except IsADirectoryError:
            return "a folder without images"
        except OSError as error:
            return error.strerror or str(error)
        except (DataError, ValueError) as error:  # ValueError: no name of a file
            return str(error)
        draws: list[Draw | None] = [None]
        if tta > 1:
            sha256 = hashlib.sha256(data).hexdigest()
            draws += [augmentation.draw(sha256, number, 0) for number in range(1, tta)]
        return {
            size: np.stack([view(image, size, draw) for draw in draws]) for size in exported.sizes
        }

    return look


def _said(
    exported: Export, runner: Runtime, waiting: list[tuple[str, _Looked]], top: int
) -> Iterator[Prediction]:
    seen = [found for _, found in waiting if not isinstance(found, str)]
    probabilities: Iterator[npt.NDArray[np.float32]] = iter(())
    decisions: Iterator[Any] = iter(())
    if seen:
        sizes = exported.sizes
        pixels = {size: to_unit(np.concatenate([one[size] for one in seen])) for size in sizes}
        rows = runner(pixels)
        means = rows.reshape(len(seen), -1, rows.shape[1]).mean(axis=1)
        probabilities, decisions = iter(means), iter(exported.decisions(means))
    names = exported.class_names
    for path, found in waiting:
        if isinstance(found, str):
            yield Prediction(path, error=found)
            continue
        row = next(probabilities)
        order = np.argsort(-row, kind="stable")[:top]
        classes = tuple((names[c], float(row[c])) for c in order)
        yield Prediction(path, classes, names[int(next(decisions))])
