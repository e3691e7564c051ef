"""Writes the export folder of a trained model, whole or not at all.

The SavedModel comes first; every other format is converted from its signature `pixels`, so all
formats hold the same weights, input range and temperature. `hubretrain.export.manifest` documents
the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hubretrain.errors import EngineError, RunError, WriteError
from hubretrain.export import litert, onnx
from hubretrain.export.card import CARD, model_card, model_entries
from hubretrain.export.graph import MeanOfMembers, Member, ServingGraph
from hubretrain.export.manifest import (
    LABELS,
    MANIFEST,
    MODEL_OF,
    Export,
    check_replaceable,
    label_lines,
)
from hubretrain.export.views import AveragedView
from hubretrain.files import file_sha256, folder_aside, replace_folder, write_record
from hubretrain.tensorflow import tf

__all__ = ["Member", "add_formats", "copy_export", "rewrite_export", "write_export"]


def write_export(
    members: Sequence[Member],
    class_names: Sequence[str],
    folder: Path,
    metadata: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    formats: Sequence[str] = (),
    views: Sequence[AveragedView] = (AveragedView(),),
) -> None:
    """Write the export folder of a model: one classifier, or an ensemble of several.

    An ensemble, the weighted mean of its members' probabilities, is served as a single model is:
    image bytes in, probabilities out; each member gets the image in its own size.

    Args:
        members: Classifiers and their weights.
        class_names: Class names in class order.
        folder: Destination; an export that is there is replaced.
        metadata: Further entries of `export.json`; those of `rule_entries` as the rule was chosen,
            for probabilities without the temperature.
        temperature: Calibration temperature of the probabilities, or of the ensemble's mean, see
            `hubretrain.evaluation.temperature`.
        formats: `litert` and `onnx`, where the model must be available in them. Without being
            asked, LiteRT is written if the model can be converted.
        views: Views whose probabilities are averaged in the graph, the image itself first.

    Raises:
        RunError: The folder holds something other than an export.
        WriteError: The folder cannot be written.
        EngineError: The model cannot be converted to one of `formats`.
    """
    check_replaceable(folder)
    model = MeanOfMembers(members)
    modules = [(m.classifier.backbone.stored, m.classifier.kind, m.weight) for m in members]
    manifest = model_entries(modules, class_names, metadata, temperature)
    _write(model, folder, manifest, formats, views)


def rewrite_export(
    source: Path, folder: Path, formats: Sequence[str], views: Sequence[AveragedView]
) -> None:
    """Write an export that averages over other views than one that is there.

    Args:
        source: The export folder of the model.
        folder: Destination, which may be `source`; an export that is there is replaced.
        formats: Names of formats, as `write_export` takes them.
        views: Views whose probabilities are averaged, the image itself first.

    Raises:
        RunError: `source` holds no complete export of this version, or `folder` something other
            than an export.
        WriteError: `folder` cannot be written.
        EngineError: The model cannot be converted to one of `formats`.
    """
    check_replaceable(folder)
    export = Export.open(source)
    export.model("savedmodel")  # its bytes are checked
    model = getattr(tf.saved_model.load(str(export.folder)), "model", None)
    if model is None:
        raise RunError(
            f"{source} was written by another version, whose views cannot be changed; fit or "
            "fine-tune the model again."
        )
    _write(model, folder, export.manifest, formats, views)


def _write(
    model: Any,
    folder: Path,
    manifest: Mapping[str, Any],
    formats: Sequence[str],
    views: Sequence[AveragedView],
) -> None:
    """Write a model, a `MeanOfMembers` or one that was loaded, and complete its manifest."""
    class_names = manifest["class_names"]
    graph = ServingGraph(
        model,
        manifest["image_sizes"],
        class_names,
        manifest["temperature"],
        views,
        multi_label=bool(manifest.get("multi_label")),
    )
    with _aside(folder) as aside:
        new = aside / "new"
        tf.saved_model.save(graph, str(new), graph.signatures_of)
        (new / LABELS).write_bytes(label_lines(class_names).encode("utf-8"))
        files = {
            path.relative_to(new).as_posix(): file_sha256(path)
            for path in sorted(new.rglob("*"))
            if path.is_file() and path.name not in (LABELS, "fingerprint.pb")
        }
        not_converted = ""
        try:
            files |= _convert(new, new, sorted({"litert", *formats} - {"savedmodel"}))
        except EngineError as error:
            if set(formats) - {"savedmodel"}:
                raise
            not_converted = str(error)  # TensorFlow runs it all the same
        completed = {
            **manifest,
            "tta": [view.name for view in views] if len(views) > 1 else [],
            "not_converted": not_converted,
            "files": files,
        }
        write_record(new / MANIFEST, completed)
        (new / CARD).write_bytes(model_card(completed).encode("utf-8", "replace"))
        replace_folder(new, folder)


def add_formats(folder: Path, formats: Sequence[str]) -> Export:
    """Convert an export to further formats, beside those that it has.

    Args:
        folder: The export folder.
        formats: Names of formats: `savedmodel`, `litert`, `onnx`.

    Raises:
        RunError: The folder holds no complete export.
        WriteError: The folder cannot be written.
        EngineError: The model cannot be converted.
    """
    export = Export.open(folder)
    missing = [name for name in formats if name != "savedmodel" and not export.has(name)]
    if missing:
        export.model("savedmodel")  # converted only if its bytes are those that were exported
        with _aside(folder) as aside:
            files = _convert(folder, aside, missing)
            for name in files:
                os.replace(aside / name, folder / name)
        manifest = {**export.manifest, "files": export.manifest["files"] | files}
        if "litert" in missing:
            manifest["not_converted"] = ""
        write_record(folder / MANIFEST, manifest)
    return Export.open(folder)


def copy_export(source: Path, folder: Path, formats: Sequence[str]) -> Export:
    """Copy an export and convert the copy to the formats that it lacks, whole or not at all.

    Args:
        source: The export folder to copy.
        folder: Destination; an export that is there is replaced.
        formats: Names of formats: `savedmodel`, `litert`, `onnx`.

    Raises:
        RunError: `source` holds no complete export, or `folder` something other than an export.
        WriteError: `folder` cannot be written.
        EngineError: The model cannot be converted.
    """
    check_replaceable(folder)
    with _aside(folder) as aside:
        shutil.copytree(source, aside / "new")
        add_formats(aside / "new", formats)
        replace_folder(aside / "new", folder)
    return Export.open(folder)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Make a folder beside `folder` to write to, removed afterwards."""
    try:
        with folder_aside(folder) as aside:
            yield aside
    except (OSError, tf.errors.OpError) as error:
        raise WriteError(
            f"{folder}/ cannot be written ({error}); free disk space, fix permissions, or choose "
            "another folder."
        ) from error


def _convert(saved_model: Path, folder: Path, formats: Sequence[str]) -> dict[str, str]:
    """Convert a SavedModel to formats in `folder`; return file name to its sha256."""
    names = []
    for name in formats:
        names.append(MODEL_OF[name])
        if name == "litert":
            litert.convert(saved_model, folder / MODEL_OF[name])
            names.append(MODEL_OF["litert_int8"])
            litert.convert(saved_model, folder / MODEL_OF["litert_int8"], int8=True)
        else:
            onnx.convert(saved_model, folder / MODEL_OF[name])
    return {name: file_sha256(folder / name) for name in names}
