"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
from typing import Any

import click

from hubretrain import __version__
from hubretrain.cli.cache import cache
from hubretrain.cli.data import data
from hubretrain.cli.explain import explain
from hubretrain.cli.export import export
from hubretrain.cli.finetune import finetune
from hubretrain.cli.fit import fit
from hubretrain.cli.modules import modules
from hubretrain.cli.predict import predict
from hubretrain.cli.report import report
from hubretrain.cli.serve import serve
from hubretrain.errors import HubretrainError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets at length otherwise


class _Commands(click.Group):
    """Runs a command; a foreseen error is one sentence and exit code 1."""

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


for _command in (
    data,
    cache,
    fit,
    finetune,
    export,
    predict,
    serve,
    report,
    explain,
    modules,
):
    main.add_command(_command)
