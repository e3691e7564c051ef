"""Progress of long work on standard error: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0


class _Speed(ProgressColumn):
    """Things a second, such as 146 images/s."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__()

    def render(self, task: Task) -> Text:
        """The speed of one task."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self.unit}/s", style="cyan")


class Bar:
    """A progress bar over a known number of things.

    Args:
        what: What is going on, such as `mobilenet_v2`.
        total: How many things there are.
        unit: What they are called, in the plural.
        quiet: Show nothing.
    """

    def __init__(self, what: str, total: int, unit: str = "images", *, quiet: bool = False) -> None:
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.done = self._shown = 0
        self._started = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._live: Progress | None = None
        if console.is_terminal and not quiet:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                _Speed(unit),
                TimeRemainingColumn(),
                console=console,
                expand=True,
            )
            self._task = self._live.add_task(what, total=total)

    def __enter__(self) -> Bar:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        elif not self.quiet and self.done != self._shown:
            self._line()

    @property
    def per_second(self) -> float:
        """Things a second since the start."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def advance(self, n: int = 1) -> None:
        """Counts `n` more things as done."""
        self.done += n
        if self._live:
            self._live.advance(self._task, n)
        elif not self.quiet and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last_line, self._shown = time.monotonic(), self.done
        speed = self.per_second
        eta = f", {(self.total - self.done) / speed:,.0f} s left" if self.done < self.total else ""
        print(
            f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, "
            f"{speed:,.0f} {self.unit}/s{eta}",
            file=sys.stderr,
            flush=True,
        )
