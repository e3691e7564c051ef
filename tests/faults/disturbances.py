"""What disturbs a command: kills, interrupts, full disks, missing permissions, company."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults import processes
from tests.faults.chain import COMMANDS
from tests.faults.processes import Ended, Running, failure_of, run
from tests.samples import encoded

SIZE = "512m"  # of the file system


@dataclass(frozen=True)
class Trial:
    """A command that is to be disturbed.

    Attributes:
        command: Name of the command.
        folder: Folder that it runs in, a file system of its own.
        random: What the disturbance is chosen by.
        seconds: What it takes undisturbed.
    """

    command: str
    folder: Path
    random: np.random.Generator
    seconds: float

    def moment(self) -> float:
        """Return a random moment of the command, in seconds after its start."""
        return float(self.random.random() * self.seconds)


def _kill_at_a_moment(trial: Trial) -> tuple[Ended, str]:
    seconds = trial.moment()
    running = Running(COMMANDS[trial.command])
    running.signal_after(seconds, signal.SIGKILL)
    return running.ended(), f"killed after {seconds:.3f} s"


def _interrupt(trial: Trial) -> tuple[Ended, str]:
    seconds = trial.moment()
    running = Running(COMMANDS[trial.command])
    running.signal_after(seconds, signal.SIGINT)
    return running.ended(), f"interrupted after {seconds:.3f} s"


def _kill_at_a_step(trial: Trial) -> tuple[Ended, str]:
    n = int(trial.random.integers(1, 80))
    return run(COMMANDS[trial.command], processes.kill_at_step(n)), f"killed at step {n}"


def _kill_at_a_line(trial: Trial) -> tuple[Ended, str]:
    n = int(10 ** trial.random.uniform(1, 5))
    return run(COMMANDS[trial.command], processes.kill_at_line(n)), f"killed at line {n}"


def _limited_files(trial: Trial) -> tuple[Ended, str]:
    n = int(2 ** trial.random.uniform(12, 20))  # what it prints goes into files, too
    return run(COMMANDS[trial.command], processes.files_end_at(n)), f"files end at {n} bytes"


def _full_disk(trial: Trial) -> tuple[Ended, str]:
    folder = trial.folder
    status = os.statvfs(folder)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    n = int(2 ** trial.random.uniform(0, 20))
    with _room(folder, used + n):
        return run(COMMANDS[trial.command]), f"{n} bytes of disk left"


@contextlib.contextmanager
def _room(folder: Path, n_bytes: int) -> Iterator[None]:
    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    resize(str(n_bytes))
    try:
        yield
    finally:
        resize(SIZE)


def _no_permission(trial: Trial) -> tuple[Ended, str]:
    folder = trial.folder
    paths = [
        folder,
        *(p for p in folder.rglob("*") if p.suffix != ".png" and "modules" not in p.parts),
    ]
    path = paths[trial.random.integers(len(paths))]
    owner = path.stat()
    for other in [folder, *folder.rglob("*")]:
        if os.geteuid() == 0:
            os.chown(other, processes.NOBODY, processes.NOBODY)
    mode = int(trial.random.choice([0o000, 0o555 if path.is_dir() else 0o444]))
    path.chmod(mode)
    try:
        ended = run(COMMANDS[trial.command], processes.as_nobody)
    finally:
        if path.exists():
            path.chmod(owner.st_mode)
        for other in [folder, *folder.rglob("*")]:
            if os.geteuid() == 0:
                os.chown(other, owner.st_uid, owner.st_gid)
    return ended, f"{path.relative_to(folder)} has mode {mode:o}"


def _two_at_once(trial: Trial) -> tuple[Ended, str]:
    first = Running(COMMANDS[trial.command])
    second = Running(COMMANDS[trial.command])
    ends = [first.ended(), second.ended()]
    worst = max(ends, key=lambda e: (failure_of(e), e.code not in (0, None)))
    return worst, "two at once"


def _changing_data(trial: Trial) -> tuple[Ended, str]:
    """An image changes while the command runs, and is what it was afterwards."""
    images = sorted((trial.folder / "data").rglob("*.png"))
    path = images[trial.random.integers(len(images))]
    before, status = path.read_bytes(), path.stat()
    seconds = trial.moment()
    running = Running(COMMANDS[trial.command])
    running.signal_after(seconds, signal.SIGSTOP)
    kind = str(trial.random.choice(["other pixels", "cut short", "gone"]))
    if kind == "other pixels":
        pixels = trial.random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path.write_bytes(encoded(pixels))
    elif kind == "cut short":
        path.write_bytes(before[: len(before) // 2])
    else:
        path.unlink()
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.process, signal.SIGCONT)
    ended = running.ended()
    path.write_bytes(before)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return ended, f"{path.name} {kind} after {seconds:.3f} s"


DISTURBANCES: dict[str, Callable[[Trial], tuple[Ended, str]]] = {
    "kill -9 at a moment": _kill_at_a_moment,
    "kill -9 at a rename, removal or opening": _kill_at_a_step,
    "kill -9 at a line": _kill_at_a_line,
    "interrupt": _interrupt,
    "files that end early": _limited_files,
    "full disk": _full_disk,
    "no permission": _no_permission,
    "two at once": _two_at_once,
    "data that change": _changing_data,
}
