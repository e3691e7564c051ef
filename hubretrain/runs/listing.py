"""The runs of a folder: a summary of each, and the removal of one."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hubretrain.errors import RunError, WriteError
from hubretrain.locks import only_writer
from hubretrain.runs import run_tables
from hubretrain.runs.run import FITTED_FOLDER, Run

_FOLDERS = ("heads", "screened", "finetune", "export", "exports", "report", FITTED_FOLDER)
_FILES = (
    *("folds.csv", "folds.json", "ensemble.json", "data_check.html", "data_check.json"),
    *("report.html", "label_errors.csv", "race.json", "auto.json"),
    *(t.file_name for t in vars(run_tables).values() if isinstance(t, run_tables.RunTable)),
)


@dataclass(frozen=True)
class RunSummary:
    """What a list of runs shows of one.

    Attributes:
        name: Name of the run.
        folder: Its folder.
        data: Name of the data set; '' where it is not fitted.
        modules: Modules that were fitted.
        fine_tuned: Modules that were fine-tuned.
        metric: Metric of choice; '' where it is not fitted.
        best: The first module of the leaderboard; '' where there is none.
        estimate: Metric of choice of the best, and the ends of its 95 % interval.
        written: When `run.json` was last written, in local time.
        n_bytes: Size of all files of the folder.
        problem: Why it cannot be read, or ''.
    """

    name: str
    folder: Path
    written: datetime
    n_bytes: int
    data: str = ""
    modules: tuple[str, ...] = ()
    fine_tuned: tuple[str, ...] = ()
    metric: str = ""
    best: str = ""
    estimate: tuple[float, float, float] | None = None
    problem: str = ""


def list_runs(runs: Path) -> list[RunSummary]:
    """Return a summary of each run of a folder, the one that was written last first.

    One that is damaged or of another version is listed with its problem.
    """
    files = sorted(runs.glob("*/run.json")) if runs.is_dir() else []
    summaries = [_summary(Run(file.parent)) for file in files]
    return sorted(summaries, key=lambda summary: summary.written, reverse=True)


def _summary(run: Run) -> RunSummary:
    written = datetime.fromtimestamp(run.record_file.stat().st_mtime).astimezone()
    n_bytes = sum(path.lstat().st_size for path in run.folder.rglob("*") if path.is_file())
    try:
        if not run.is_fitted:
            return RunSummary(run.name, run.folder, written, n_bytes)
        fit, board = run.fit, run_tables.LEADERBOARD.read(run.folder)
        first = board[board["kind"] == run_tables.MODULE].iloc[0]
        low, high = (float(first[f"{fit.metric}_{end}"]) for end in ("low", "high"))
        return RunSummary(
            *(run.name, run.folder, written, n_bytes),
            data=fit.data.name,
            modules=tuple(fit.modules),
            fine_tuned=tuple(run.finetune.modules),
            metric=fit.metric,
            best=str(first["module"]),
            estimate=(float(first[fit.metric]), low, high),
        )
    except RunError as error:
        return RunSummary(run.name, run.folder, written, n_bytes, problem=str(error))


def check_removable(run: Run) -> None:
    """Raise where a folder is no run, so that nothing of it may be removed.

    Raises:
        RunError: It holds no `run.json` of this program, or is a link.
    """
    if run.folder.is_symlink():
        raise RunError(f"{run.folder} is a link; name the folder that it leads to.")
    if not run.has_record:
        raise RunError(f"{run.folder} is no run: it holds no run.json; nothing is removed.")


def remove_run(run: Run) -> tuple[str, ...]:
    """Remove the files of a run, and its folder if nothing else is in it.

    `run.json` goes last, so that a removal that was stopped can be repeated.

    Returns:
        Names of files and folders that are not the run's, and stay.

    Raises:
        RunError: See `check_removable`.
        LockedError: Another process uses the run.
        WriteError: A file cannot be removed.
    """
    check_removable(run)
    locks = [path for path in sorted(run.folder.rglob(".*.lock")) if path.is_file()]
    written = {lock.with_name(lock.name[1 : -len(".lock")]) for lock in locks}
    with contextlib.ExitStack() as stack:
        for path in sorted(written | {run.record_file, run.screened_folder}):
            stack.enter_context(only_writer(path))
        try:
            for name in _FILES:
                (run.folder / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                _remove_folder(run.folder / name)
            run.record_file.unlink()
        except OSError as error:
            raise WriteError(
                f"{error.filename} cannot be removed ({error.strerror}); fix permissions."
            ) from error
    left = tuple(sorted(path.name for path in run.folder.iterdir()))
    if not left:
        run.folder.rmdir()
    return left


def _remove_folder(folder: Path) -> None:
    if folder.is_symlink():  # what it leads to is not the run's
        folder.unlink()
    elif folder.is_dir():
        shutil.rmtree(folder)
