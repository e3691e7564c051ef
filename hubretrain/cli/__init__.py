"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import click

from hubretrain._version import __version__
from hubretrain.errors import HubretrainError

COMMANDS = (
    "data",
    "cache",
    "fit",
    "finetune",
    "export",
    "predict",
    "serve",
    "report",
    "explain",
    "modules",
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets at length otherwise


class _Commands(click.Group):
    """Runs a command; a foreseen error is one sentence and exit code 1.

    A command's file is imported when the command is asked for: `predict` answers sooner.
    """

    def list_commands(self, _context: click.Context) -> list[str]:
        """The commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """One command, None where there is no such."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"hubretrain.cli.{name}"), name)
        return command

    def invoke(self, context: click.Context) -> Any:
        """Invokes the command that was asked for."""
        try:
            return super().invoke(context)
        except HubretrainError as error:
            click.echo(f"hubretrain: {error}", err=True)
            context.exit(1)
        except KeyboardInterrupt:
            click.echo(
                "hubretrain: interrupted; what is finished is kept, the same command goes on "
                "from there.",
                err=True,
            )
            context.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hubretrain")
def main() -> None:
    """Cache bottlenecks once, screen many heads honestly, fine-tune the winner."""
