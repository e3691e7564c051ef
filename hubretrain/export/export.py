"""The export stage: a model that takes images, in one of several formats.

A run that was fine-tuned has its export already; a fitted head, or the ensemble of heads, is joined
with its modules here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubretrain.data.images import Augmentation
from hubretrain.errors import ModuleError
from hubretrain.evaluation import Calibration, Rule
from hubretrain.export.card import run_entries
from hubretrain.export.manifest import (
    MANIFEST,
    Export,
    check_replaceable,
    default_heads,
    heads_sha256,
    is_current,
    read_manifest,
    rule_entries,
)
from hubretrain.export.views import averaged_views
from hubretrain.files import StrPath
from hubretrain.heads import ENSEMBLE_NAME, Ensemble, Head, ModuleHeads
from hubretrain.modules import StoredModule, restore_module
from hubretrain.modules.onnx import is_onnx
from hubretrain.runs import FitRecord, Run

if TYPE_CHECKING:
    from hubretrain.modules import Classifier


def export_run(
    run: Run | StrPath,
    *,
    head: str | None = None,
    ensemble: bool = False,
    formats: Sequence[str] = (),
    tta: int | None = None,
    output: StrPath | None = None,
) -> Export:
    """Export a run.

    Without `head` or `ensemble` it is the run's export, which fine-tuning left; where there is
    none, the heads that fine-tuning found better than what it trained, or the head of the
    shortlist's first module; exported anew if the run was fitted since.
    Formats that are there stay there, and so do the views that it averages over.

    Args:
        run: A fitted run, or its folder.
        head: Module whose fitted head is exported.
        ensemble: Whether to export the run's ensemble of heads.
        formats: Formats among `savedmodel`, `litert`, `onnx`; the SavedModel is always written,
            and LiteRT too where the model can be converted; of ONNX modules ONNX alone.
        tta: Test-time augmentation: number of views whose probabilities the exported model
            averages, 1 to 8: the image itself, then flips, quarter turns and centred crops such as
            the model was trained on. By default 1, or as many as the folder's export has.
        output: Folder of the export; by default `<run>/export`, and `<run>/exports/<module>` or
            `<run>/exports/ensemble` for `head` and `ensemble`.

    Raises:
        RunError: The run is not fitted, or the folder holds something else.
        WriteError: The folder cannot be written.
        HeadError: There is no such head.
        ModuleError: A module cannot be loaded, or is not what it was.
        EngineError: The model cannot be converted as asked.
        DataError: The augmentation that the model was trained on has fewer views than `tta`.

    Examples:
        >>> from hubretrain import export_run
        >>> export = export_run("runs/digits", head="small", output="head")
        >>> export.class_names
        ['0', '1', '2']
    """
    run = Run.of(run)
    fit = run.fit
    is_named = ensemble or head is not None
    name = ENSEMBLE_NAME if ensemble else str(head)
    default = run.folder / "exports" / name if is_named else run.export_folder
    folder = default if output is None else Path(output)
    check_replaceable(folder)
    if not is_named and is_current(run) and Export.open(run.export_folder).has("savedmodel"):
        return _export_again(run, folder, formats, tta)
    kept_formats, kept_tta = _to_keep(folder)
    formats, tta = [*formats, *kept_formats], tta or kept_tta
    if not is_named:
        name = default_heads(run)
    if name == ENSEMBLE_NAME:
        _export_ensemble(run, fit, folder, formats, tta)
    else:
        _export_head(run, fit, name, folder, formats, tta)
    return Export.open(folder)


def why_not_joined(fit: FitRecord, modules: Iterable[str]) -> str:
    """Return why no one model holds an ensemble: it mixes ONNX modules and others; else empty."""
    names = list(modules)
    handles = {name: fit.module(name).handle for name in names}
    network = [n for n in names if is_onnx(handles[n]) or handles[n].startswith("timm:")]
    if len(network) in (0, len(names)):
        return ""
    best = next((name for name in fit.shortlist if name in names), names[0])
    others = [name for name in names if name not in network]
    return (
        f"the ensemble joins ONNX modules ({', '.join(network)}) with others "
        f"({', '.join(others)}), which no one model can hold; export the head of one module by "
        f"`head`, of which {best} is the best, or fit an ensemble of modules of one kind."
    )


def _export_again(run: Run, folder: Path, formats: Sequence[str], tta: int | None) -> Export:
    """Export a run's current export, with further formats or other views."""
    from hubretrain.export.writer import add_formats, copy_export, rewrite_export

    source = run.export_folder
    current = Export.open(source)
    is_elsewhere = folder.resolve() != source.resolve()
    if tta not in (None, current.n_views):
        formats = [*formats, *_to_keep(folder)[0]]
        rewrite_export(source, folder, formats, current.views(tta))
        return Export.open(folder)
    return copy_export(source, folder, formats) if is_elsewhere else add_formats(folder, formats)


def _to_keep(folder: Path) -> tuple[list[str], int]:
    """Return the formats that an earlier export to a folder was asked for, and its views."""
    if not (folder / MANIFEST).is_file():
        return [], 1
    earlier = read_manifest(folder)
    formats = ["onnx"] if "model.onnx" in earlier.get("files", ()) else []
    return formats, len(earlier.get("tta") or ()) or 1


def _export_head(
    run: Run, fit: FitRecord, module: str, folder: Path, formats: Sequence[str], tta: int
) -> None:
    fit.module(module)  # refuses one that was not fitted before its head file is looked for
    head = ModuleHeads.load(run.checked_heads(module)).deployed
    manifest = {
        **_manifest(run, fit, module, head.rule, head.calibration),
        **run_entries(run, module),
        "heads_sha256": heads_sha256(run, module),
    }
    _write(fit, [(module, head, 1.0)], folder, manifest, head.calibration, formats, tta)


def _export_ensemble(
    run: Run, fit: FitRecord, folder: Path, formats: Sequence[str], tta: int
) -> None:
    ensemble = Ensemble.load(run.checked_ensemble())
    if why := why_not_joined(fit, ensemble.weights):
        raise ModuleError(why)
    manifest = {
        **_manifest(run, fit, next(iter(ensemble.weights)), ensemble.rule, ensemble.calibration),
        **run_entries(run, ENSEMBLE_NAME),
        "module": ENSEMBLE_NAME,  # also of an ensemble with a single member
        "heads_sha256": heads_sha256(run, ENSEMBLE_NAME),
    }
    members = [
        (name, ModuleHeads.load(run.checked_heads(name)).ensemble_member, weight)
        for name, weight in ensemble.weights.items()
    ]
    _write(fit, members, folder, manifest, ensemble.calibration, formats, tta)


def _write(
    fit: FitRecord,
    heads: Sequence[tuple[str, Head, float]],
    folder: Path,
    manifest: Mapping[str, Any],
    calibration: Calibration,
    formats: Sequence[str],
    tta: int,
) -> None:
    """Export heads: of each the name of its module, the head, and its weight in the mean."""
    views = averaged_views(Augmentation(**manifest["augmentation"]), tta)
    modules = {name: restore_module(name, fit.module(name)) for name, _, _ in heads}
    settings: dict[str, Any] = {
        "temperature": calibration.temperature,
        "formats": formats,
        "views": views,
    }
    if any(module.is_onnx for module in modules.values()):
        from hubretrain.export.onnx_graph import OnnxMember  # imports onnx
        from hubretrain.export.onnx_writer import write_onnx_export

        onnx_members = [OnnxMember(modules[name], head, weight) for name, head, weight in heads]
        write_onnx_export(onnx_members, fit.class_names, folder, manifest, **settings)
        return
    from hubretrain.export.writer import Member, write_export

    members = [Member(_classifier(modules[name], head), weight) for name, head, weight in heads]
    write_export(members, fit.class_names, folder, manifest, **settings)


def _manifest(
    run: Run,
    fit: FitRecord,
    module: str,
    rule: Rule,
    calibration: Calibration,
) -> dict[str, Any]:
    """Return what the manifest says of fitted heads; `module` is the one with the views."""
    attributes = fit.module(module).attributes
    names = [field.name for field in fields(Augmentation) if field.name in attributes]
    augmentation = Augmentation(**{name: attributes[name] for name in names})
    return {
        "run": run.name,
        "fine_tuned": False,
        **rule_entries(rule),
        "calibration": {
            "images": "out of fold",
            "log_loss_before": calibration.log_loss_before,
            "log_loss_after": calibration.log_loss_after,
        },
        "augmentation": asdict(augmentation),
        **{name: attributes[name] for name in ("bits",) if name in attributes},
    }


def _classifier(stored: StoredModule, head: Head) -> Classifier:
    from hubretrain.modules import Backbone, Classifier

    arrays = (head.weight, head.bias, head.hidden_weight, head.hidden_bias)
    backbone = Backbone(stored, head.layers)
    return Classifier(backbone, head.kind, *arrays, multi_label=head.multi_label)
