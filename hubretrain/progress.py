"""Progress of long work on standard error: a bar in a terminal, a line every 10 s elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

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
_is_shown: ContextVar[bool] = ContextVar("progress_is_shown", default=True)


@contextlib.contextmanager
def progress_shown(shown: bool) -> Iterator[None]:
    """Show or hide the progress of everything that runs inside.

    What is hidden stays hidden: a `progress_shown(True)` within a `progress_shown(False)` shows
    nothing.
    """
    token = _is_shown.set(shown and _is_shown.get())
    try:
        yield
    finally:
        _is_shown.reset(token)


def is_progress_shown() -> bool:
    """Return whether progress is shown here."""
    return _is_shown.get()


class _Speed(ProgressColumn):
    """Items per second, such as 146 images/s."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__()

    def render(self, task: Task) -> Text:
        """Return the speed of one task."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self.unit}/s", style="cyan")


class Bar:
    """A progress bar over a known number of items.

    Args:
        what: What is going on, such as `mobilenet_v2`.
        total: Number of items.
        unit: What the items are called, in the plural.
    """

    def __init__(self, what: str, total: int, unit: str = "images") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self._shown = 0
        self._started = self._last_line = time.monotonic()
        self._hidden = not is_progress_shown()
        self._console = Console(stderr=True)
        self._live: Progress | None = None
        if self._console.is_terminal and not self._hidden:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                _Speed(unit),
                TimeRemainingColumn(),
                console=self._console,
                expand=True,
            )
            self._task = self._live.add_task(what, total=total)

    def __enter__(self) -> Bar:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        elif self.done != self._shown:
            self._line()

    @property
    def per_second(self) -> float:
        """Items per second since the start."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def advance(self, n: int = 1) -> None:
        """Count `n` more items as done."""
        self.done += n
        if self._live:
            self._live.advance(self._task, n)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        if self._hidden:
            return
        self._last_line, self._shown = time.monotonic(), self.done
        speed = self.per_second
        eta = f", {(self.total - self.done) / speed:,.0f} s left" if self.done < self.total else ""
        self._console.out(
            f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, "
            f"{speed:,.0f} {self.unit}/s{eta}",
            highlight=False,
        )
