"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hubretrain.data import ImageDataset
    from hubretrain.runs import Run

RUNS = Path("runs")
F = TypeVar("F", bound=Callable[..., Any])

# Field of Augmentation: its default, and the option's help.
_AUGMENTATION: dict[str, tuple[bool | float, str]] = {
    "horizontal_flip": (True, "Mirror half of the augmented views; not for digits or text."),
    "vertical_flip": (False, "Turn half of them upside down."),
    "rotate90": (False, "Turn by 0, 90, 180 or 270 degrees, where no side is up."),
    "crop": (0.5, "Least share of the area that a crop keeps, (0, 1]."),
    "crop_ratio": (1.333, "Largest stretch of a crop's width against its height."),
    "scale": (0.0, "Largest enlargement before the crop."),
    "brightness": (0.1, "Largest shift of brightness, share of the range."),
    "contrast": (0.1, "Largest relative change of contrast."),
    "saturation": (0.0, "Largest relative change of saturation."),
    "hue": (0.0, "Largest turn of the hue, share of the circle, up to 0.5."),
}


def data_options(command: F) -> F:
    """The options that say where the images and their labels are."""
    for option in reversed(
        (
            click.argument("data", nargs=-1, type=click.Path(path_type=Path)),
            click.option(
                "--labels",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="A CSV, TSV, JSON lines or parquet file that labels the images.",
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
                help="Its column with what must stay together: a lesion, a patient; or none.",
            ),
            click.option(
                "--split-column",
                metavar="NAME",
                help="Its column with a given split: train, validation, test; or none.",
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
    """The options that say how augmented views differ; `command` gets one `augmentation`."""

    @functools.wraps(command)
    def with_augmentation(**options: Any) -> Any:
        from hubretrain.data.images import Augmentation

        chosen = {field: options.pop(field) for field in _AUGMENTATION}
        return command(augmentation=Augmentation(**chosen), **options)

    for name, (default, text) in reversed(_AUGMENTATION.items()):
        flags = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            option = click.option(f"{flags}/--no-{flags[2:]}", name, default=default, help=text)
        else:
            option = click.option(flags, name, default=default, show_default=True, help=text)
        with_augmentation = option(with_augmentation)
    return with_augmentation  # type: ignore[return-value]


def folds_options(command: F) -> F:
    """The options that say how a data set is split."""
    for option in (
        click.option(
            "--test-fraction",
            default=0.2,
            show_default=True,
            help="Share of the images kept for the test split.",
        ),
        click.option(
            "--folds", "n_folds", default=5, show_default=True, help="Folds to validate on."
        ),
    ):
        command = option(command)
    return command


def duplicates_option(command: F) -> F:
    """The option that keeps near duplicates in one part of a split."""
    return click.option(
        "--keep-duplicates-together/--no-keep-duplicates-together",
        default=True,
        show_default=True,
        help="Look for near duplicates and keep them on one side of every split. Files with the "
        "same bytes always are.",
    )(command)


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


def run_argument(command: F) -> F:
    """The run that a command goes on with, for `chosen_run`."""
    return click.argument(
        "run_folder", required=False, metavar="RUN", type=click.Path(path_type=Path)
    )(command)


def chosen_run(run_folder: Path | None) -> Run:
    """The run that is named, or the latest.

    Raises:
        RunError: None is named and there is none.
    """
    from hubretrain.runs import Run, latest_run

    return Run(run_folder) if run_folder else latest_run(RUNS)


def export_first(model: Path) -> None:
    """Exports a run's fitted head where there is no export of it as it is now."""
    from hubretrain.export import export_of, is_current
    from hubretrain.runs import Run

    run = Run(model)
    if export_of(model) == model or not os.path.exists(run.record_file) or is_current(run):
        return
    from hubretrain.export import export_run

    click.echo(f"hubretrain: exporting the fitted head of {model}, once", err=True)
    export_run(run)


def images_option(command: F) -> F:
    """The option that says where a run's images are by now."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="The images, if they are not where they were fitted.",
    )(command)


def input_options(command: F) -> F:
    """The options for a module that does not say what images it takes."""
    for option in (
        click.option(
            "--value-range",
            nargs=2,
            type=float,
            metavar="LOW HIGH",
            help="Input range of a module that does not take [0, 1].",
        ),
        click.option(
            "--image-size",
            type=click.IntRange(8, 4096),
            help="Input height and width, for a module that does not fix them.",
        ),
    ):
        command = option(command)
    return command


def offline_option(command: F) -> F:
    """The option that forbids the network, as `HUBRETRAIN_OFFLINE=1` does."""
    return click.option(
        "--offline",
        is_flag=True,
        expose_value=False,
        callback=lambda _context, _parameter, value: _go_offline(value),
        help="Never use the network for modules; so does HUBRETRAIN_OFFLINE=1.",
    )(command)


def _go_offline(value: bool) -> None:
    if value:
        os.environ["HUBRETRAIN_OFFLINE"] = "1"  # for processes that this one starts, too


def _run_folder(value: Path | None) -> Path | None:
    """A plain name is a folder in `runs/`."""
    return RUNS / value if value is not None and len(value.parts) == 1 else value


def open_data(options: dict[str, Any]) -> ImageDataset:
    """The data set that the data options name; takes them out of `options`."""
    from dataclasses import fields

    from hubretrain.data import TableOptions, open_dataset

    data, *more_roots = options.pop("data") or (None,)
    table = TableOptions(
        **{option.name: options.pop(option.name) for option in fields(TableOptions)}
    )
    return open_dataset(data, more_roots=more_roots, labels=options.pop("labels"), table=table)
