"""hubretrain cache: bottlenecks of every image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hubretrain.cli.options import augmentation_options, data_options, open_data


@click.command()
@data_options
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
@augmentation_options
@click.option("--seed", default=0, show_default=True, help="Of the augmentation.")
@click.option(
    "--batch-size",
    default=48,
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
    flip: bool,
    crop: float,
    cache_folder: Path,
    **data_options: Any,
) -> None:
    """Run each module once over the images of DATA and keep the bottlenecks.

    DATA is a folder of class folders, or of images that a table labels; by default data/ or the
    one data set in it. The same command again computes only what is missing.
    """
    from hubretrain.cache import cache_bottlenecks
    from hubretrain.images import Augmentation
    from hubretrain.modules import resolve

    dataset = open_data(data_options)
    modules = [resolve(name, image_size=image_size, value_range=value_range) for name in names]
    found = cache_bottlenecks(
        dataset,
        modules,
        n_views=views,
        folder=cache_folder,
        augmentation=Augmentation(horizontal_flip=flip, crop=crop),
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
