"""Options that say which modules, and what they may do."""

from __future__ import annotations

import functools
import os
import sys
import typing
import urllib.parse
from collections.abc import Callable, Mapping
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


modules_option = named_modules(
    "Name of the catalogue, a handle, a folder, or an ONNX file; may be repeated."
)

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


_OF_ONNX = {
    "mean": ("NUMBERS", "What an ONNX file's network subtracts, for each channel."),
    "std": ("NUMBERS", "By what an ONNX file's network divides then, for each channel."),
    "layout": ("NCHW|NHWC", "Axes of an ONNX file's input, where its shape does not tell."),
    "channels": ("RGB|BGR", "Order of the channels that an ONNX file takes."),
    "output": ("NAME", "Output of an ONNX file with the features, or a tensor inside it."),
}


def input_options(command: F) -> F:
    """Add the options for a module that does not say what images it takes.

    Those of ONNX files become a part of their handles.
    """

    @functools.wraps(command)
    def with_handles(*args: Any, **values: Any) -> Any:
        chosen = {name: value for name in _OF_ONNX if (value := values.pop(name)) is not None}
        for key in ("modules", "names", "name"):
            if chosen and key in values:
                values[key] = _with_options(values[key], chosen)
        return command(*args, **values)

    decorated: Any = with_handles
    for name, (metavar, text) in reversed(_OF_ONNX.items()):
        decorated = click.option(f"--{name}", metavar=metavar, help=text)(decorated)
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
    return typing.cast(F, image_size(value_range(decorated)))


def _with_options(names: Any, options: Mapping[str, str]) -> Any:
    """Return names of modules, options added to those of ONNX files."""
    from hubretrain.modules.onnx import is_onnx

    if isinstance(names, str):
        return _with_options((names,), options)[0]
    if not any(map(is_onnx, names)):
        flags = ", ".join(f"--{name}" for name in options)
        raise click.UsageError(f"{flags}: only for ONNX files, and no module named ends in .onnx.")
    query = urllib.parse.urlencode(options)
    return tuple(
        f"{name}{'&' if '?' in name else '?'}{query}" if is_onnx(name) else name for name in names
    )


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
