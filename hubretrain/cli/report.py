"""hubretrain report: a page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from hubretrain.cli.command import Command
from hubretrain.cli.options import chosen_run, images_option, run_argument


@click.command(cls=Command)
@run_argument
@images_option
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The page; by default report.html in the run folder.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the figures as PNG files too (hubretrain[report]).",
)
@click.option(
    "--map",
    "map_method",
    type=click.Choice(["tsne", "umap"]),
    default="tsne",
    show_default=True,
    help="How bottlenecks are laid out; umap needs umap-learn.",
)
@click.option(
    "--saliency",
    "n_saliency",
    type=click.IntRange(0, 200),
    default=8,
    show_default=True,
    metavar="N",
    help="Images with saliency maps; 0: none, and no module is loaded.",
)
def report(
    run_folder: Path | None,
    data: Path | None,
    output: Path | None,
    png: Path | None,
    map_method: str,
    n_saliency: int,
) -> None:
    """Write a page of RUN, by default the latest run: report.html, which needs nothing but itself.

    Leaderboard and costs; confusion, precision, recall and calibration of heads and fine-tuned
    modules; a map of the bottlenecks; saliency; mistakes, and labels to look at again
    (label_errors.csv); training, data, and how to reproduce it all.
    """
    from hubretrain.report import write_report

    run = chosen_run(run_folder)
    found = write_report(
        run, data=data, output=output, png=png, map_method=map_method, n_saliency=n_saliency
    )
    for sentence in found.missing:
        click.echo(sentence)
    if found.pictures:
        click.echo(f"{len(found.pictures)} figures in {found.pictures[0].parent}/")
    click.echo(f"{found.n_doubtful:,} labels to look at again: {found.label_errors}")
    size = found.page.stat().st_size / 1e6
    click.echo(f"{found.page} ({size:.1f} MB): open it in a browser.")
