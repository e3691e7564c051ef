"""Options that say which modules, and what they may do."""

from __future__ import annotations

import functools
import os
import sys
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from hubretrain.cli.options.completion import complete_modules

F = TypeVar("F", bound=Callable[..., Any])


def named_modules(text: str) -> Callable[[F], F]:
    """Return the option that names modules, with its help."""
    return click.option(
        "--module",
        "-m",
        "modules",
        multiple=True,
        metavar="NAME",
        shell_complete=complete_modules,
        help=text,
    )


modules_option = named_modules("Name of the catalogue, a handle, or a folder; may be repeated.")

offline_option = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    callback=lambda _context, _parameter, value: _go_offline(value),
    help="Never use the network for modules; HUBRETRAIN_OFFLINE=1 does the same.",
)


trust_option = click.option(
    "--trust",
    is_flag=True,
    callback=lambda _context, _parameter, value: _trusting(value),
    help="Take a module from outside the catalogue, which may read and write files; without it a "
    "terminal asks, once per module.",
)


def _trusting(value: bool) -> bool | Callable[[str], bool]:
    """Return True, or a function that asks where there is someone to answer."""

    def ask(sentence: str) -> bool:
        return sys.stdin.isatty() and click.confirm(f"{sentence}. Trust it?", err=True)

    return value or ask


def input_options(command: F) -> F:
    """Add the options for a module that does not say what images it takes."""
    value_range = click.option(
        "--value-range",
        nargs=2,
        type=float,
        metavar="LOW HIGH",
        help="Input range of a module that does not take [0, 1].",
    )
    image_size = click.option(
        "--image-size",
        type=click.IntRange(8, 4096),
        help="Height and width of the input, for a module that does not fix them.",
    )
    return image_size(value_range(command))


def _go_offline(value: bool) -> None:
    if value:
        os.environ["HUBRETRAIN_OFFLINE"] = "1"  # for processes that this one starts, too


def cluster_options(command: F) -> F:
    """Add the options that say where forward passes are computed; the command gets a `cluster`."""

    @functools.wraps(command)
    def with_cluster(
        *args: Any, n_workers: int | None, ray_address: str | None, **rest: Any
    ) -> Any:
        from hubretrain.extraction import Cluster

        cluster = Cluster(n_workers or 2, ray_address) if n_workers or ray_address else None
        return command(*args, cluster=cluster, **rest)

    workers = click.option(
        "--workers",
        "n_workers",
        type=click.IntRange(1),
        metavar="N",
        help="Compute with N processes on Ray (hubretrain[ray]); by default in this process.",
    )
    address = click.option(
        "--ray-address",
        metavar="ADDRESS",
        help="Address of a Ray cluster: auto, host:port or ray://host:port; by default Ray runs "
        "on this machine.",
    )
    return typing.cast(F, workers(address(with_cluster)))
