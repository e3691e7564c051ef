"""The export stage: what a run found becomes a model that takes images, in one of several formats.

A run that was fine-tuned has its export already; a fitted head alone, or the ensemble, is joined
with its modules here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubretrain.data.images import Augmentation
from hubretrain.errors import DataError, HeadError
from hubretrain.evaluation import temperature_of
from hubretrain.export.manifest import (
    FACTS,
    Export,
    heads_sha256,
    is_current,
    read_facts,
    refuse_other,
)
from hubretrain.heads import ENSEMBLE_NAME, Ensemble, Head, ModuleHeads
from hubretrain.modules import restore_module
from hubretrain.run_tables import OUT_OF_FOLD
from hubretrain.runs import FitRecord, Run

if TYPE_CHECKING:
    from hubretrain.modules import Classifier


def export_run(
    run: Run,
    *,
    head: str | None = None,
    ensemble: bool = False,
    formats: Sequence[str] = (),
    output: Path | None = None,
) -> Export:
    """Exports a run.

    Without `head` or `ensemble` it is the run's export, which fine-tuning left; where there is
    none, the head of the shortlist's first module, anew where the run was fitted since. Formats
    that are there stay there.

    Args:
        run: A fitted run.
        head: The module whose fitted head is exported.
        ensemble: Export the run's ensemble of heads.
        formats: Of `savedmodel`, `litert`, `onnx`; the SavedModel is always written, and
            LiteRT too where it can be.
        output: Where to; by default `<run>/export`, and `<run>/exports/<module>` or
            `<run>/exports/ensemble` for what was asked for by name.

    Raises:
        RunError: The run is not fitted, or the folder holds something else.
        WriteError: The folder cannot be written.
        HeadError: There is no such head.
        ModuleError: A module cannot be loaded, or is not what it was.
        EngineError: The model cannot be converted as asked.
    """
    fit = run.fit
    is_asked = ensemble or head is not None
    name = ENSEMBLE_NAME if ensemble else str(head)
    folder = output or (run.folder / "exports" / name if is_asked else run.export_folder)
    refuse_other(folder)
    from hubretrain.export.writer import add_formats, copy_export  # imports TensorFlow

    if not is_asked and is_current(run):
        if folder.resolve() == run.export_folder.resolve():
            return add_formats(folder, formats)
        return copy_export(run.export_folder, folder, formats)
    formats = [*formats, *_formats_there(folder)]
    if ensemble:
        _export_ensemble(run, fit, folder, formats)
    else:
        _export_head(run, fit, head or fit.shortlist[0], folder, formats)
    return Export.open(folder)


def _formats_there(folder: Path) -> list[str]:
    """What an earlier export to a folder was asked for, and is not to lose."""
    there = (folder / FACTS).is_file() and "model.onnx" in read_facts(folder).get("files", ())
    return ["onnx"] if there else []


def _export_head(
    run: Run, fit: FitRecord, module: str, folder: Path, formats: Sequence[str]
) -> None:
    from hubretrain.export.writer import Member, write_export

    fit.module(module)  # refuses one that was not fitted before its head file is looked for
    head = ModuleHeads.load(run.heads_file(module)).deployed
    classifier = _classifier(fit, module, head)
    known = {
        "run": run.name,
        "fine_tuned": False,
        "heads_sha256": heads_sha256(run, module),
        "adjust": head.rule.strength,
        "priors": list(head.rule.priors),
        "augmentation": _augmentation(fit, module),
    }
    temperature = _temperature(run, module, fit.class_names)
    members = [Member(classifier)]
    write_export(members, fit.class_names, folder, known, temperature=temperature, formats=formats)


def _export_ensemble(run: Run, fit: FitRecord, folder: Path, formats: Sequence[str]) -> None:
    from hubretrain.export.writer import Member, write_export

    ensemble = Ensemble.load(run.ensemble_file)
    members = []
    for name, weight in ensemble.weights.items():
        head = ModuleHeads.load(run.heads_file(name)).ensemble_member
        members.append(Member(_classifier(fit, name, head), weight))
    known = {
        "module": ENSEMBLE_NAME,  # also of an ensemble with a single member
        "run": run.name,
        "fine_tuned": False,
        "adjust": ensemble.rule.strength,
        "priors": list(ensemble.rule.priors),
        "augmentation": _augmentation(fit, next(iter(ensemble.weights))),
    }
    temperature = _temperature(run, ENSEMBLE_NAME, fit.class_names)
    write_export(members, fit.class_names, folder, known, temperature=temperature, formats=formats)


def _classifier(fit: FitRecord, module: str, head: Head) -> Classifier:
    stored = restore_module(module, fit.module(module))
    from hubretrain.modules import Backbone, Classifier

    return Classifier(Backbone(stored), head.kind, head.weight, head.bias)


def _augmentation(fit: FitRecord, module: str) -> dict[str, Any]:
    """How the module's cached views differ: facts of its bottleneck file."""
    known = fit.modules[module].attributes
    names = [field.name for field in fields(Augmentation) if field.name in known]
    return asdict(Augmentation(**{name: known[name] for name in names}))


def _temperature(run: Run, row: str, class_names: Sequence[str]) -> float:
    """Fitted on what heads said of images that they were neither fitted nor chosen on.

    Raises:
        HeadError: The run has no such probabilities.
    """
    table = OUT_OF_FOLD.read(run.folder)
    try:
        return temperature_of(table[table["module"] == row], class_names)
    except (ValueError, KeyError, DataError) as error:
        raise HeadError(
            f"{OUT_OF_FOLD.path(run.folder)} holds no probabilities of {row} ({error}); "
            "run `hubretrain fit` again."
        ) from error
