"""Which images the page explains, and their saliency maps, kept beside the run."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from hubretrain.data.images import read_image, to_unit, view
from hubretrain.errors import DataError, HubretrainError
from hubretrain.export import export_of, identity_of, read_facts
from hubretrain.files import whole_file
from hubretrain.progress import Bar
from hubretrain.report.run_data import FINE_TUNED, HEAD, OUT_OF_FOLD, EvaluatedModel, RunData
from hubretrain.report.saliency.overlay import eight_bits, overlaid

FORMAT = "hubretrain saliency 1"
METHODS = ("gradcam", "smoothgrad")
WORDS = {"gradcam": "Grad-CAM", "smoothgrad": "squared SmoothGrad"}
SIDE = 176  # pixels of a picture on the page


@dataclass(frozen=True)
class SaliencyRow:
    """One image with its maps.

    Attributes:
        path: Of the image.
        label: Its class.
        said: What the model decides, in words.
        image: As the model sees it.
        overlays: One map a method, over the image.
    """

    path: str
    label: str
    said: str
    image: Image.Image
    overlays: tuple[Image.Image, ...]


@dataclass(frozen=True, eq=False)
class _Maps:
    """What was computed: methods, and of each image the class, its probability and its maps."""

    title: str
    methods: tuple[str, ...]
    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    maps: npt.NDArray[np.uint8]  # (image, method, height, width)


def saliency_rows(gathered: RunData, root: Path, n_images: int) -> tuple[list[SaliencyRow], str]:
    """Saliency of the most confident errors, and of an image of each class that is right.

    Args:
        gathered: The run.
        root: The folder that image paths are relative to.
        n_images: How many; 0 for none.

    Returns:
        The rows, and a sentence: what they are of, or why there are none.
    """
    if n_images == 0 or not gathered.models:
        return [], "No saliency maps were asked for (--saliency)."
    place = gathered.run.folder
    try:
        module, judged, notes = _target(gathered)
        rows, images = _pictures(gathered, root, _chosen(judged, gathered, n_images))
        if not rows:
            where = f"none of the images can be read in {root} as they were; name it by --data."
            return [], f"No saliency maps: {where}"
        contents = gathered.images["sha256"].iloc[rows].tolist()
        identity = _identity(identity_of(place, module), contents)
        file = place / "report" / "saliency.h5"
        maps = _load(file, identity)
        if maps is None:
            maps = _explain(place, module, images)
            _save(file, identity, contents, maps)
    except HubretrainError as error:
        return [], f"No saliency maps: {error}"
    found = []
    for i, row in enumerate(rows):
        size = maps.maps.shape[-1]
        picture = view(images[i], size)
        overlays = [overlaid(picture, maps.maps[i, m]) for m in range(len(maps.methods))]
        said = f"{gathered.class_names[maps.classes[i]]} {100 * maps.probabilities[i]:.1f} %"
        path, label = (str(gathered.images[c].iloc[row]) for c in ("path", "label"))
        shown = [_small(one) for one in (Image.fromarray(picture), *overlays)]
        found.append(SaliencyRow(path, label, said, shown[0], tuple(shown[1:])))
    methods = " and ".join(WORDS[name] for name in maps.methods)
    note = (
        f"What {maps.title} looks at: the image as it sees it, then {methods}, bright where the "
        "likeliest class rests on the pixel. First the most confident errors, then images that are "
        "right. A map shows where, never why; hubretrain explain makes it for any image."
    )
    if module is not None and judged.part == OUT_OF_FOLD:
        note += (
            " The errors are of heads that did not see the image; the map is of the head fitted on "
            "all, so it may decide otherwise."
        )
    return found, " ".join([*notes, note])


def _target(gathered: RunData) -> tuple[str | None, EvaluatedModel, list[str]]:
    """Which model to explain (None: the export), whose mistakes to show, and what to say of it."""
    notes = []
    first = gathered.models[0]
    folder = export_of(gathered.run.folder)
    if first.kind == FINE_TUNED and folder is not None:
        facts = read_facts(folder)
        tuned = [one for one in gathered.models if one.kind == FINE_TUNED]
        exported = [one for one in tuned if one.module == facts.get("module")]
        is_current = "image_sizes" in facts
        if exported and is_current and facts.get("fine_tuned", True):
            return None, exported[0], []
        why = "is not of a fine-tuned module" if is_current else "was written by an earlier version"
        notes.append(f"The run's export {why}, so this is a head (export again to see that model).")
    module = gathered.fit.shortlist[0]
    heads = [one for one in gathered.models if one.module == module and one.kind == HEAD]
    judged = min(heads, key=lambda one: one.part == OUT_OF_FOLD, default=first)
    return module, judged, notes


def _pictures(
    gathered: RunData, root: Path, rows: list[int]
) -> tuple[list[int], list[Image.Image]]:
    """Those of the images that can be read and still are what the run saw."""
    found, pictures = [], []
    for row in rows:
        image = gathered.images.iloc[row]
        with contextlib.suppress(DataError):
            pictures.append(read_image(root, image["path"], image["sha256"]))
            found.append(row)
    return found, pictures


def _chosen(model: EvaluatedModel, gathered: RunData, n_images: int) -> list[int]:
    """Rows: two thirds the most confident errors, the rest right ones, a class in turn."""
    labels = gathered.images["class_index"].to_numpy()[model.rows]
    sure = model.probabilities.max(axis=1)
    said = model.probabilities.argmax(axis=1)
    wrong = np.flatnonzero(said != labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")][: (2 * n_images + 2) // 3]
    right = np.flatnonzero(said == labels)
    right = right[np.argsort(-sure[right], kind="stable")]
    turn = pd.Series(labels[right]).groupby(labels[right]).cumcount().to_numpy()
    right = right[np.argsort(turn, kind="stable")]
    return [int(row) for row in model.rows[np.concatenate([wrong, right])][:n_images]]


def _explain(place: Path, module: str | None, images: list[Image.Image]) -> _Maps:
    from hubretrain.report.saliency.gradients import saliency
    from hubretrain.report.saliency.model import open_explained

    explained = open_explained(place, module)
    model = explained.model
    methods = tuple(name for name in METHODS if name != "gradcam" or model.map_shape is not None)
    seen = np.stack([view(one, model.size) for one in images])
    pixels = to_unit(seen)
    probabilities = model.probabilities(pixels)
    classes = probabilities.argmax(axis=1)
    maps = []
    with Bar("saliency", len(images)) as bar:
        for image, c in zip(pixels, classes.tolist(), strict=True):
            some = [eight_bits(saliency(model, image, c, name), name) for name in methods]
            maps.append(np.stack(some))
            bar.advance()
    of_class = probabilities[np.arange(len(classes)), classes].astype(np.float64)
    return _Maps(explained.title, methods, classes, of_class, np.stack(maps))


def _identity(model: str, contents: list[str]) -> str:
    text = "\n".join([FORMAT, *METHODS, model, *contents])
    return hashlib.sha256(text.encode()).hexdigest()


def _save(file: Path, identity: str, contents: list[str], maps: _Maps) -> None:
    with whole_file(file) as aside, h5py.File(aside, "w") as kept:
        kept.attrs["identity"], kept.attrs["title"] = identity, maps.title
        kept.attrs["methods"] = list(maps.methods)
        kept["sha256"] = np.array(contents, dtype=h5py.string_dtype())
        kept["class"], kept["probability"] = maps.classes, maps.probabilities
        kept["map"] = maps.maps


def _load(file: Path, identity: str) -> _Maps | None:
    with contextlib.suppress(OSError, KeyError), h5py.File(file, "r") as kept:
        if kept.attrs["identity"] == identity:
            methods: Any = kept.attrs["methods"]
            return _Maps(
                str(kept.attrs["title"]),
                tuple(str(name) for name in methods),
                kept["class"][:],
                kept["probability"][:],
                kept["map"][:],
            )
    return None  # missing or damaged: it is only a memory


def _small(picture: Image.Image) -> Image.Image:
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
