"""Writes the export folder of heads on ONNX modules, whole or not at all, without TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubretrain.errors import EngineError, WriteError
from hubretrain.export.card import CARD, model_card, model_entries
from hubretrain.export.manifest import (
    LABELS,
    MANIFEST,
    MODEL_OF,
    check_replaceable,
    label_lines,
)
from hubretrain.export.onnx_graph import OnnxMember, serving_model
from hubretrain.export.views import AveragedView
from hubretrain.files import file_sha256, folder_aside, replace_folder, write_record


def write_onnx_export(
    members: Sequence[OnnxMember],
    class_names: Sequence[str],
    folder: Path,
    metadata: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    formats: Sequence[str] = (),
    views: Sequence[AveragedView] = (AveragedView(),),
) -> None:
    """Write the export folder of heads on ONNX modules; arguments and errors as of `write_export`.

    It holds `model.onnx` in the place of a SavedModel.
    """
    names = ", ".join(member.module.name for member in members)
    if others := sorted(set(formats) - {"onnx"}):
        raise EngineError(
            f"{names} is run as ONNX, so its export is ONNX alone; leave out `formats` "
            f"{', '.join(others)}."
        )
    check_replaceable(folder)
    modules = [(m.module, m.head.kind, m.weight) for m in members]
    manifest = {
        **model_entries(modules, class_names, metadata, temperature),
        "tta": [view.name for view in views] if len(views) > 1 else [],
        "not_converted": f"{names} is an ONNX module",
    }
    model = serving_model(
        members, temperature, views, multi_label=bool(metadata.get("multi_label"))
    )
    content = model.SerializeToString()
    with _aside(folder) as aside:
        new = aside / "new"
        new.mkdir()
        path = new / MODEL_OF["onnx"]
        path.write_bytes(content)
        (new / LABELS).write_bytes(label_lines(class_names).encode("utf-8"))
        manifest["files"] = {path.name: file_sha256(path)}
        write_record(new / MANIFEST, manifest)
        (new / CARD).write_bytes(model_card(manifest).encode("utf-8", "replace"))
        replace_folder(new, folder)


@contextlib.contextmanager
def _aside(folder: Path) -> Any:
    try:
        with folder_aside(folder) as aside:
            yield aside
    except OSError as error:
        raise WriteError(
            f"{folder}/ cannot be written ({error}); free disk space, fix permissions, or choose "
            "another folder."
        ) from error
