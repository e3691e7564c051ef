"""The report's section on saliency: the images that it explains, and their maps, cached."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from hubretrain.data import reading_as, split_labels
from hubretrain.data.images import read_image, to_unit, view
from hubretrain.errors import DataError, HubretrainError, first_line
from hubretrain.export import export_of, identity_of, read_manifest
from hubretrain.hdf5 import array_in, check_digest_block, open_hdf5
from hubretrain.heads import digested_hdf5
from hubretrain.progress import Bar
from hubretrain.report.run_data import FINE_TUNED, HEAD, OUT_OF_FOLD, EvaluatedModel, RunData
from hubretrain.report.saliency.overlay import eight_bits, overlaid
from hubretrain.report.thumbnails import as_uri

_log = logging.getLogger(__name__)

FORMAT = "hubretrain saliency 1"
METHODS = {"gradcam": "Grad-CAM", "smoothgrad": "squared SmoothGrad"}
SIDE = 176  # pixels of a picture on the page
WEBP_QUALITY = 70


@dataclass(frozen=True, eq=False)
class _Maps:
    """The maps of one model: methods, and of each image the top-1 class and its maps."""

    title: str
    methods: tuple[str, ...]
    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]  # of these classes
    maps: npt.NDArray[np.uint8]  # (image, method, height, width)


def saliency_section(run_data: RunData, root: Path, n_images: int) -> dict[str, Any]:
    """Return saliency maps of the most confident errors, and of correct predictions per class.

    Args:
        run_data: The run.
        root: The folder that image paths are relative to.
        n_images: Number of images; 0 for no maps but those of an earlier report.

    Returns:
        Template values: the rows, and a sentence: what they show, or why there are none.
    """
    folder = run_data.run.folder
    path = folder / "report" / "saliency.h5"
    not_requested = {"saliency": [], "saliency_note": "No saliency maps were requested."}
    n_shown = n_images or _n_kept(path)
    if n_shown == 0 or not run_data.models:
        return not_requested
    try:
        module, model, notes = _explained(run_data)
        rows, images = _images(run_data, root, _chosen_rows(model, run_data, n_shown))
        if not rows:
            reason = (
                f"none of the images can be read in {root}, or all have changed; write the report "
                "again with the folder of the images."
            )
            return {"saliency": [], "saliency_note": f"No saliency maps: {reason}"}
        sha256s = run_data.images["sha256"].iloc[rows].tolist()
        identity = _identity(identity_of(folder, module), sha256s)
        maps = _load(path, identity, len(rows), len(run_data.class_names))
        if maps is None and n_images == 0:
            return not_requested  # those that are kept are of another model, or of other images
        if maps is None:
            maps = _explain(folder, module, images)
            _save(path, identity, sha256s, maps)
    except HubretrainError as error:
        return {"saliency": [], "saliency_note": f"No saliency maps: {error}"}
    is_of_other_head = module is not None and model.part == OUT_OF_FOLD
    note = " ".join([*notes, *_note(maps, is_of_other_head, run_data.multi_label)])
    return {"saliency": _template_rows(run_data, rows, images, maps), "saliency_note": note}


def _note(maps: _Maps, is_of_other_head: bool, multi_label: bool) -> Iterator[str]:
    what = "most probable label" if multi_label else "top-1 prediction"
    methods = " and ".join(METHODS[name] for name in maps.methods)
    yield (
        f"What {maps.title} looks at: its input, then {methods}, bright where the "
        f"{what} rests on the pixel. First the most confident errors, then correct "
        "predictions. A map shows where, not why; hubretrain explain draws it for any image."
    )
    if is_of_other_head:
        yield (
            "The errors are those of heads that were not fitted on the image; the map is of the "
            "head fitted on all folds, so its prediction may differ."
        )


def _template_rows(
    run_data: RunData, rows: list[int], images: list[Image.Image], maps: _Maps
) -> list[dict[str, Any]]:
    template_rows = []
    for i, row in enumerate(rows):
        pixels = view(images[i], maps.maps.shape[-1])
        overlays = [overlaid(pixels, levels) for levels in maps.maps[i]]
        class_name = run_data.class_names[maps.classes[i]]
        template_rows.append(
            {
                "path": str(run_data.images["path"].iloc[row]),
                "label": _given(run_data, row),
                "prediction": f"{class_name} {100 * maps.probabilities[i]:.1f} %",
                "image": _uri(Image.fromarray(pixels)),
                "maps": [_uri(overlay) for overlay in overlays],
            }
        )
    return template_rows


def _given(run_data: RunData, row: int) -> str:
    """Return the class of an image, or its labels."""
    label = str(run_data.images["label"].iloc[row])
    return (", ".join(split_labels(label)) or "no label") if run_data.multi_label else label


def _explained(run_data: RunData) -> tuple[str | None, EvaluatedModel, list[str]]:
    """Return what to explain (a module's head, or None: the export), its errors, and notes."""
    notes = []
    first = run_data.models[0]
    folder = export_of(run_data.run.folder)
    if first.kind == FINE_TUNED and folder is not None:
        manifest = read_manifest(folder)
        exported = [
            model
            for model in run_data.models
            if model.kind == FINE_TUNED and model.module == manifest.get("module")
        ]
        is_current = "image_sizes" in manifest
        if exported and is_current and manifest.get("fine_tuned", True):
            return None, exported[0], []
        why = "is not of a fine-tuned module" if is_current else "was written by an earlier version"
        notes.append(
            f"The run's export {why}, so a head is explained (export again to explain that model)."
        )
    module = run_data.fit.shortlist[0]
    heads = [m for m in run_data.models if m.module == module and m.kind == HEAD]
    # Errors on the test split come before those out of fold.
    model = min(heads, key=lambda head: head.part == OUT_OF_FOLD, default=first)
    return module, model, notes


def _images(run_data: RunData, root: Path, rows: list[int]) -> tuple[list[int], list[Image.Image]]:
    """Return those of the images that can be read and have not changed since the fit."""
    readable, images = [], []
    reading = reading_as(run_data.fit.data_options)
    for row in rows:
        path, sha256 = (str(run_data.images[c].iloc[row]) for c in ("path", "sha256"))
        with contextlib.suppress(DataError):
            images.append(read_image(root, path, sha256, reading))
            readable.append(row)
    return readable, images


def _chosen_rows(model: EvaluatedModel, run_data: RunData, n_images: int) -> list[int]:
    """Return the rows to explain: the most confident errors, then correct ones per class in turn.

    Two thirds are errors, where there are as many.
    """
    labels = run_data.labels[model.rows]
    confidence, top_1 = model.probabilities.max(axis=1), model.probabilities.argmax(axis=1)
    if run_data.multi_label:  # what is explained is the most probable label
        has_label = labels[np.arange(len(labels)), top_1]
        labels = np.where(has_label, top_1, -1)
    wrong = np.flatnonzero(top_1 != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: (2 * n_images + 2) // 3]
    correct = np.flatnonzero(top_1 == labels)
    correct = correct[np.argsort(-confidence[correct], kind="stable")]
    rank_in_class = pd.Series(labels[correct]).groupby(labels[correct]).cumcount().to_numpy()
    correct = correct[np.argsort(rank_in_class, kind="stable")]
    return [int(row) for row in model.rows[np.concatenate([wrong, correct])][:n_images]]


def _explain(folder: Path, module: str | None, images: list[Image.Image]) -> _Maps:
    from hubretrain.report.saliency.gradients import saliency
    from hubretrain.report.saliency.model import open_explained

    explained = open_explained(folder, module)
    model = explained.model
    methods = tuple(name for name in METHODS if name != "gradcam" or model.map_shape is not None)
    pixels = to_unit(np.stack([view(image, model.size) for image in images]))
    probs = explained.probabilities(pixels)
    classes = probs.argmax(axis=1)
    maps = []
    with Bar("saliency", len(images)) as bar:
        for image, c in zip(pixels, classes.tolist(), strict=True):
            levels = [eight_bits(saliency(model, image, c, name), name) for name in methods]
            maps.append(np.stack(levels))
            bar.advance()
    of_class = probs[np.arange(len(classes)), classes].astype(np.float64)
    return _Maps(explained.title, methods, classes, of_class, np.stack(maps))


def _identity(model: str, sha256s: list[str]) -> str:
    """Return a digest of everything that the maps depend on."""
    text = "\n".join([FORMAT, *METHODS, model, *sha256s])
    return hashlib.sha256(text.encode()).hexdigest()


def _save(path: Path, identity: str, sha256s: list[str], maps: _Maps) -> None:
    with digested_hdf5(path) as file:
        file.attrs["identity"], file.attrs["title"] = identity, maps.title
        file.attrs["methods"] = list(maps.methods)
        file["sha256"] = np.array(sha256s, dtype=h5py.string_dtype())
        file["class"], file["probability"] = maps.classes, maps.probabilities
        file["map"] = maps.maps


def _n_kept(path: Path) -> int:
    """Return of how many images an earlier report kept maps; a damaged file is told."""
    try:
        check_digest_block(path)
        with open_hdf5(path) as file:
            return len(array_in(file, "class", "i", 1))
    except FileNotFoundError:
        return 0
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        _log.warning(
            "%s cannot be read (%s): its maps are left out; make new ones by `n_saliency`.",
            path,
            reason,
        )
        return 0


def _load(path: Path, identity: str, n_images: int, n_classes: int) -> _Maps | None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(OSError, KeyError, TypeError, ValueError))
        check_digest_block(path)
        file = stack.enter_context(open_hdf5(path))
        methods: Any = file.attrs["methods"]
        maps = _Maps(
            str(file.attrs["title"]),
            tuple(str(name) for name in methods),
            array_in(file, "class", "i", 1)[:],
            array_in(file, "probability", "f", 1)[:],
            array_in(file, "map", "u", 4)[:],
        )
        shape = (n_images, len(maps.methods))
        is_whole = maps.maps.shape == (*shape, *maps.maps.shape[:1:-1])
        is_whole &= len(maps.classes) == len(maps.probabilities) == n_images
        is_whole &= bool((maps.classes >= 0).all() and (maps.classes < n_classes).all())
        if str(file.attrs["identity"]) == identity and is_whole and set(methods) <= set(METHODS):
            return maps
    return None  # missing or damaged: the maps are made again


def _uri(picture: Image.Image) -> str:
    return as_uri(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), WEBP_QUALITY)
