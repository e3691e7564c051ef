"""Commands in forked processes: killed, interrupted, without disk space, or without permission."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from tests.extraction.interruption import Stop

# A command hangs that does nothing for so long, or computes for so long, whoever else computes.
IDLE_SECONDS, CPU_SECONDS = 300.0, 300.0
NOBODY = 65_534
_OF_TRACEBACK = 70
# What Python reports before it does it: a kill there falls between two steps on the disk.
STEPS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")

TRACEBACK, HANG, CRASH = "traceback", "hang", "crash"
_SENTENCE = re.compile(r"^hubretrain: .+[.!]$")

Disturbance = Callable[[], object]
"""Done in the process before the command begins."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; below 0 the signal that ended it; None if it hung.
        out: Standard output.
        err: Standard error.
        seconds: Wall time.
    """

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        """Everything that it printed."""
        return self.out + self.err


class Running:
    """A command in a forked process.

    Args:
        arguments: What follows `hubretrain` on the command line.
        disturb: What the process does to itself first.
    """

    def __init__(self, arguments: Sequence[str], disturb: Disturbance | None = None) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if not self.process:
            _become(arguments, [file.fileno() for file in self._files], disturb)

    def signal_after(self, seconds: float, number: int) -> None:
        """Send a signal at a moment, unless the command has ended by then."""
        if not self._has_ended_within(seconds):
            os.kill(self.process, number)

    def ended(self) -> Ended:
        """Wait for the end."""
        code: int | None = None
        if self._ends():
            code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        else:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(code, *texts, time.monotonic() - self._started)

    def _ends(self) -> bool:
        """Wait for the end; return whether it came before the process counts as hung."""
        used, at = 0.0, time.monotonic()
        while not self._has_ended_within(1.0):
            times = psutil.Process(self.process).cpu_times()
            if times.user + times.system > used:
                used, at = times.user + times.system, time.monotonic()
            if used > CPU_SECONDS or time.monotonic() - at > IDLE_SECONDS:
                return False
        return True

    def _has_ended_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        handle = os.pidfd_open(self.process)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return bool(poll.poll(max(0.0, until - time.monotonic()) * 1e3))
        finally:
            os.close(handle)


def failure_of(ended: Ended) -> str:
    """Return the defect that shows in how a command ended, '' for none."""
    if ended.code is None:
        return HANG
    if "Traceback (most recent" in ended.text or ended.code == _OF_TRACEBACK:
        return TRACEBACK
    return CRASH if ended.code < 0 else ""


def sentence_of(ended: Ended) -> str:
    """Return the last line of standard error if it is a sentence of hubretrain, else ''."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    return lines[-1] if lines and _SENTENCE.match(lines[-1]) else ""


def run(arguments: Sequence[str], disturb: Disturbance | None = None) -> Ended:
    """Run a command to its end."""
    return Running(arguments, disturb).ended()


def _become(arguments: Sequence[str], files: Sequence[int], disturb: Disturbance | None) -> None:
    """Run a command and end the process as Python ends one, without what belongs to the parent."""
    code = _OF_TRACEBACK
    try:
        for number, file in enumerate(files, 1):
            os.dup2(file, number)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        from hubretrain.cli import main

        if disturb is not None:
            disturb()
        main(args=list(arguments), prog_name="hubretrain")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.settrace(None)
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python does
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def kill_at_step(n: int) -> Disturbance:
    """Return what kills the process before its n-th step on the disk: a rename, a removal, ..."""

    def disturb() -> None:
        left = n

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
            if event in STEPS or is_write:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return disturb


def kill_at_line(n: int) -> Disturbance:
    """Return what kills the process at the n-th line of the package in its main thread."""

    def disturb() -> None:
        Stop(n, lambda: os.kill(os.getpid(), signal.SIGKILL)).__enter__()

    return disturb


def files_end_at(n_bytes: int) -> Disturbance:
    """Return what lets no file of the process grow beyond a size."""

    def disturb() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return disturb


def as_nobody() -> None:
    """Give up the permissions of root, so that those of files count."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
