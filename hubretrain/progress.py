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

    def __init__(self, unit: str, already: int) -> None:
        self.unit, self.already = unit, already
        super().__init__()

    def render(self, task: Task) -> Text:
        """Return the speed of one task."""
        text = rate_words(task.completed - self.already, task.elapsed or 0.0, self.unit)
        return Text(text, style="cyan")


def rate_words(n: float, seconds: float, unit: str) -> str:
    """Return items per second, such as `146 images/s` or `0.43 steps/s`.

    Empty for less than a second, where the clock and what was there already decide, and for none.
    """
    if seconds < 1 or n == 0:
        return ""
    speed = n / seconds
    return f"{f'{speed:,.0f}' if speed >= 10 else f'{speed:.2g}'} {unit}/s"


class Bar:
    """A progress bar over a known number of items.

    Args:
        what: What is going on, such as `mobilenet_v2`.
        total: Number of items.
        unit: What the items are called, in the plural.
        already: Number of items that an earlier process completed, which say nothing of the speed.
    """

    def __init__(self, what: str, total: int, unit: str = "images", already: int = 0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self._shown = self._already = already
        self._started = self._last_line = time.monotonic()
        self._hidden = not is_progress_shown()
        self._console = Console(stderr=True)
        self._live: Progress | None = None
        if self._console.is_terminal and not self._hidden:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                _Speed(unit, already),
                TimeRemainingColumn(),
                console=self._console,
                expand=True,
            )
            self._task = self._live.add_task(what, total=total, completed=already)

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
        return (self.done - self._already) / max(time.monotonic() - self._started, 1e-9)

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
        seconds = self._last_line - self._started
        words = [f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"]
        if rate := rate_words(self.done - self._already, seconds, self.unit):
            words.append(rate)
        if self._already < self.done < self.total:
            words.append(f"{(self.total - self.done) / self.per_second:,.0f} s left")
        self._console.out(", ".join(words), highlight=False)
