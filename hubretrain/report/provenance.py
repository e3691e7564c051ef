"""Where a run comes from: versions, seeds, options, digests, and the commands that repeat it."""

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
from hubretrain.runs import FitRecord, Run
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


def commands(gathered: RunData) -> str:
    """The commands that repeat the run, as far as `run.json` tells them."""
    fit = gathered.fit
    data = _data_words(fit)
    lines = []
    for module in fit.modules.values():
        one = module.attributes
        handle = module.handle if "/" in module.handle else module.module
        words = ["hubretrain", "cache", *data, "--module", handle]
        words += _unless("--views", module.n_views, None)
        words += _unless("--minority-views", module.minority_views, module.n_views)
        words += [*augmentation_words(one), *_unless("--seed", one.get("seed"), 0)]
        words += _unless("--precision", one.get("precision"), "f32")
        words += _unless("--batch-size", one.get("batch_size"), None)
        words += _unless("--folds", fit.n_folds, 5)  # cache looks whether classes suffice
        lines.append(_line([*words, "--cache", str(fit.cache)]))
    words = ["hubretrain", "fit", *data, "--run", str(gathered.run.folder)]
    words += ["--cache", str(fit.cache)]
    words += [word for name in fit.modules for word in ("--module", name)]
    words += ["--metric", fit.metric]
    words += ["--seed", str(fit.seed), "--folds", str(fit.n_folds)]
    words += ["--test-fraction", str(fit.test_fraction), *_unless("--top", fit.top, 3)]
    words += [] if fit.views else ["--no-views"]
    words += [] if fit.duplicates_kept_together else ["--no-keep-duplicates-together"]
    for weight in fit.class_weights:
        text = (
            weight
            if isinstance(weight, str)
            else ",".join(f"{name}={_number(w)}" for name, w in weight.items())
        )
        words += ["--class-weight", text]
    words += ["--adjust", ",".join(map(_number, fit.adjust))]
    if fit.l2 != L2:
        words += ["--l2", ",".join(map(_number, fit.l2))]
    lines.append(_line(words))
    for name in gathered.finetune.modules:
        words = ["hubretrain", "finetune", str(gathered.run.folder), "--module", name]
        lines.append(_line([*words, *_tuning_words(gathered.run, name)]))
    lines.append(_line(["hubretrain", "report", str(gathered.run.folder)]))
    return "\n".join(lines)


def _tuning_words(run: Run, module: str) -> list[str]:
    """The options of a fine-tuning that differ from the usual; none where they are not known."""
    try:
        asked = saved_options(run.finetune_folder(module))
    except RunError:
        return []
    words = []
    for name, usual in vars(FineTuneOptions()).items():
        value, flag = getattr(asked, name), "--" + name.replace("_", "-")
        if value == usual or name == "augmentation":
            continue
        words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return words + augmentation_words(vars(asked.augmentation))


def augmentation_of(facts: Mapping[str, Any]) -> Augmentation:
    """The augmentation that a bottleneck file or a fine-tuning recorded."""
    usual = Augmentation()
    return Augmentation(
        **{name: type(value)(facts.get(name, value)) for name, value in vars(usual).items()}
    )


def augmentation_words(facts: Mapping[str, Any]) -> list[str]:
    """The options that differ from the usual."""
    words = []
    for name, usual in vars(Augmentation()).items():
        value = facts.get(name, usual)
        flag = name.replace("_", "-")
        if isinstance(usual, bool):
            words += [f"--{flag}" if value else f"--no-{flag}"] if bool(value) != usual else []
        elif abs(float(value) - usual) > 1e-3:
            words += [f"--{flag}", f"{float(value):g}"]
    return words


def table(gathered: RunData) -> list[tuple[str, str]]:
    """Versions, seeds, options: what and its value."""
    fit = gathered.fit
    found = [
        ("images", str(fit.data)),
        ("options of the data set", _json(fit.data_options)),
        ("cache", str(fit.cache)),
        ("metric of choice", fit.metric),
        ("seed of split and resamples", str(fit.seed)),
        ("folds, test fraction", f"{fit.n_folds}, {fit.test_fraction}"),
        ("l2", ", ".join(f"{one:g}" for one in fit.l2)),
        ("class weights", _json(fit.class_weights)),
        ("logit adjustment", _json(fit.adjust)),
        ("looks at the test split", f"{len(fit.test_looked_at):,}"),
    ]
    for name, record in gathered.finetune.modules.items():
        found.append((f"fine-tuning of {name}", _json(record.identity)))
    return found + list(fit.versions.items())


def modules(gathered: RunData) -> list[list[str]]:
    """Name, image size, engine, handle and sha256 of each module."""
    names = ("module", "image_size", "engine", "handle", "module_sha256")
    return [
        [str(module.attributes.get(name, "")) for name in names]
        for module in gathered.fit.modules.values()
    ]


def file_digests(run: Run) -> list[tuple[str, str]]:
    """The sha256 of each file of the run that figures rest on."""
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


def _unless(flag: str, value: Any, usual: Any) -> list[str]:
    return [] if value in (None, usual) else [flag, str(value)]


def _number(value: float) -> str:
    """As short as it can be, but read again the same."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _line(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
