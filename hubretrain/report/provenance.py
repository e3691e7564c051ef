"""The report's section on provenance: the commands that reproduce a run, versions, digests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from hubretrain.data.images import Augmentation
from hubretrain.errors import RunError
from hubretrain.files import file_sha256
from hubretrain.finetuning import FineTuneOptions, saved_options
from hubretrain.report.run_data import RunData
from hubretrain.runs import FitRecord, ModuleRecord, Run
from hubretrain.screening import L2

FILES = (
    "run.json",
    "folds.csv",
    "leaderboard.csv",
    "heads.csv",
    "per_class.csv",
    "effects.csv",
    "out_of_fold.csv",
    "ensemble.json",
)
PATTERNS = ("heads/*.h5", "finetune/*/*.csv", "export/export.json", "export/saved_model.pb")
_DATA_FLAGS = ("labels", "image_column", "label_column", "group_column", "split_column")


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
    attributes = module.attributes
    handle = module.handle if "/" in module.handle else module.module
    return [
        *("hubretrain", "cache", *data, "--module", handle),
        *_unless("--views", module.n_views, None),
        *_unless("--minority-views", module.minority_views, module.n_views),
        *augmentation_words(attributes),
        *_unless("--seed", attributes.get("seed"), 0),
        *_unless("--precision", attributes.get("precision"), "f32"),
        *_unless("--batch-size", attributes.get("batch_size"), None),
        *_unless("--folds", fit.n_folds, 5),  # cache checks that the classes suffice for them
        *("--cache", str(fit.cache)),
    ]


def _fit_words(run: Run, fit: FitRecord, data: list[str]) -> list[str]:
    words = ["hubretrain", "fit", *data, "--run", str(run.folder), "--cache", str(fit.cache)]
    words += [word for name in fit.modules for word in ("--module", name)]
    words += ["--metric", fit.metric, "--seed", str(fit.seed), "--folds", str(fit.n_folds)]
    words += ["--test-fraction", str(fit.test_fraction), *_unless("--top", fit.top, 3)]
    words += [] if fit.views else ["--no-views"]
    words += [] if fit.duplicates_kept_together else ["--no-keep-duplicates-together"]
    for weight in fit.class_weights:
        words += ["--class-weight", weight if isinstance(weight, str) else _weights_text(weight)]
    words += ["--adjust", ",".join(map(_number, fit.adjust))]
    if fit.l2 != L2:
        words += ["--l2", ",".join(map(_number, fit.l2))]
    return words


def _weights_text(weights: Mapping[str, float]) -> str:
    return ",".join(f"{name}={_number(weight)}" for name, weight in weights.items())


def _finetune_words(run: Run, module: str) -> list[str]:
    """Return the options of a fine-tuning that are not the defaults; none if not recorded."""
    try:
        options = saved_options(run.finetune_folder(module))
    except RunError:
        return []
    words = []
    for name, default in vars(FineTuneOptions()).items():
        value, flag = getattr(options, name), "--" + name.replace("_", "-")
        if value == default or name == "augmentation":
            continue
        words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return words + augmentation_words(vars(options.augmentation))


def augmentation_of(attributes: Mapping[str, Any]) -> Augmentation:
    """Return the augmentation that a bottleneck file or a fine-tuning recorded."""
    defaults = vars(Augmentation())
    return Augmentation(
        **{name: type(value)(attributes.get(name, value)) for name, value in defaults.items()}
    )


def augmentation_words(attributes: Mapping[str, Any]) -> list[str]:
    """Return the options of the augmentation that are not the defaults."""
    words = []
    for name, default in vars(Augmentation()).items():
        value = attributes.get(name, default)
        flag = name.replace("_", "-")
        if isinstance(default, bool):
            words += [f"--{flag}" if value else f"--no-{flag}"] if bool(value) != default else []
        elif abs(float(value) - default) > 1e-3:
            words += [f"--{flag}", f"{float(value):g}"]
    return words


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
        ("evaluations on the test split", f"{len(fit.test_looked_at):,}"),
    ]
    for name, record in run_data.finetune.modules.items():
        rows.append((f"fine-tuning of {name}", _json(record.identity)))
    return rows + list(fit.versions.items())


def modules(run_data: RunData) -> list[list[str]]:
    """Return name, image size, engine, handle and sha256 of each module."""
    names = ("module", "image_size", "engine", "handle", "module_sha256")
    return [
        [str(module.attributes.get(name, "")) for name in names]
        for module in run_data.fit.modules.values()
    ]


def file_digests(run: Run) -> list[tuple[str, str]]:
    """Return path and sha256 of each file of the run that the report rests on."""
    paths = [run.folder / name for name in FILES]
    paths += [path for pattern in PATTERNS for path in sorted(run.folder.glob(pattern))]
    return [
        (path.relative_to(run.folder).as_posix(), file_sha256(path))
        for path in paths
        if path.is_file()
    ]


def _data_words(fit: FitRecord) -> list[str]:
    options = fit.data_options
    words = [str(fit.data), *map(str, options.get("more_roots") or [])]
    for name in _DATA_FLAGS:
        if options.get(name):
            words += ["--" + name.replace("_", "-"), str(options[name])]
    return [*words, "--skip-unmatched"] if options.get("skip_unmatched") else words


def _unless(flag: str, value: Any, default: Any) -> list[str]:
    return [] if value in (None, default) else [flag, str(value)]


def _number(value: float) -> str:
    """Format a number as shortly as possible so that it is read back as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
