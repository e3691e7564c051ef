"""The command line: parse, call one function, print."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from hubretrain import __version__
from hubretrain.errors import HubretrainError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets at length otherwise

F = TypeVar("F", bound=Callable[..., Any])


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


def _data_options(command: F) -> F:
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


def _open(options: dict[str, Any]) -> Any:
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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hubretrain")
def main() -> None:
    """Cache bottlenecks once, screen many heads honestly, fine-tune the winner."""


@main.command()
@_data_options
@click.option(
    "--module",
    "-m",
    "names",
    multiple=True,
    required=True,
    metavar="NAME",
    help="A name of the catalogue, a handle, or a folder; may be repeated.",
)
@click.option(
    "--views",
    default=4,
    show_default=True,
    help="Views of each image; the first is the image as it is, the others are augmented.",
)
@click.option("--seed", default=0, show_default=True, help="Of the augmentation.")
@click.option(
    "--batch-size",
    default=32,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="Images a forward pass.",
)
@click.option(
    "--image-size",
    type=click.IntRange(8, 4096),
    help="Input height and width, for a module that does not fix them.",
)
@click.option(
    "--value-range",
    nargs=2,
    type=float,
    metavar="LOW HIGH",
    help="Input range of a module that does not take [0, 1].",
)
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be decoded.")
@click.option(
    "--overwrite", is_flag=True, help="Compute anew what was computed with other settings."
)
def cache(
    names: tuple[str, ...],
    views: int,
    seed: int,
    batch_size: int,
    image_size: int | None,
    value_range: tuple[float, float] | None,
    strict: bool,
    overwrite: bool,
    cache_folder: Path,
    **data_options: Any,
) -> None:
    """Run each module once over the images of DATA and keep the bottlenecks.

    DATA is a folder of class folders, or of images that a table labels; by default data/ or the
    one data set in it. The same command again computes only what is missing.
    """
    from hubretrain.cache import cache as run
    from hubretrain.modules import resolve

    dataset = _open(data_options)
    modules = [resolve(name, image_size=image_size, value_range=value_range) for name in names]
    found = run(
        dataset,
        modules,
        n_views=views,
        folder=cache_folder,
        seed=seed,
        batch_size=batch_size,
        strict=strict,
        overwrite=overwrite,
    )
    for one in found:
        click.echo(
            f"{one.file}: {one.n_images:,} images x {one.n_views} views, "
            f"{one.n_computed:,} computed now."
        )
    computed = sum(one.n_computed for one in found)
    if computed:
        click.echo(
            f"{computed:,} forward passes in {found[0].seconds:,.1f} s, "
            f"{computed / found[0].seconds:,.0f} images/s."
        )
    if found[0].n_quarantined:
        click.echo(
            f"{found[0].n_quarantined} images cannot be decoded; "
            f"see {found[0].file.parent / 'quarantine.csv'}",
            err=True,
        )


@main.command()
@click.option("--search", default="", metavar="TEXT", help="Only names that contain TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def modules(search: str, as_json: bool) -> None:
    """List the catalogue of modules, and which of them are here already."""
    from hubretrain.modules import catalogue, is_stored

    rows = [
        {
            "name": m.name,
            "aliases": list(m.aliases),
            "image_size": m.image_size,
            "n_features": m.n_features or None,
            "source": m.source,
            "handle": m.tfhub_handle,
            "stored": is_stored(m.name),
        }
        for m in catalogue()
        if search.lower() in " ".join((m.name, *m.aliases, m.tfhub_handle)).lower()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("module", "aliases", "size", "features", "from", "here", box=None)
    for row in rows:
        table.add_row(
            row["name"],
            " ".join(row["aliases"]),
            str(row["image_size"]),
            str(row["n_features"] or "?"),
            row["source"],
            "yes" if row["stored"] else "",
        )
    Console().print(table)


@contextlib.contextmanager
def _unbuffered() -> Iterator[None]:
    """Prints each line as it is done, so that a pipe shows progress."""
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    yield


if __name__ == "__main__":
    main()
