"""A trained classifier becomes an export folder, whole or not at all.

The SavedModel comes first; every other format is converted from its signature `pixels`, so they
hold the same weights, range and temperature. `hubretrain.export.manifest` says what stands
there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hubretrain.errors import EngineError, RunError
from hubretrain.export import litert as litert_door
from hubretrain.export import onnx as onnx_door
from hubretrain.export.graph import Member, ServingGraph
from hubretrain.export.manifest import FACTS, LABELS, MODEL_OF, Export, refuse_other
from hubretrain.files import file_sha256, folder_aside, replace_folder, write_json
from hubretrain.heads import ENSEMBLE_NAME
from hubretrain.modules import Classifier
from hubretrain.tensorflow import tf

__all__ = ["Member", "add_formats", "copy_export", "export_ensemble", "export_saved_model"]


def export_saved_model(
    classifier: Classifier,
    class_names: Sequence[str],
    folder: Path,
    facts: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    formats: Sequence[str] = (),
) -> None:
    """Writes the export folder of one model, whole or not at all.

    Args:
        classifier: The trained model.
        class_names: In class order.
        folder: Where to; an export that is there is replaced.
        facts: What else `export.json` is to hold; `adjust` as it was chosen, for probabilities
            without the temperature.
        temperature: Of the calibration, see `hubretrain.evaluation.temperature`.
        formats: `litert` and `onnx`, where the model must be there in them. LiteRT is made
            unasked where it can be.

    Raises:
        RunError: The folder holds something else.
        WriteError: The folder cannot be written.
        EngineError: The model cannot be converted as asked.
    """
    stored = classifier.backbone.stored
    known = {
        "module": stored.name,
        "module_sha256": stored.sha256,
        "head": classifier.kind,
    }
    _export([Member(classifier)], class_names, folder, {**known, **facts}, temperature, formats)


def export_ensemble(
    members: Sequence[Member],
    class_names: Sequence[str],
    folder: Path,
    facts: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    formats: Sequence[str] = (),
) -> None:
    """Writes the export folder of an ensemble: the weighted mean of its members' probabilities.

    It is served as one model is: image bytes in, probabilities out; each member gets the image in
    its own size.

    Args:
        members: Classifiers and their weights.
        class_names: In class order.
        folder: Where to; an export that is there is replaced.
        facts: As `export_saved_model` takes them.
        temperature: Of the calibration of the mean.
        formats: As `export_saved_model` takes them.

    Raises:
        RunError: The folder holds something else.
        WriteError: The folder cannot be written.
        EngineError: The model cannot be converted as asked.
    """
    known = {
        "module": ENSEMBLE_NAME,
        "members": [
            {
                "module": one.classifier.backbone.stored.name,
                "module_sha256": one.classifier.backbone.stored.sha256,
                "image_size": one.image_size,
                "head": one.classifier.kind,
                "weight": one.weight,
            }
            for one in members
        ],
    }
    _export(members, class_names, folder, {**known, **facts}, temperature, formats)


def add_formats(folder: Path, formats: Sequence[str]) -> Export:
    """Converts an export to more formats, beside those that it has.

    Args:
        folder: The export folder.
        formats: `litert`, `onnx`.

    Raises:
        RunError: The folder holds no whole export.
        WriteError: It cannot be written.
        EngineError: The model cannot be converted.
    """
    exported = Export.open(folder)
    missing = [one for one in formats if one != "savedmodel" and not exported.has(one)]
    if missing:
        exported.model("savedmodel")
        with _aside(folder) as aside:
            made = _converted(folder, aside, missing)
            for name in made:
                os.replace(aside / name, folder / name)
        facts = {**exported.facts, "files": exported.facts["files"] | made}
        if "litert" in missing:
            facts["not_converted"] = ""
        write_json(folder / FACTS, facts)
    return Export.open(folder)


def copy_export(source: Path, folder: Path, formats: Sequence[str]) -> Export:
    """Copies an export and converts the copy to the formats that it lacks, whole or not at all.

    Args:
        source: An export folder.
        folder: Where to; an export that is there is replaced.
        formats: `litert`, `onnx`.

    Raises:
        RunError: `source` holds no whole export, or `folder` something else or cannot be
            written.
        EngineError: The model cannot be converted.
    """
    refuse_other(folder)
    with _aside(folder) as aside:
        shutil.copytree(source, aside / "new")
        add_formats(aside / "new", formats)
        replace_folder(aside / "new", folder)
    return Export.open(folder)


def _export(
    members: Sequence[Member],
    class_names: Sequence[str],
    folder: Path,
    facts: Mapping[str, Any],
    temperature: float,
    formats: Sequence[str],
) -> None:
    refuse_other(folder)
    served = ServingGraph(members, class_names, temperature)
    # The rule was chosen for the probabilities without a temperature: this keeps its decisions.
    strength = float(facts.get("adjust") or 0.0) / temperature
    with _aside(folder) as aside:
        new = aside / "new"
        tf.saved_model.save(served, str(new), served.signatures_of)
        (new / LABELS).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
        files = {
            path.relative_to(new).as_posix(): file_sha256(path)
            for path in sorted(new.rglob("*"))
            if path.is_file() and path.name not in (LABELS, "fingerprint.pb")
        }
        not_converted = ""
        try:
            files |= _converted(new, new, sorted({"litert", *formats} - {"savedmodel"}))
        except EngineError as error:
            if formats and set(formats) != {"savedmodel"}:
                raise
            not_converted = str(error)  # TensorFlow runs it all the same
        image_sizes = list(served.sizes)
        known = {
            "class_names": list(class_names),
            "image_sizes": image_sizes,
            "image_size": image_sizes[0] if len(image_sizes) == 1 else None,
            **facts,
            "temperature": temperature,
            "adjust": strength,
            "not_converted": not_converted,
            "files": files,
        }
        write_json(new / FACTS, known)
        replace_folder(new, folder)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to, gone afterwards."""
    try:
        with folder_aside(folder) as aside:
            yield aside
    except (OSError, tf.errors.OpError) as error:
        raise RunError(
            f"{folder}/ cannot be written ({error}); make room and try again."
        ) from error


def _converted(saved_model: Path, place: Path, formats: Sequence[str]) -> dict[str, str]:
    """Makes the files of some formats in `place`: file name to its sha256."""
    names = []
    for one in formats:
        names.append(MODEL_OF[one])
        if one == "litert":
            litert_door.convert(saved_model, place / MODEL_OF[one])
            names.append(MODEL_OF["litert_int8"])
            litert_door.convert(saved_model, place / MODEL_OF["litert_int8"], int8=True)
        else:
            onnx_door.convert(saved_model, place / MODEL_OF[one])
    return {name: file_sha256(place / name) for name in names}
