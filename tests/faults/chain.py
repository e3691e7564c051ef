"""The chain: its commands, its state after each of them, and what of its files is the result."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hubretrain.files import file_sha256
from tests.faults.processes import Ended, run
from tests.samples import encoded, write_digits, write_pooled, write_residual

N_IMAGES = 90
HEADS = ("--l2", "10", "--class-weight", "none")
# Command: its arguments. Its result is that of the files in `RESULTS`, or what it prints.
COMMANDS: dict[str, tuple[str, ...]] = {
    "data check": ("data", "check"),
    "cache": ("cache", "-m", "modules/p", "-m", "modules/r", "--views", "2"),
    "cache more": ("cache", "-m", "modules/p", "-m", "modules/r", "--views", "3"),
    "verify": ("cache", "verify"),
    "status": ("cache", "status"),
    "fit": ("fit", *HEADS, "--heads", "softmax"),
    "fit again": ("fit", *HEADS, "--l2", "100", "--heads", "logistic"),
    "fit anew": ("fit", *HEADS, "--heads", "softmax", "--run", "runs/new"),
    "finetune": (
        *("finetune", "runs/digits", "-m", "r", "--epochs", "2", "--unfreeze-last", "2"),
        *("--batch-size", "16", "--trunk-views", "1", "--export", "fine-tuned"),
    ),
    "resume": ("finetune", "runs/digits", "--resume"),
    "finetune more": ("finetune", "runs/digits", "-m", "r", "--epochs", "+1", "--resume"),
    "export": ("export", "runs/digits", "--head", "p"),
    "export ensemble": ("export", "runs/digits", "--ensemble", "--format", "litert"),
    "predict": ("predict", "runs/digits", "data/digits/0", "data/digits/1", "--csv"),
    "predict savedmodel": (
        *("predict", "runs/digits", "data/digits/0", "--csv", "--format", "savedmodel"),
    ),
    "evaluate": ("evaluate", "runs/digits", "data/digits"),
    "report": ("report", "runs/digits", "--saliency", "2"),
    "short report": ("report", "runs/digits", "--saliency", "0"),
}
# The states of the chain, each what the one before and its command leave.
STATES = ("data check", "cache", "fit", "finetune", "evaluate", "report")
SHORT_STATES = ("data check", "cache", "fit", "short report")
NOT_SHORT = {
    *("cache", "cache more", "finetune", "resume", "finetune more", "export", "export ensemble"),
    *("predict", "predict savedmodel", "evaluate", "report"),
}
BEFORE = {
    "fit again": "fit",
    "cache more": "cache",
    "fit anew": "cache",
    "export": "fit",
    "export ensemble": "fit",
    "short report": "fit",
}
_FIT = (
    *("leaderboard.csv", "effects.csv", "heads.csv", "per_class.csv", "out_of_fold.csv"),
    *("test_predictions.csv", "ensemble.json", "folds.csv", "heads/*.h5"),
)
_TUNED = ("predictions.csv", "validation.csv", "history.csv")
# Command: the patterns of its results.
RESULTS: dict[str, tuple[str, ...]] = {
    "data check": ("runs/digits/data_check.json",),
    "cache": ("cache/digits/*.h5",),
    "cache more": ("cache/digits/*.h5",),
    "fit": tuple(f"runs/digits/{name}" for name in _FIT),
    "fit again": tuple(f"runs/digits/{name}" for name in _FIT),
    "fit anew": tuple(f"runs/new/{name}" for name in _FIT),
    "finetune": (*(f"runs/digits/finetune/r/{name}" for name in _TUNED), "runs/digits/export/*"),
    "resume": (*(f"runs/digits/finetune/r/{name}" for name in _TUNED), "runs/digits/export/*"),
    "finetune more": (
        *(f"runs/digits/finetune/r/{name}" for name in _TUNED),
        "runs/digits/export/*",
    ),
    "export": ("runs/digits/exports/*/*",),
    "export ensemble": ("runs/digits/exports/*/*",),
    "evaluate": ("evaluated/digits/*",),
    "report": ("runs/digits/report.html", "runs/digits/label_errors.csv"),
    "short report": ("runs/digits/report.html", "runs/digits/label_errors.csv"),
}
# Columns of measured times, which differ from run to run.
_TIMES = re.compile(r"^(ms_per_image|seconds_to_\w+)$")


@dataclass(frozen=True)
class Chain:
    """A chain in a folder that is always the same, because runs name their data's folder.

    Attributes:
        folder: Folder that commands run in.
        kept: Folder of the copies of `folder` after each command.
        is_short: Whether the features are the pixels themselves, so that nothing needs TensorFlow:
            a chain without fine-tuning and export.
    """

    folder: Path
    kept: Path
    is_short: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        """The states, in order."""
        return SHORT_STATES if self.is_short else STATES

    def commands(self, names: Iterable[str]) -> list[str]:
        """Return those commands that the chain has."""
        return [name for name in names if not (self.is_short and name in NOT_SHORT)]

    def build(self) -> None:
        """Write images and modules, and run the chain, keeping each state.

        A chain that is there already is taken.
        """
        if (self.kept / self.states[-1]).exists():
            return
        write_digits(self.folder / "data" / "digits", N_IMAGES)
        if not self.is_short:
            broken = self.folder / "data" / "digits" / "2" / "broken.png"
            broken.write_bytes(encoded(np.zeros((8, 8, 3), np.uint8))[:40])
            in_another_process(write_modules, self.folder / "modules")
        self._keep("nothing")
        for name in self.states:
            if self.is_short and name == "cache":
                for module in ("p", "r"):
                    in_another_process(write_pixels_as_features, self.folder, module)
            else:
                ended = run(COMMANDS[name])
                assert ended.code == 0, f"{name}: {ended.text}"
            self._keep(name)

    def restore(self, state: str) -> None:
        """Make the folder that of a state, times of files included."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.kept / state, self.folder, dirs_exist_ok=True)

    def before(self, command: str) -> str:
        """Return the state that a command of the chain begins at."""
        if command in BEFORE:
            return BEFORE[command]
        i = self.states.index(command)
        return self.states[i - 1] if i else "nothing"

    def result(self, command: str, ended: Ended) -> Mapping[str, str]:
        """Return the digests of the results of a command, by name, or of what it printed."""
        if command not in RESULTS:
            return {"standard output": ended.out}
        paths = [path for pattern in RESULTS[command] for path in self.folder.glob(pattern)]
        # Not what a kill left on the way to its place: its name begins with a dot.
        paths = [path for path in paths if path.is_file() and not path.name.startswith(".")]
        names = {path.relative_to(self.folder).as_posix(): path for path in paths}
        return {name: _digest(path) for name, path in sorted(names.items())}

    def files(self, state: str) -> list[str]:
        """Return the files of a state that hubretrain wrote or reads, but the images."""
        folder = self.kept / state
        paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
        return sorted(path.relative_to(folder).as_posix() for path in paths)

    def _keep(self, state: str) -> None:
        aside = self.kept / ".making"
        shutil.copytree(self.folder, aside)
        aside.rename(self.kept / state)


def in_another_process(function: Callable[..., object], *arguments: object) -> None:
    """Call a function in a process of its own, so that no thread starts in this one."""
    process = os.fork()
    if not process:
        function(*arguments)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0


def write_modules(folder: Path) -> None:
    """Write the two modules."""
    write_pooled(folder / "p", size=16, seed=5)
    write_residual(folder / "r")


def write_pixels_as_features(folder: Path, module: str) -> None:
    """Write a bottleneck file whose features are pixels, of a part of the image."""
    from PIL import Image

    from hubretrain.bottlenecks import BottleneckWriter, RowIndex
    from hubretrain.data import open_dataset

    dataset = open_dataset(folder / "data" / "digits")
    paths = dataset.images["path"].tolist()
    pixels = [np.asarray(Image.open(dataset.root / path), np.float32) / 255 for path in paths]
    sha256s = [file_sha256(dataset.root / path) for path in paths]
    rows = RowIndex(tuple(paths), tuple(sha256s), np.full(len(paths), 2, np.int16))
    attributes = {"module": module, "handle": module, "module_sha256": module, "image_size": 8}
    attributes |= {"value_range": "[0.0, 1.0]"}
    columns = slice(None) if module == "p" else slice(5)
    views = [np.stack([np.roll(p, v, 1)[:, columns].ravel() for p in pixels]) for v in range(2)]
    path = folder / "cache" / "digits" / f"{module}.h5"
    with BottleneckWriter(path, rows, views[0].shape[1], attributes) as writer:
        for v, features in enumerate(views):
            writer.write(np.full(len(rows), v), np.arange(len(rows)), features)
        writer.seal()


def _digest(path: Path) -> str:
    """Return the digest of a file without measured times and versions of records."""
    data = path.read_bytes()
    if path.suffix == ".csv":
        data = _without_times(data)
    elif path.name == "export.json":
        record = json.loads(data)
        kept = ("class_names", "image_sizes", "temperature", "module", "adjust", "tta", "metrics")
        data = json.dumps({key: record.get(key) for key in kept}).encode()
    elif path.suffix == ".pb":  # the order of what is in it follows addresses
        data = b""
    elif path.suffix == ".html":
        data = re.sub(rb"\d+ (ms|s)\b", b"", data)
    return hashlib.sha256(data).hexdigest()[:16]


def _without_times(data: bytes) -> bytes:
    import csv
    import io

    rows = list(csv.reader(io.StringIO(data.decode())))
    kept = [i for i, name in enumerate(rows[0]) if not _TIMES.match(name)] if rows else []
    return json.dumps([[row[i] for i in kept if i < len(row)] for row in rows]).encode()
