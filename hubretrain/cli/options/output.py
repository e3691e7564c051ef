"""Options that say how and where a command gives its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def out_option(default: str, text: str) -> Callable[[F], F]:
    """Return the option for the folder of a command's files, the parameter `folder`."""
    return click.option(
        "--out",
        "folder",
        type=click.Path(path_type=Path, readable=False, file_okay=False),
        default=Path(default),
        show_default=True,
        metavar="DIR",
        help=text,
    )
