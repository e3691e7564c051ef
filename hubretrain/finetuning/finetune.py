"""The fine-tuning stage: shortlisted backbones of a run, trained, judged once, exported."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.data import ImageDataset, usable_images
from hubretrain.data.splitting import NEW, previous_parts, read_folds
from hubretrain.errors import RunError
from hubretrain.export import Export
from hubretrain.finetuning.devices import devices
from hubretrain.finetuning.module import ModuleFineTuning
from hubretrain.finetuning.options import OPTIONS, FineTuneOptions, saved_tuning
from hubretrain.finetuning.result import FineTuneResult, order_of
from hubretrain.finetuning.trainer import SECONDS_BETWEEN_CHECKPOINTS
from hubretrain.locks import only_writer
from hubretrain.run_tables import MODULE
from hubretrain.runs import Run, check_fitted, fit_record


def finetune_module(
    dataset: ImageDataset,
    run: Run,
    *,
    cache: Path = Path("cache"),
    module: str | None = None,
    tuning: FineTuneOptions | None = None,
    resume: bool = False,
    more_epochs: int | None = None,
    restart: bool = False,
    seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
    quiet: bool = False,
) -> FineTuneResult:
    """Fine-tunes the best shortlisted module of a run and exports the result.

    It trains on all folds but the first, stops by the first, and is judged once on the test
    split. The same call again goes on where it stopped.

    Args:
        dataset: The data set that the run was fitted on.
        run: A fitted run.
        cache: Where the data set's digests are.
        module: Which module instead of the shortlist's first.
        tuning: How; by default as the data's size asks for.
        resume: Take the options of the fine-tuning that is there instead of `tuning`.
        more_epochs: Epochs to add to a finished fine-tuning.
        restart: Forget an earlier fine-tuning of this module in this run.
        seconds_between_checkpoints: How much a kill within an epoch may cost.
        quiet: Show no progress.

    Raises:
        RunError: The run is not fitted, or holds another fine-tuning, or training cannot go on.
        ModuleError: The module cannot be loaded or trained.
    """
    name = module or _fitted(run, dataset)["shortlist"][0]
    (found,) = finetune_modules(
        dataset,
        run,
        [name],
        cache=cache,
        tuning=tuning,
        resume=resume,
        more_epochs=more_epochs,
        restart=restart,
        seconds_between_checkpoints=seconds_between_checkpoints,
        quiet=quiet,
    )
    return found


def best_modules(run: Run, n: int) -> list[str]:
    """The first modules of a run's leaderboard: the shortlist, then the others by rank.

    Raises:
        RunError: The run is not fitted, or compares fewer modules.
    """
    facts = fit_record(run)
    board = _screened(run, facts)
    ranked = board.loc[board["kind"] == MODULE, "module"].tolist()  # no twin of random weights
    names = [*facts["shortlist"], *(m for m in ranked if m not in facts["shortlist"])]
    if len(names) < n:
        raise RunError(
            f"--top is {n} and {run.folder} compares {len(names)} modules ({', '.join(names)}); "
            "ask for fewer, or cache more and fit again."
        )
    return names[:n]


def latest_finetuning(run: Run) -> str:
    """The module of the run that was fine-tuned last.

    Raises:
        RunError: There is none.
    """
    found = list((run.folder / "finetune").glob(f"*/{OPTIONS}"))
    if not found:
        raise RunError(f"{run.folder} holds no fine-tuning to resume; begin one without --resume.")
    states = [(path.parent / "checkpoint" / "state.json", path) for path in found]
    newest = max(
        states, key=lambda pair: (pair[0] if pair[0].exists() else pair[1]).stat().st_mtime_ns
    )
    return newest[1].parent.name


def finetune_modules(
    dataset: ImageDataset,
    run: Run,
    modules: Sequence[str],
    *,
    cache: Path = Path("cache"),
    tuning: FineTuneOptions | None = None,
    resume: bool = False,
    more_epochs: int | None = None,
    restart: bool = False,
    seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
    quiet: bool = False,
) -> list[FineTuneResult]:
    """Fine-tunes modules in turn; the run's export is what is best on the validation fold.

    `run.json` says whether the screening order held among all that were fine-tuned in the run.
    The same call again goes on where it stopped. For the arguments see `finetune_module`;
    `more_epochs` are for one module.
    """
    facts = _fitted(run, dataset)
    check_fitted(modules, facts)
    if more_epochs is not None and len(modules) > 1:
        raise RunError(f"--epochs +{more_epochs} goes on with one module; name it with --module.")
    asked = tuning or FineTuneOptions()
    tunings = [saved_tuning(run.finetune_folder(m)) if resume else asked for m in modules]
    if len({one.mixed_precision for one in tunings}) > 1:
        raise RunError(
            f"some of {', '.join(modules)} were begun with --mixed-precision and others without; "
            "go on with one at a time: --module."
        )
    where = devices(mixed_precision=any(one.mixed_precision for one in tunings))
    together = facts.get("duplicates_kept_together", True)
    images = usable_images(dataset, cache, near_duplicates=together, quiet=quiet)
    images = _with_folds(images, run)
    done: list[FineTuneResult] = []
    for name, asked in zip(modules, tunings, strict=True):
        folder = run.finetune_folder(name)
        if not quiet and len(modules) > 1 and where.is_chief:
            print(f"{name}:", flush=True)
        with only_writer(folder) if where.is_chief else contextlib.nullcontext():
            one = ModuleFineTuning(dataset, run, images, name, facts, where)
            if where.is_chief and restart:
                shutil.rmtree(folder, ignore_errors=True)
            if where.is_chief and not (folder / "checkpoint" / "state.json").exists():
                asked.save(folder)  # a fine-tuning that is there keeps its own
            found, record = one.run_with(
                asked, more_epochs, seconds_between_checkpoints, quiet or not where.is_chief
            )
            done.append(found)
            if where.is_chief:
                _keep(run, facts, one, found, record)
            one.training.conclude()
    return done


def _keep(
    run: Run,
    facts: dict[str, Any],
    one: ModuleFineTuning,
    found: FineTuneResult,
    record: dict[str, Any],
) -> None:
    """Puts a module into `run.json`, and exports it unless the run's export is a better one."""
    known = run.facts().get("finetune", {})  # as it is now: training takes hours
    records = {**(known.get("modules") or {}), found.module: record}
    metric = facts["metric"]
    on_validation = {
        name: other["validation"][metric][0]
        for name, other in records.items()
        if metric in other["validation"]
        and other.get("identity", {}).get("images") == record["identity"]["images"]
    }
    board = _screened(run, facts)
    screening = dict(zip(board["module"], board[metric].astype(float), strict=True))
    judged = {name: score for name, score in on_validation.items() if name in screening}
    order = order_of(screening, judged, metric) if len(judged) > 1 else None
    best = order["finetuned"][0] if order else found.module
    chosen = _exported(run)
    if best == found.module or best != chosen:
        one.export(found)
        chosen = found.module
    run.record("finetune", {"modules": records, "chosen": chosen, "order": order})


def _exported(run: Run) -> str | None:
    """The module whose fine-tuned model the run's export is."""
    try:
        facts = Export.open(run.export_folder).facts
    except RunError:
        return None
    return str(facts["module"]) if facts.get("fine_tuned") else None


def _screened(run: Run, facts: dict[str, Any]) -> pd.DataFrame:
    """The modules of the leaderboard, best first."""
    board = pd.read_csv(run.leaderboard_file)
    return board[board["module"].isin(facts["modules"])]


def _fitted(run: Run, dataset: ImageDataset) -> dict[str, Any]:
    facts = fit_record(run)
    if facts["class_names"] != list(dataset.class_names):
        raise RunError(
            f"{run.folder} was fitted on the classes {', '.join(facts['class_names'])}, the data "
            f"set has {', '.join(dataset.class_names)}; fit again, or name the run's data set."
        )
    return facts


def _with_folds(images: pd.DataFrame, run: Run) -> pd.DataFrame:
    parts = previous_parts(
        read_folds(run.folds_file), images["path"].tolist(), images["sha256"].tolist()
    )
    return images.assign(fold=parts)[parts != NEW].reset_index(drop=True)
