"""The run folder: its paths and its `run.json`."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hubretrain._version import __version__
from hubretrain.errors import RunError
from hubretrain.files import write_json


@dataclass(frozen=True)
class Run:
    """One screening and what followed: a folder and the places in it.

    Attributes:
        folder: The run folder.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.name

    @property
    def facts_file(self) -> Path:
        """`run.json`: commands, versions, seeds, digests."""
        return self.folder / "run.json"

    @property
    def folds_file(self) -> Path:
        """`folds.csv`: the split and fold of each image."""
        return self.folder / "folds.csv"

    @property
    def leaderboard_file(self) -> Path:
        """`leaderboard.csv`: one row a module, best first."""
        return self.folder / "leaderboard.csv"

    @property
    def out_of_fold_file(self) -> Path:
        """`out_of_fold.csv`: each image's probabilities from heads that never saw it."""
        return self.folder / "out_of_fold.csv"

    def heads_file(self, module: str) -> Path:
        """`heads/<module>.h5`: the fitted heads."""
        return self.folder / "heads" / f"{module}.h5"

    @property
    def heads_table_file(self) -> Path:
        """`heads.csv`: every head that was fitted, one row a candidate."""
        return self.folder / "heads.csv"

    @property
    def per_class_file(self) -> Path:
        """`per_class.csv`: recall and average precision of each class."""
        return self.folder / "per_class.csv"

    @property
    def effects_file(self) -> Path:
        """`effects.csv`: what views, class weights and the like were worth."""
        return self.folder / "effects.csv"

    @property
    def ensemble_file(self) -> Path:
        """`ensemble.json`: members and weights of the ensemble."""
        return self.folder / "ensemble.json"

    def screened_file(self, module: str) -> Path:
        """`screened/<module>.h5`: what fitting a module found, to be read again."""
        return self.folder / "screened" / f"{module}.h5"

    def finetune_folder(self, module: str) -> Path:
        """`finetune/<module>/`: history, checkpoints, predictions."""
        return self.folder / "finetune" / module

    @property
    def export_folder(self) -> Path:
        """`export/`: the model that takes bytes and gives probabilities."""
        return self.folder / "export"

    def facts(self) -> dict[str, Any]:
        """What `run.json` holds, {} where there is none yet.

        Raises:
            RunError: The file is no JSON object.
        """
        try:
            facts = json.loads(self.facts_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.facts_file} cannot be read ({error}); remove it and fit again."
            ) from error
        if not isinstance(facts, dict):
            raise RunError(f"{self.facts_file} holds no JSON object; remove it and fit again.")
        return facts

    def record(self, stage: str, facts: dict[str, Any]) -> None:
        """Puts one stage's facts into `run.json`, leaving the other stages' as they are."""
        everything = self.facts()
        everything[stage] = {"versions": versions(), **facts}
        write_json(self.facts_file, everything)


def fit_record(run: Run) -> dict[str, Any]:
    """What `run.json` says of the fit.

    Raises:
        RunError: There was none yet.
    """
    facts: dict[str, Any] | None = run.facts().get("fit")
    if facts is None:
        raise RunError(f"{run.folder} holds no finished fit; run first: hubretrain fit")
    return facts


def check_fitted(names: Iterable[str], facts: dict[str, Any]) -> None:
    """Raises RunError where a run, whose facts of the fit these are, lacks a module."""
    for name in names:
        if name not in facts["modules"]:
            raise RunError(
                f"{name} was not fitted in this run (there are: {', '.join(facts['modules'])}); "
                "cache it and fit again, or name one of them."
            )


def latest_run(runs: Path) -> Run:
    """The run that was fitted last.

    Raises:
        RunError: There is none.
    """
    found = [p.parent for p in runs.glob("*/run.json")] if runs.is_dir() else []
    if not found:
        raise RunError(f"{runs}/ holds no run; make one with: hubretrain fit")
    return Run(max(found, key=lambda p: ((p / "run.json").stat().st_mtime_ns, p.name)))


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the libraries that results depend on."""
    names = (
        "tensorflow",
        "tensorflow-hub",
        "tf-keras",
        "numpy",
        "h5py",
        "pandas",
        "Pillow",
        "scikit-learn",
    )
    found = {
        "hubretrain": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
