"""The run folder: its paths, and what writes and reads `run.json`.

The files of a fit appear together: they are written aside, moved to `.fitted/` at once, and from
there to their places, `run.json` last, which names the digest of each. Whoever reads a run that
was stopped in between finishes that first. `Run.checked` compares a file with its digest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubretrain.errors import RunError, WriteError, unreadable
from hubretrain.files import (
    StrPath,
    conforming,
    file_sha256,
    folder_aside,
    read_record,
    write_record,
)
from hubretrain.locks import only_writer
from hubretrain.runs.records import FineTuneRecord, FitRecord

FITTED_FOLDER = ".fitted"  # a fit whose files are on the way to their places
_REMEDY = "remove it and run `hubretrain fit` again"


@dataclass(frozen=True)
class Run:
    """A screening and what followed it: a folder and the paths in it.

    The tables of a run are in `run_tables`.

    Attributes:
        folder: Run folder.
    """

    folder: Path

    def __init__(self, folder: StrPath) -> None:
        object.__setattr__(self, "folder", Path(folder))

    @classmethod
    def of(cls, run: Run | StrPath) -> Run:
        """Return a run, or that of a folder."""
        return run if isinstance(run, Run) else cls(run)

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.name

    @property
    def record_file(self) -> Path:
        """`run.json`: options, versions, seeds, digests, choices."""
        return self.folder / "run.json"

    @property
    def folds_file(self) -> Path:
        """`folds.csv`: part and fold of each image."""
        return self.folder / "folds.csv"

    @property
    def race_file(self) -> Path:
        """`race.json`: what `hubretrain screen` knows of many modules."""
        return self.folder / "race.json"

    @property
    def screened_folder(self) -> Path:
        """`screened/`: sweeps to resume from; `in_use` by each fit that runs."""
        return self.folder / "screened"

    def heads_file(self, module: str) -> Path:
        """Return the path `heads/<module>.h5`: the heads of a module that are kept."""
        return self.folder / heads_name(module)

    @property
    def ensemble_file(self) -> Path:
        """`ensemble.json`: members and weights of the ensemble."""
        return self.folder / "ensemble.json"

    def screened_file(self, module: str, heads: str) -> Path:
        """Return the path `screened/<heads>/<module>.h5`: a module's sweep, to resume from.

        Args:
            module: Name of the module.
            heads: Heads of the sweep, `linear` or `mlp`.
        """
        return self.screened_folder / heads / f"{module}.h5"

    def finetune_folder(self, module: str) -> Path:
        """Return the path `finetune/<module>/`: history, checkpoints, predictions."""
        return self.folder / "finetune" / module

    @property
    def export_folder(self) -> Path:
        """`export/`: the model that turns images into probabilities."""
        return self.folder / "export"

    @property
    def has_record(self) -> bool:
        """Whether `run.json` holds a stage that this program wrote, so that it is a run's.

        Raises:
            RunError: `run.json` is damaged.
        """
        stages = [self._stages().get(name) for name in ("fit", "finetune")]
        records = [stage.get("versions") for stage in stages if isinstance(stage, dict)]
        return any(isinstance(record, dict) and "hubretrain" in record for record in records)

    @property
    def is_fitted(self) -> bool:
        """Whether a fit of the run was finished.

        Raises:
            RunError: `run.json` is damaged.
        """
        return "fit" in self._stages()

    @property
    def fit(self) -> FitRecord:
        """What the last fit recorded.

        Raises:
            RunError: The run was not fitted, or `run.json` is damaged.
        """
        stage = self._stages().get("fit")
        if stage is None:
            raise RunError(f"{self.folder} holds no finished fit; run `hubretrain fit` first.")
        try:
            return FitRecord.of_json(stage)
        except ValueError as error:
            raise self._damaged(error) from error

    @property
    def finetune(self) -> FineTuneRecord:
        """What fine-tuning recorded so far, an empty record where there was none.

        Raises:
            RunError: `run.json` is damaged.
        """
        stage = self._stages().get("finetune")
        if stage is None:
            return FineTuneRecord()
        try:
            return conforming(stage, FineTuneRecord)
        except ValueError as error:
            raise self._damaged(error) from error

    def looks_at_test(self) -> str:
        """Return a sentence on the looks at the test split so far, '' for one at most."""
        fit = len(self.fit.test_looked_at) if self.is_fitted else 0
        finetune = len(self.finetune.test_looked_at)
        if fit + finetune < 2:
            return ""
        return (
            f"The test split of this run was looked at {fit + finetune} times (fit {fit}, finetune "
            f"{finetune}): what is chosen by these figures looks better than it is."
        )

    def refuse_new_split(self) -> None:
        """Raise if a model of the run was fine-tuned, so that a new test split is not unseen.

        Raises:
            RunError: There is a fine-tuning, finished or not.
        """
        folders = sorted(path.parent.name for path in self.folder.glob("finetune/*/options.json"))
        if names := folders or list(self.finetune.modules):
            raise RunError(
                f"{self.folder} holds fine-tunings ({', '.join(names)}), which trained on images "
                "that a new test split would take; choose another `run` for a new split."
            )

    def checked(self, path: Path) -> Path:
        """Return the path of a file of the fit, after its bytes were compared with `run.json`.

        Raises:
            RunError: The run is not fitted, or the file is missing, damaged or of another fit.
        """
        return check_file(path, self.fit.files.get(self._name(path)), "hubretrain fit")

    def checked_heads(self, module: str) -> Path:
        """Return the path of the head file of a module, checked as by `checked`."""
        return self.checked(self.heads_file(module))

    def checked_ensemble(self) -> Path:
        """Return the path of `ensemble.json`, checked as by `checked` unless it is missing."""
        path = self.ensemble_file
        return self.checked(path) if path.exists() else path

    def changed_folds(self) -> bool:
        """Return whether `folds.csv` is another one than that of the fit, if there was one."""
        if not self.is_fitted or not self.folds_file.exists():
            return False
        return file_sha256(self.folds_file) != self.fit.files.get(self._name(self.folds_file))

    @contextlib.contextmanager
    def writing_fit(self) -> Iterator[Run]:
        """Yield a run in a folder aside, to write the files of a fit to for `publish_fit`.

        Raises:
            WriteError: It cannot be made.
        """
        with folder_aside(self.folder / "heads") as aside:
            yield Run(aside / "fit")

    def publish_fit(self, written: Run, record: FitRecord) -> None:
        """Move the files of a fit into the run and put the record of them into `run.json`.

        A file that is as before stays. Files of the former fit that this one has not are removed.

        Args:
            written: The run of `writing_fit`, with the files of the fit.
            record: What the fit recorded, without `files`.

        Raises:
            WriteError: They cannot be moved.
        """
        with self.locked():
            self._publish(written, replace(record, files={}))

    def publish_changes(self, written: Run) -> None:
        """Move changed files of the fit into the run, as `publish_fit` does; the others stay.

        The caller holds `locked`.
        """
        self._publish(written, self.fit)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of `run.json`, for which others wait; a fit that was stopped is finished.

        Raises:
            WriteError: The folder cannot be written.
        """
        with only_writer(self.record_file, wait=True):
            self._finish_publication()
            yield

    def _publish(self, written: Run, record: FitRecord) -> None:
        paths = sorted(path for path in written.folder.rglob("*") if path.is_file())
        digests = {written._name(path): file_sha256(path) for path in paths}
        written.write_fit(replace(record, files={**record.files, **digests}))
        with self._moving():
            os.replace(written.folder, self.folder / FITTED_FOLDER)  # from here on the fit counts
        self._finish_publication()

    def write_fit(self, record: FitRecord) -> None:
        """Put the record of a fit into `run.json`, leaving the other stage as it is."""
        self._write("fit", record.to_json())

    def write_finetune(self, record: FineTuneRecord) -> None:
        """Put the record of fine-tuning into `run.json`, leaving the other stage as it is."""
        self._write("finetune", record.to_json())

    def _write(self, stage: str, values: dict[str, Any]) -> None:
        write_record(self.record_file, {**self._stages(), stage: values})

    def _stages(self) -> dict[str, Any]:
        if (self.folder / FITTED_FOLDER).exists():
            with self.locked():
                pass
        return self._read_stages()

    def _read_stages(self) -> dict[str, Any]:
        try:
            return read_record(self.record_file)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _finish_publication(self) -> None:
        """Move the files of a fit that is published to their places, `run.json` last."""
        new = Run(self.folder / FITTED_FOLDER)
        if not new.record_file.exists():  # nothing, or what a stopped removal left
            shutil.rmtree(new.folder, ignore_errors=True)
            return
        stages = self._read_stages()
        fit = new._read_stages()["fit"]
        with self._moving():
            for name, digest in fit["files"].items():
                path = self.folder / name
                if not (path.is_file() and file_sha256(path) == digest):
                    path.parent.mkdir(exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # moved before it was stopped
                        os.replace(new.folder / name, path)
            for name in set(_former_files(stages)) - set(fit["files"]):
                (self.folder / name).unlink(missing_ok=True)
            write_record(self.record_file, {**stages, "fit": fit})
            shutil.rmtree(new.folder)

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"{self.folder}/ cannot be written ({error.strerror or error}); free disk space "
                "or fix permissions, and run `hubretrain fit` again."
            ) from error

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _damaged(self, error: OSError | ValueError) -> RunError:
        return RunError(unreadable(self.record_file, error, _REMEDY))


def heads_name(module: str) -> str:
    """Return the path of the head file of a module in its run."""
    return f"heads/{module}.h5"


def check_file(path: Path, sha256: str | None, command: str) -> Path:
    """Return the path of a file, after its bytes were compared with a digest.

    Args:
        path: The file.
        sha256: Its digest; None where it belongs to nothing that was recorded.
        command: Command that writes it.

    Raises:
        RunError: It is missing, or has other bytes.
    """
    try:
        actual = file_sha256(path)
    except FileNotFoundError:
        raise RunError(f"{path} is missing; run `{command}` again.") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}).") from error
    if actual != sha256:
        raise RunError(
            f"{path} is damaged or another one than the run recorded; restore it, or run "
            f"`{command}` again."
        )
    return path


def _former_files(stages: Mapping[str, Any]) -> list[str]:
    """Return the files of a fit that stands in `run.json`, none where it is of another version."""
    fit = stages.get("fit")
    files = fit.get("files") if isinstance(fit, dict) else None
    return list(files) if isinstance(files, dict) else []


def latest_run(runs: Path) -> Run:
    """Return the run that was written last.

    Raises:
        RunError: There is none.
    """
    files = list(runs.glob("*/run.json")) if runs.is_dir() else []
    if not files:
        raise RunError(f"{runs}/ holds no run; run `hubretrain fit` first.")
    return Run(max(files, key=lambda file: (file.stat().st_mtime_ns, file.parent.name)).parent)
