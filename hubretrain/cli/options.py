"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hubretrain.dataset import ImageDataset

RUNS = Path("runs")
F = TypeVar("F", bound=Callable[..., Any])


def data_options(command: F) -> F:
    """The options that say where the images and their labels are."""
    for option in reversed(
        (
            click.argument("data", required=False, type=click.Path(path_type=Path)),
            click.option(
                "--labels",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="A CSV or TSV that labels the images.",
            ),
            click.option(
                "--image-column",
                metavar="NAME",
                help="Its column with the image: a path, a file name or a file stem.",
            ),
            click.option("--label-column", metavar="NAME", help="Its column with the class."),
            click.option(
                "--group-column",
                metavar="NAME",
                help="Its column with what must stay together: a lesion, a patient.",
            ),
            click.option(
                "--split-column",
                metavar="NAME",
                help="Its column with a given split: train, validation, test.",
            ),
            click.option(
                "--skip-unmatched",
                is_flag=True,
                help="Go on without rows that have no file and files that have no row.",
            ),
            click.option(
                "--cache",
                "cache_folder",
                type=click.Path(path_type=Path),
                default=Path("cache"),
                show_default=True,
                help="Where bottlenecks are.",
            ),
        )
    ):
        command = option(command)
    return command


def augmentation_options(command: F) -> F:
    """The options that say how augmented views differ from their image."""
    for option in (
        click.option(
            "--flip/--no-flip",
            default=True,
            help="Mirror half of the augmented views; not for digits or text.",
        ),
        click.option(
            "--crop",
            default=0.5,
            show_default=True,
            type=click.FloatRange(0.001, 1),
            help="Least share of the area that a crop keeps.",
        ),
    ):
        command = option(command)
    return command


def run_option(command: F) -> F:
    """The option that names a run."""
    return click.option(
        "--run",
        "run_folder",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        callback=lambda _context, _parameter, value: _run_folder(value),
        help="Where to keep what is found; a plain name is a folder in runs/. By default "
        "runs/<data set>.",
    )(command)


def _run_folder(value: Path | None) -> Path | None:
    """A plain name is a folder in ``runs/``."""
    return RUNS / value if value is not None and len(value.parts) == 1 else value


def open_data(options: dict[str, Any]) -> ImageDataset:
    """The data set that the data options name; takes them out of ``options``."""
    from hubretrain.dataset import open_dataset

    names = (
        "labels",
        "image_column",
        "label_column",
        "group_column",
        "split_column",
        "skip_unmatched",
    )
    return open_dataset(options.pop("data"), **{name: options.pop(name) for name in names})
