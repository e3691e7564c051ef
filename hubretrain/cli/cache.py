"""hubretrain cache: bottlenecks of every image, and what can be done with the files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubretrain.cli.command import Command, Group
from hubretrain.cli.options import (
    augmentation_options,
    data_options,
    input_options,
    offline_option,
    open_data,
)

if TYPE_CHECKING:
    from hubretrain.data.images import Augmentation


class _CacheGroup(Group):
    """`cache [DATA] --module NAME` fills; `cache status` and the others are named.

    A folder that is called like one of these is given as `./status`.
    """

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Takes what does not begin with the name of a command to be for `fill`."""
        if not arguments or arguments[0] not in self.commands:
            arguments = ["fill", *arguments]
        return super().parse_args(context, arguments)


class _Fill(Command):
    """The command that is meant where none is named; its help shows those that are."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Leaves its own name out of what is shown."""
        if parent is not None and parent.parent is not None:
            info_name, parent = parent.info_name, parent.parent
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the other commands of the group."""
        del context
        with formatter.section("Commands"):
            shown = sorted((n, c) for n, c in cache.commands.items() if c is not self)
            formatter.write_dl([(f"cache {n}", c.get_short_help_str(60)) for n, c in shown])


@click.group(cls=_CacheGroup, short_help="Run modules over the images; keep the bottlenecks.")
def cache() -> None:
    """Run modules over the images and keep the bottlenecks."""


@cache.command(cls=_Fill)
@data_options
@click.option(
    "--module",
    "-m",
    "names",
    multiple=True,
    metavar="NAME",
    help="A name of the catalogue, a handle, or a folder; may be repeated.",
)
@click.option(
    "--views",
    default=4,
    show_default=True,
    help="Views of each image; the first is the image as it is, the others are augmented.",
)
@click.option(
    "--minority-views",
    type=int,
    metavar="N",
    help="Up to so many views of rarer classes, smoothly by their frequency.",
)
@offline_option
@augmentation_options
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(-(2**63), 2**63 - 1),
    help="Of the augmentation.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorflow", "openvino"]),
    default="auto",
    show_default=True,
    help="What runs the modules; auto: OpenVINO on a processor where it is installed.",
)
@click.option(
    "--precision",
    type=click.Choice(["f32", "bf16", "int8"]),
    default="f32",
    show_default=True,
    help="bf16 and int8 (OpenVINO) are faster and coarser, good enough to screen.",
)
@click.option(
    "--augment-on",
    type=click.Choice(["auto", "processor", "gpu"]),
    default="auto",
    show_default=True,
    help="Where views are cut; gpu: in batches, by TensorFlow.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    help="Images a forward pass; by default what the engine does best with.",
)
@input_options
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    help="How bottlenecks are stored: float32, unless the file is there; float16 halves it.",
)
@click.option(
    "--part",
    metavar="I/N",
    help="Only the I-th of N shares of the images, into a file for: hubretrain cache merge.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Compute with N processes on Ray (hubretrain[ray]); by default with this one.",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="Of a Ray cluster: auto, host:port or ray://host:port; by default this machine alone.",
)
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Only draw the views of a few images into this picture.",
)
@click.option(
    "--folds",
    "n_folds",
    default=5,
    show_default=True,
    type=click.IntRange(0, 100),
    help="Folds that fit will be asked for: a class too small for them and a test split is an "
    "error before anything is computed. 0: do not look.",
)
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be decoded.")
@click.option(
    "--overwrite", is_flag=True, help="Compute anew what was computed with other settings."
)
def fill(
    names: tuple[str, ...],
    views: int,
    minority_views: int | None,
    augmentation: Augmentation,
    image_size: int | None,
    value_range: tuple[float, float] | None,
    part: str | None,
    workers: int | None,
    ray_address: str | None,
    preview: Path | None,
    n_folds: int,
    cache_folder: Path,
    **options: Any,
) -> None:
    """Run each module once over the images of DATA and keep the bottlenecks.

    DATA is a folder of class folders, or of images that a table labels; by default data/ or the
    one data set in it. The same command again computes only what is missing.
    """
    from hubretrain.data.splitting import check_class_sizes
    from hubretrain.extraction import Cluster, Part, cache_bottlenecks
    from hubretrain.modules import resolve

    if not names and preview is None:
        raise click.UsageError("Missing option '--module' / '-m'.")
    dataset = open_data(options)
    if preview is not None:
        from hubretrain.data.images import draw_preview

        n_shown = draw_preview(
            dataset.root, dataset.images, preview, views, augmentation, options["seed"]
        )
        click.echo(f"{preview}: {views} views of {n_shown} images, as they are on the left.")
        return
    if n_folds:
        images = dataset.images
        check_class_sizes(images["label"], images["group"], n_folds=n_folds, given=images["split"])
    found = cache_bottlenecks(
        dataset,
        [resolve(name, image_size=image_size, value_range=value_range) for name in names],
        n_views=views,
        minority_views=minority_views,
        folder=cache_folder,
        augmentation=augmentation,
        part=Part.parse(part) if part else None,
        cluster=Cluster(workers or 2, ray_address) if workers or ray_address else None,
        **options,
    )
    for one in found:
        click.echo(
            f"{one.file}: {one.n_images:,} images, {one.n_rows:,} bottlenecks, "
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
            f"{found[0].n_quarantined} images cannot be decoded; see {found[0].quarantine}",
            err=True,
        )


@cache.command()
@data_options
@click.option("--views", type=int, help="Views that would be asked for; by default those there.")
@click.option("--minority-views", type=int, help="Likewise, of the rarest class.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(
    views: int | None,
    minority_views: int | None,
    as_json: bool,
    cache_folder: Path,
    **data_options: Any,
) -> None:
    """Show what is cached of DATA, and what the next run would compute and why."""
    from hubretrain.extraction import cache_status

    table = cache_status(
        open_data(data_options), cache_folder, n_views=views, minority_views=minority_views
    )
    if as_json:
        click.echo(table.to_json(orient="records", indent=2))
        return
    for _, row in table.iterrows():
        speed = row["images_per_second"]
        rate = f", {speed:,.0f} images/s" if speed == speed and speed else ""
        click.echo(
            f"{row['file']}: {row['n_images']:,} images, {row['done']:,} of "
            f"{row['done'] + row['todo']:,} bottlenecks, {row['bytes'] / 1e6:,.1f} MB{rate}"
        )
        by_view = " ".join(f"{n:,}" for n in row["done_by_view"])
        click.echo(f"  done by view: {by_view}")
        why = f" ({'; '.join(row['why'])})" if row["why"] else ""
        click.echo(f"  the next run computes {row['to_compute']:,}{why}")


@cache.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--cache",
    "cache_folder",
    type=click.Path(path_type=Path),
    default=Path("cache"),
    show_default=True,
    help="Where bottlenecks are, if no FILE is named.",
)
@click.pass_context
def verify(context: click.Context, files: tuple[Path, ...], cache_folder: Path) -> None:
    """Read every bottleneck again and compare digests; exit code 1 if one is wrong."""
    from hubretrain.bottlenecks import bottleneck_files
    from hubretrain.extraction import verify_files

    found = verify_files(files or bottleneck_files(cache_folder, recursive=True))
    for file, wrong in found.items():
        for sentence in wrong:
            click.echo(f"{file}: {sentence}")
        if not wrong:
            click.echo(f"{file}: finished and undamaged")
    if any(found.values()):
        context.exit(1)


@cache.command()
@data_options
@click.option("--views", type=click.IntRange(1), help="Keep so many views of each image.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def gc(views: int | None, dry_run: bool, cache_folder: Path, **data_options: Any) -> None:
    """Give back the room of images that are gone, of killed runs, of views beyond --views."""
    from hubretrain.extraction import collect_garbage

    found = collect_garbage(open_data(data_options), cache_folder, n_views=views, dry_run=dry_run)
    for file, what, n_bytes in found:
        click.echo(f"{file}: {what}, {n_bytes / 1e6:,.1f} MB")
    total = sum(n_bytes for _, _, n_bytes in found)
    click.echo(f"{total / 1e6:,.1f} MB {'would be ' if dry_run else ''}given back.")


@cache.command()
@click.argument(
    "parts", metavar="PART...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file to make; by default the name of the parts without the part.",
)
def merge(parts: tuple[Path, ...], output: Path | None) -> None:
    """Make one file of the parts that several machines made with --part."""
    from hubretrain.extraction import merge_parts

    file, n_images, missing = merge_parts(parts, output)
    click.echo(f"{file}: {n_images:,} images of {len(parts)} parts.")
    if missing:
        numbers = ", ".join(map(str, missing))
        click.echo(
            f"Parts {numbers} are missing; hubretrain cache computes what they would hold.",
            err=True,
        )
