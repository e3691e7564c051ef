"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import Any

import click

from hubretrain._version import __version__
from hubretrain.cli.command import Group, echo, messages_shown

COMMANDS = {  # command: its file, in the order of the work
    "auto": "auto",
    "data": "data",
    "screen": "screen",
    "cache": "cache",
    "fit": "fit",
    "finetune": "finetune",
    "export": "export",
    "predict": "predict",
    "evaluate": "evaluate",
    "serve": "serve",
    "report": "report",
    "explain": "explain",
    "modules": "upkeep.modules",
    "runs": "upkeep.runs",
    "doctor": "upkeep.doctor",
}
# Pillow's plugins warn of odd EXIF data and the like in the midst of a bar; what cannot be decoded
# is told by a sentence. Here, not where images are read: the filters of warnings belong to the
# process, and threads that change them would change those of each other.
warnings.filterwarnings("ignore", module=r"PIL\.")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up log is long otherwise


class _Main(Group):
    """The commands, each imported when it is used, so that `predict` starts faster."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Return one command, None where there is none of that name."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"hubretrain.cli.{COMMANDS[name]}"), name)
        return command

    def invoke(self, context: click.Context) -> Any:
        """Invoke the command that was asked for; an interrupt exits with 130."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            echo(
                "hubretrain: interrupted; completed work is kept, rerun the command to resume.",
                err=True,
            )
            context.exit(130)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hubretrain")
@click.pass_context
def main(context: click.Context) -> None:
    """Cache bottlenecks once, screen many heads honestly, fine-tune the winner."""
    context.with_resource(messages_shown())
