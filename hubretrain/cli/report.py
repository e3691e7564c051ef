"""hubretrain report: a page of a run."""

from __future__ import annotations

from pathlib import Path

import click
from rich.filesize import decimal

from hubretrain.cli.command import Command, echo, in_flags
from hubretrain.cli.options import chosen_run, images_option, run_argument


@click.command(cls=Command, short_help="Write a page about a run.")
@run_argument
@images_option
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, readable=False, dir_okay=False),
    metavar="FILE",
    help="Page to write; by default report.html in the run folder.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path, readable=False, file_okay=False),
    metavar="DIR",
    help="Folder for the figures as PNG files (hubretrain[report]).",
)
@click.option(
    "--map",
    "map_method",
    type=click.Choice(["tsne", "umap"]),
    default="tsne",
    show_default=True,
    help="Method of the map of the bottlenecks; umap needs umap-learn.",
)
@click.option(
    "--saliency",
    "n_saliency",
    type=click.IntRange(0, 200),
    default=8,
    show_default=True,
    metavar="N",
    help="Number of images with saliency maps; 0 loads no module, and shows those of before.",
)
def report(
    run: Path | None,
    data: Path | None,
    output: Path | None,
    png: Path | None,
    map_method: str,
    n_saliency: int,
) -> None:
    """Write report.html of RUN, by default of the latest run: one file that needs no other.

    Leaderboard and costs; confusion, precision, recall and calibration of heads and fine-tuned
    modules; a map of the bottlenecks; saliency; errors, and labels to review
    (label_errors.csv); training, data, and the commands that reproduce it.
    """
    from hubretrain.report import write_report

    result = write_report(
        chosen_run(run),
        data=data,
        output=output,
        png=png,
        map_method=map_method,
        n_saliency=n_saliency,
    )
    for sentence in result.missing:
        echo(in_flags(sentence))
    if result.pictures:
        echo(f"{len(result.pictures)} figures in {result.pictures[0].parent}/")
    echo(f"{result.n_doubtful:,} labels to review: {result.label_errors}")
    echo(f"{result.page} ({decimal(result.page.stat().st_size)}): open it in a browser.")
