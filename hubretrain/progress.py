"""Progress of long work on standard error: a bar in a terminal, a line every 10 s elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0
_WIDTH_OF_NUMBERS = 44  # of a bar: what is done, speed, time left, and some of the bar itself
PERCENT = "%"
_is_shown: ContextVar[bool] = ContextVar("progress_is_shown", default=True)
# The bar that those made here fill instead of being shown, and how much of it they fill.
_outer: ContextVar[tuple[Bar, float] | None] = ContextVar("outer_bar", default=None)


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
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """Return the speed of one task."""
        text = rate_words(task.completed - self.already, task.elapsed or 0.0, self.unit)
        return Text(text, style="cyan")


class _Left(ProgressColumn):
    """Time that is left at the speed since the start: that of late jumps where steps differ."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """Return the time that is left, such as 1:05."""
        del task
        seconds = self.bar.seconds_left
        text = "" if seconds is None else str(timedelta(seconds=round(seconds)))
        return Text(text.removeprefix("0:"), style="progress.remaining")


def rate_words(n: float, seconds: float, unit: str) -> str:
    """Return items per second, such as `146 images/s` or `0.43 steps/s`.

    Empty for less than a second, where the clock and what was there already decide, for none, and
    for percent.
    """
    if seconds < 1 or n == 0 or unit == PERCENT:
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
        share: Share, (0, 1], of the `part` of another bar that this one fills if it is made inside.
    """

    def __init__(
        self, what: str, total: int, unit: str = "images", already: int = 0, share: float = 1.0
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done: float = already
        self._shown: float = already
        self._already = already
        self._started = self._last_line = time.monotonic()
        self._outer, self._share = _outer.get(), share
        self._hidden = not is_progress_shown() or self._outer is not None
        self._console = Console(stderr=True)
        self._live: Progress | None = None
        if self._console.is_terminal and not self._hidden:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                _Speed(unit, already),
                _Left(self),
                console=self._console,
                expand=True,
            )
            room = max(20, self._console.width - _WIDTH_OF_NUMBERS)
            shown = what if len(what) <= room else f"{what[: room - 1]}…"
            self._task = self._live.add_task(shown, total=total, completed=already)

    def __enter__(self) -> Bar:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        elif self.done != self._shown:
            self._line()

    @contextlib.contextmanager
    def part(self, share: float) -> Iterator[None]:
        """Let the bars that are made inside fill a share of this one, instead of being shown.

        Args:
            share: Share of this bar, (0, 1], that is filled in the end.
        """
        end = self.done + share * self.total
        token = _outer.set((self, share * self.total))
        try:
            yield
        finally:
            _outer.reset(token)
        self.advance(end - self.done)

    @property
    def seconds_left(self) -> float | None:
        """Seconds that are left at the speed since the start; None where that is not known."""
        if not self._already < self.done < self.total:
            return None
        return (self.total - self.done) / self.per_second

    @property
    def per_second(self) -> float:
        """Items per second since the start."""
        return (self.done - self._already) / max(time.monotonic() - self._started, 1e-9)

    def advance(self, n: float = 1) -> None:
        """Count `n` more items as done."""
        self.done += n
        if self._outer is not None and self.total > self._already:
            bar, amount = self._outer
            bar.advance(amount * self._share * n / (self.total - self._already))
        if self._live:
            self._live.advance(self._task, n)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        if self._hidden:
            return
        self._last_line, self._shown = time.monotonic(), self.done
        seconds = self._last_line - self._started
        words = [f"{self.what}: {self.done:,.0f} of {self.total:,} {self.unit}"]
        if rate := rate_words(self.done - self._already, seconds, self.unit):
            words.append(rate)
        if (left := self.seconds_left) is not None:
            words.append(f"{left:,.0f} s left")
        self._console.out(", ".join(words), highlight=False)
