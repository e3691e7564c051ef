"""hubretrain explain: which pixels a decision rests on."""

from __future__ import annotations

from pathlib import Path

import click

from hubretrain.cli.command import Command


@click.command(cls=Command)
@click.argument("model", metavar="EXPORT_OR_RUN", type=click.Path(path_type=Path))
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("explained"),
    show_default=True,
    metavar="DIR",
    help="Where the PNG files go.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(["gradcam", "smoothgrad", "integrated"]),
    help="May be repeated; by default all that the model allows.",
)
@click.option("--class", "of_class", metavar="NAME", help="Instead of the likeliest class.")
@click.option("--head", metavar="MODULE", help="The head on this module of a run, not its export.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Of SmoothGrad's noise.",
)
@click.pass_context
def explain(
    context: click.Context,
    model: Path,
    images: tuple[Path, ...],
    folder: Path,
    methods: tuple[str, ...],
    of_class: str | None,
    head: str | None,
    seed: int,
) -> None:
    """Draw over each IMAGE which pixels its likeliest class rests on.

    Grad-CAM where the model has a feature map, squared SmoothGrad, and integrated gradients. Of a
    run, its exported model, or the head of the shortlist's first module. An ensemble is explained
    as one model, without Grad-CAM.
    """
    from hubretrain.report.saliency import explain_images

    found = explain_images(
        model, images, folder, methods=methods, of_class=of_class, head=head, seed=seed
    )
    for one in found:
        if one.error:
            click.echo(f"hubretrain: {one.path}: {one.error}", err=True)
        else:
            click.echo(f"{one.path}: {one.of_class} {one.probability:.1%}, {one.pictures[-1]}")
    if any(one.error for one in found):
        context.exit(1)
