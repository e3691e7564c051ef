"""hubretrain explain: which pixels a decision rests on."""

from __future__ import annotations

from pathlib import Path

import click

from hubretrain.cli.command import Command, echo, in_flags
from hubretrain.cli.options import (
    complete_classes,
    complete_modules,
    existing_model,
    model_and_images_argument,
    out_option,
)


@click.command(cls=Command, short_help="Draw the pixels that a prediction rests on.")
@model_and_images_argument
@out_option("explained", "Folder for the PNG files.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(["gradcam", "smoothgrad", "integrated"]),
    help="Method to use; may be repeated. By default all that the model allows.",
)
@click.option(
    "--class",
    "--label",
    "of_class",
    metavar="NAME",
    shell_complete=complete_classes,
    help="Class or label to explain; by default the most probable, or the labels above their "
    "thresholds.",
)
@click.option(
    "--head",
    metavar="MODULE",
    shell_complete=complete_modules,
    help="Explain the head on this module of a run, not the export.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Random seed of SmoothGrad's noise.",
)
@click.pass_context
def explain(
    context: click.Context,
    model_and_images: tuple[Path, tuple[str, ...]],
    folder: Path,
    methods: tuple[str, ...],
    of_class: str | None,
    head: str | None,
    seed: int,
) -> None:
    """Draw over each IMAGE the pixels that its top-1 class rests on, by default of the latest run.

    Of a model of several labels per image, one picture for each label above its threshold, at most
    three, or for the most probable label.

    Grad-CAM where the model has a feature map, squared SmoothGrad, and integrated gradients. Of a
    run, the exported model is explained, or the head of the first module in the shortlist. An
    ensemble is explained as one model, without Grad-CAM.
    """
    from hubretrain.report.saliency import explain_images

    model, images = model_and_images
    explanations = explain_images(
        existing_model(model),
        [Path(i) for i in images],
        folder,
        methods=methods,
        of_class=of_class,
        head=head,
        seed=seed,
    )
    for result in explanations:
        if result.error:
            echo(f"hubretrain: {result.path}: {in_flags(result.error)}", err=True)
        else:
            echo(
                f"{result.path}: {result.of_class} {result.probability:.1%}, {result.pictures[-1]}"
            )
    if any(result.error for result in explanations):
        context.exit(1)
