"""Commands that print foreseen errors as one sentence, in the words of the command line.

The library's sentences name parameters in backticks, such as "`n_views` is 0"; here each becomes
the flag of the command that runs: "--views is 0". `name=value` becomes `--name value`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hubretrain.errors import HubretrainError

if TYPE_CHECKING:
    from rich.console import Console

# Control characters but tabs and ends of lines, and those that turn the direction of what follows.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# What a machine is short of, wherever that shows: no defect of the program.
_OF_THE_MACHINE = {errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_OF_THE_MACHINE |= {errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_WORDS = "hubretrain.words"  # key of what was typed, in `Context.meta`
_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


def printable(text: str) -> str:
    """Return a text with codes, as in JSON, in place of the characters that a terminal obeys.

    Names of files and classes may be a stranger's.
    """
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def echo(message: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a printable text."""
    click.echo(printable(message), nl=nl, err=err)


def next_command(*words: str | Path) -> str:
    """Return a command of this program that does what it says when it is pasted into a shell."""
    return shlex.join(["hubretrain", *map(str, words)])


def this_command_without(flag: str) -> str:
    """Return the command that runs, without a flag that it was given, as `next_command` does."""
    context = click.get_current_context()
    path = context.command_path.removeprefix(context.find_root().command_path).split()
    return next_command(*path, *(word for word in context.meta[_WORDS] if word != flag))


def terminal(**options: Any) -> Console:
    """Return a terminal of rich that prints printable texts only."""
    from rich.console import Console
    from rich.segment import Segment

    class Printable(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterator[Any]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    return Printable(**options)


def print_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Collection[str] = (),
    spare: Collection[str] = (),
) -> None:
    """Print a table that fits the terminal; where there is none, lines separated by tabs.

    Args:
        titles: Titles of the columns.
        rows: The cells of each row.
        numbers: Titles of the columns of numbers.
        spare: Titles of columns that a terminal too narrow for all goes without.
    """
    console = terminal()
    if not console.is_terminal:  # for another program, which has no width to fit
        for line in (titles, *rows):
            echo("\t".join(line))
        return
    from rich.markup import escape
    from rich.table import Table

    columns = list(zip(titles, *rows, strict=True))
    widths = _widths(columns, console.width)
    if widths[0] < _longest(columns[0]):
        columns = [column for column in columns if column[0] not in spare]
        widths = _widths(columns, console.width)
    table = Table(box=None, pad_edge=False)
    for (title, *_), width in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if title in numbers else "left"
        table.add_column(escape(title), justify=justify, overflow="fold", width=width)
    for row in list(zip(*columns, strict=True))[1:]:
        table.add_row(*map(escape, row))
    console.print(table)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return widths that fit: cells wrap between words, and only then are long words cut."""
    widths = [_longest(column) for column in columns]
    excess = sum(widths) + 2 * (len(widths) - 1) - room
    for i in sorted(range(1, len(widths)), key=lambda i: -widths[i]):
        words = [word for cell in columns[i] for word in cell.split()]
        less = max(0, min(excess, widths[i] - _longest(words)))
        widths[i] -= less
        excess -= less
    while excess > 0 and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
        excess -= 1
    return widths


def _longest(texts: Sequence[str]) -> int:
    """Return the width of the longest text in a terminal, at least 1."""
    from rich.cells import cell_len

    return max([1, *(cell_len(printable(text)) for text in texts)])


def in_flags(sentence: str, of_command: click.Command | None = None) -> str:
    """Return a sentence with the flags of a command, the running one, for parameters it names.

    What is no parameter of the command, nor of a group that it belongs to, stays as it is.
    """
    context = click.get_current_context(silent=True)

    def flag_of(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        for command in [of_command] if of_command else _commands(context):
            alias = getattr(command, "aliases", {}).get(name)
            if alias:
                return str(alias).format("N" if value is None else value)
            for parameter in command.params:
                if parameter.name == name:
                    return _spelled(parameter, value)
        return match[0]

    return _PARAMETER.sub(flag_of, sentence)


def _commands(context: click.Context | None) -> Iterator[click.Command]:
    while context is not None:
        yield context.command
        context = context.parent


def _spelled(parameter: click.Parameter, value: str | None) -> str:
    if isinstance(parameter, click.Argument):
        return re.sub(r"[\[\].]", "", parameter.metavar or str(parameter.name).upper())
    if value == "False" and parameter.secondary_opts:
        return parameter.secondary_opts[0]
    flag = max(parameter.opts, key=len)
    is_switch = isinstance(parameter, click.Option) and parameter.is_flag
    return flag if value is None or is_switch else f"{flag} {value}"


class _Spoken(click.Command):
    """A command that turns a foreseen error into one sentence and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        """Invoke the command."""
        try:
            return super().invoke(context)
        except HubretrainError as error:
            with context.scope(cleanup=False):
                echo(f"hubretrain: {in_flags(str(error))}", err=True)
            raise click.exceptions.Exit(1) from None
        except OSError as error:
            if error.errno not in _OF_THE_MACHINE:
                raise
            where = error.filename or "A file"
            reason = error.strerror or error
            advice = "fix permissions, or free disk space or memory"
            echo(f"hubretrain: {where} cannot be used ({reason}); {advice}.", err=True)
            raise click.exceptions.Exit(1) from None


class Command(_Spoken):
    """A command.

    Args:
        aliases: Flags of parameters that no option is named after, `{}` for the value.
    """

    def __init__(self, *args: Any, aliases: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aliases = dict(aliases or {})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the command line, and keep them for `this_command_without`."""
        ctx.meta[_WORDS] = [*args]
        return super().parse_args(ctx, args)


class Group(_Spoken, click.Group):
    """A group of commands."""

    command_class = Command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name; an unknown one gets the nearest names."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(context), cutoff=0.5)
            if not near:
                raise
            message = f"{error.message} Did you mean {' or '.join(near)}?"
            raise click.UsageError(message, error.ctx) from None


class EchoHandler(logging.Handler):
    """Messages of the library on standard error, with the program's name before each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        echo(f"hubretrain: {in_flags(self.format(record))}", err=True)


@contextlib.contextmanager
def messages_shown() -> Iterator[None]:
    """Print what the library logs inside on standard error.

    Only once: TensorFlow may have given the root logger a handler, which would print it again.
    """
    logger = logging.getLogger("hubretrain")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [EchoHandler()], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
