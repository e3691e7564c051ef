"""The report's section on provenance: the commands that reproduce a run, versions, digests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from hubretrain.data import SplitOptions, TableOptions
from hubretrain.data.images import Augmentation
from hubretrain.export import Export
from hubretrain.extraction import CacheOptions
from hubretrain.files import file_sha256
from hubretrain.finetuning import saved_options
from hubretrain.modules import IMPORTED, license_of
from hubretrain.option_fields import flags_of
from hubretrain.report.run_data import RunData
from hubretrain.runs import FitRecord, ModuleRecord, Run
from hubretrain.screening import ClassWeightByName, ScreenOptions

FILES = (
    "run.json",
    "folds.csv",
    "leaderboard.csv",
    "heads.csv",
    "per_class.csv",
    "effects.csv",
    "out_of_fold.csv",
    "test_predictions.csv",
    "ensemble.json",
)
PATTERNS = ("heads/*.h5", "finetune/*/*.csv", "export/export.json", "export/saved_model.pb")


def section(run_data: RunData) -> dict[str, Any]:
    """Return the template values of the section."""
    return {
        "commands": commands(run_data),
        "provenance": table(run_data),
        "modules": modules(run_data),
        "files": file_digests(run_data.run),
    }


def commands(run_data: RunData) -> str:
    """Return the commands that reproduce the run, as far as `run.json` records them."""
    run, fit = run_data.run, run_data.fit
    data = _data_words(fit)
    lines = [_cache_words(fit, data, module) for module in fit.modules.values()]
    lines.append(_fit_words(run, fit, data))
    for name in run_data.finetune.modules:
        words = ["hubretrain", "finetune", str(run.folder), "--module", name]
        lines.append([*words, *_finetune_words(run, name)])
    lines.append(["hubretrain", "report", str(run.folder)])
    return "\n".join(shlex.join(words) for words in lines)


def _cache_words(fit: FitRecord, data: list[str], module: ModuleRecord) -> list[str]:
    has_name = module.handle.startswith(IMPORTED)
    handle = module.handle if "/" in module.handle and not has_name else module.module
    return [
        *("hubretrain", "cache", *data, "--module", handle),
        *flags_of(_cache_options(module)),
        *flags_of(SplitOptions(fit.n_folds)),  # cache checks that the classes suffice for them
        *("--cache", str(fit.cache)),
    ]


def _fit_words(run: Run, fit: FitRecord, data: list[str]) -> list[str]:
    options = ScreenOptions(
        metric=fit.metric,
        class_weights=tuple(map(_class_weight, fit.class_weights)),
        adjust=fit.adjust,
        l2=fit.l2,
        views=fit.views,
        layers=fit.layers,
        heads=fit.heads,
        split=SplitOptions(fit.n_folds, fit.test_fraction, fit.seed, fit.duplicates_kept_together),
        top=fit.top,
    )
    words = ["hubretrain", "fit", *data, "--run", str(run.folder), "--cache", str(fit.cache)]
    words += [word for name in fit.modules for word in ("--module", name)]
    return words + flags_of(options)


def _class_weight(recorded: str | Mapping[str, float]) -> ClassWeightByName:
    if isinstance(recorded, str):
        return None if recorded == "none" else recorded
    return dict(recorded)


def _cache_options(module: ModuleRecord) -> CacheOptions:
    """Return the options that a bottleneck file was computed with."""
    recorded, usual = module.attributes, CacheOptions()
    n_views = module.n_views or usual.n_views
    minority_views, batch_size = module.minority_views, recorded.get("batch_size")
    return CacheOptions(
        n_views=n_views,
        minority_views=None if minority_views == n_views else minority_views,
        augmentation=augmentation_of(recorded),
        seed=int(recorded.get("seed", usual.seed)),
        precision=str(recorded.get("precision", usual.precision)),
        batch_size=None if batch_size is None else int(batch_size),
    )


def _finetune_words(run: Run, module: str) -> list[str]:
    """Return the options of a fine-tuning that differ from the defaults."""
    options = saved_options(run.finetune_folder(module))
    epochs = ["--epochs", str(options.epochs)] if options.epochs else []
    return [*epochs, *flags_of(options)]


def augmentation_of(recorded: Mapping[str, Any]) -> Augmentation:
    """Return the augmentation that a bottleneck file or a fine-tuning recorded."""
    defaults = vars(Augmentation())
    return Augmentation(
        **{name: type(value)(recorded.get(name, value)) for name, value in defaults.items()}
    )


def table(run_data: RunData) -> list[tuple[str, str]]:
    """Return options, seeds and versions: name and value."""
    fit = run_data.fit
    rows = [
        ("images", str(fit.data)),
        ("data set options", _json(fit.data_options)),
        ("cache", str(fit.cache)),
        ("metric of choice", fit.metric),
        ("random seed of split and resamples", str(fit.seed)),
        ("folds, test fraction", f"{fit.n_folds}, {fit.test_fraction}"),
        ("l2", ", ".join(f"{l2:g}" for l2 in fit.l2)),
        ("class weights", _json(fit.class_weights)),
        ("logit adjustment", _json(fit.adjust)),
        ("looks at the test split by fit", f"{len(fit.test_looked_at):,}"),
        ("looks at the test split by finetune", f"{len(run_data.finetune.test_looked_at):,}"),
    ]
    for name, record in run_data.finetune.modules.items():
        rows.append((f"fine-tuning of {name}", _json(record.identity)))
    return rows + list(fit.versions.items())


def modules(run_data: RunData) -> list[list[str]]:
    """Return name, image size, engine, licence, handle and sha256 of each module."""
    return [
        [
            module.module,
            str(module.image_size),
            str(module.attributes.get("engine", "")),
            license_of(module.handle) or "unknown",
            module.handle,
            module.module_sha256,
        ]
        for module in run_data.fit.modules.values()
    ]


def file_digests(run: Run) -> list[tuple[str, str]]:
    """Return path and sha256 of each file of the run that the report rests on.

    Raises:
        RunError: A file of the fit or of the export is damaged or gone.
    """
    paths = [run.folder / name for name in FILES]
    paths += [path for pattern in PATTERNS for path in sorted(run.folder.glob(pattern))]
    named = {path.relative_to(run.folder).as_posix(): path for path in paths if path.is_file()}
    for name in sorted(run.fit.files):
        if name in FILES or any(fnmatch(name, pattern) for pattern in PATTERNS):
            run.checked(run.folder / name)
    if "export/saved_model.pb" in named:
        Export.open(run.export_folder).model("savedmodel")
    return [(name, file_sha256(path)) for name, path in named.items()]


def _data_words(fit: FitRecord) -> list[str]:
    recorded = fit.data_options
    labels = ["--labels", str(recorded["labels"])] if recorded.get("labels") else []
    table = TableOptions(
        **{name: recorded.get(name, value) for name, value in vars(TableOptions()).items()}
    )
    more_roots = map(str, recorded.get("more_roots") or [])
    return [str(fit.data), *more_roots, *labels, *flags_of(table)]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
