"""hubretrain cache: bottlenecks of every image, and maintenance of their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click_default_group import DefaultGroup
from rich.filesize import decimal

from hubretrain.cli.command import (
    Command,
    Group,
    echo,
    in_flags,
    next_command,
    this_command_without,
)
from hubretrain.cli.exchange import export_vectors, import_features
from hubretrain.cli.options import (
    DataSource,
    cache_option,
    cluster_options,
    data_options,
    input_options,
    json_option,
    modules_option,
    offline_option,
    options_from,
    trust_option,
)
from hubretrain.extraction import CacheOptions

if TYPE_CHECKING:
    from hubretrain.extraction import CacheEstimate, Cluster
    from hubretrain.modules import Trust


class LayersType(click.ParamType):  # type: ignore[type-arg]
    """`all`, `last`, or a number of inner layers."""

    name = "layers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """Return the words as they are, a number as an int."""
        if isinstance(value, int) or value in ("all", "last"):
            return cast("str | int", value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is not all, last, or a number of inner layers.", param, ctx)


class _CacheGroup(Group, DefaultGroup):  # type: ignore[misc]
    """`cache [DATA] --module NAME` is `cache fill`; a folder called `status` is `./status`."""


class _FillContext(click.Context):
    """Usage lines show the command as people type it, without `fill`."""

    @property
    def command_path(self) -> str:
        """The words that lead here."""
        return super().command_path.removesuffix(" fill")


class _Fill(Command):
    """The default command; its help lists the others."""

    context_class = _FillContext

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the other commands of the group."""
        del context
        with formatter.section("Commands"):
            others = sorted((n, c) for n, c in cache.commands.items() if c is not self)
            formatter.write_dl([(f"cache {n}", c.get_short_help_str(60)) for n, c in others])


@click.group(
    cls=_CacheGroup,
    default="fill",
    default_if_no_args=True,
    add_help_option=False,
    short_help="Run modules over the images and keep the bottlenecks.",
)
def cache() -> None:
    """Run modules over the images and keep the bottlenecks."""


@cache.command(cls=_Fill)
@data_options
@modules_option
@cache_option
@options_from(CacheOptions, param_types={"layers": LayersType()})
@offline_option
@trust_option
@input_options
@click.option(
    "--part",
    metavar="I/N",
    help="Compute only the I-th of N shares of the images, into a file for hubretrain cache merge.",
)
@cluster_options
@click.option(
    "--preview",
    type=click.Path(path_type=Path, readable=False, dir_okay=False),
    metavar="FILE",
    help="Only draw the views of a few images into this picture.",
)
@click.option(
    "--folds",
    "n_folds",
    default=5,
    show_default=True,
    type=click.IntRange(0, 100),
    help="Folds that fit will use: a class too small for them and a test split is an error before "
    "anything is computed. 0 does not check.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Time a few forward passes, show how long all would take and how large the files would "
    "be, and stop.",
)
def fill(
    source: DataSource,
    modules: tuple[str, ...],
    cache: Path,
    options: CacheOptions,
    image_size: int | None,
    value_range: tuple[float, float] | None,
    trust: Trust,
    part: str | None,
    cluster: Cluster | None,
    preview: Path | None,
    n_folds: int,
    dry_run: bool,
) -> None:
    """Run each module once over the images of DATA and keep the bottlenecks.

    DATA is a folder of class folders, or of images that a table labels; by default data/ or the
    one data set in it. Rerunning the command computes only what is missing.
    """
    from hubretrain.data import Quarantine, left_out_sentences, refuse_small_classes
    from hubretrain.extraction import Part, cache_bottlenecks, estimate_cache
    from hubretrain.modules import resolve

    if not modules and preview is None:
        raise click.UsageError("Missing option '--module' / '-m'.")
    dataset = source.open(cache)
    for what, advice in left_out_sentences(dataset.left_out()):
        echo(f"{what} {advice}".rstrip(), err=True)
    if preview is not None:
        from hubretrain.data.images import draw_preview

        n_shown = draw_preview(
            dataset.root,
            dataset.images,
            preview,
            options.n_views,
            options.augmentation,
            options.seed,
            dataset.reading,
        )
        echo(
            f"{preview}: {options.n_views} views of {n_shown} images; the leftmost is the image "
            "itself."
        )
        return
    if n_folds:
        refuse_small_classes(dataset, n_folds, cache)
    stored = [
        resolve(name, image_size=image_size, value_range=value_range, trust=trust)
        for name in modules
    ]
    if dry_run:
        print_estimate(estimate_cache(dataset, stored, options, cache=cache))
        echo(f"Next: {this_command_without('--dry-run')}")
        return
    results = cache_bottlenecks(
        dataset,
        stored,
        options,
        cache=cache,
        part=Part.parse(part) if part else None,
        cluster=cluster,
    )
    for result in results:
        echo(
            f"{result.file}: {result.n_images:,} images, {result.n_rows:,} bottlenecks of "
            f"{_features(result.n_features, result.layers)}, {result.n_computed:,} computed now."
        )
    n_computed, seconds = sum(result.n_computed for result in results), results[0].seconds
    if n_computed:
        echo(
            f"{n_computed:,} forward passes in {seconds:,.1f} s, "
            f"{n_computed / seconds:,.0f} images/s."
        )
    if results[0].n_quarantined:
        path, reason = Quarantine(results[0].quarantine.parent).listed()[0]
        echo(
            f"{results[0].n_quarantined} images cannot be decoded (first: {path}: {reason}); see "
            f"{results[0].quarantine}",
            err=True,
        )
    if not part:
        elsewhere = () if cache == Path("cache") else ("--cache", cache)
        echo(f"Next: {next_command('fit', *source.folders, *elsewhere)}")


def print_estimate(estimate: CacheEstimate) -> None:
    """Print the passes and bytes of each module, and the time of all."""
    for name, n, size in zip(estimate.modules, estimate.n_forward, estimate.n_bytes, strict=True):
        echo(f"{name}: {n:,} forward passes, {decimal(size)} in the end")
    if not estimate.seconds:
        echo("Nothing is missing.")
        return
    seconds = estimate.seconds
    words = f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} minutes"
    echo(f"About {words} in all, at {estimate.images_per_second:,.0f} images/s.")


def _features(n_features: int, layers: Sequence[str]) -> str:
    """Return how many features there are, and of how many layers, the output counted."""
    whence = f"{1 + len(layers)} layers" if layers else "the last layer"
    return f"{n_features:,} features from {whence}"


@cache.command(short_help="Show what is cached, and what the next run would compute.")
@data_options
@cache_option
@click.option(
    "--views",
    "n_views",
    type=int,
    help="Views per image that the next run would compute; by default those of each file.",
)
@click.option("--minority-views", type=int, help="Maximum views per image of the rarest class.")
@click.option(
    "--layers",
    type=LayersType(),
    default="all",
    show_default=True,
    metavar="all|last|N",
    help="Layers that the next run would keep.",
)
@json_option
def status(
    source: DataSource,
    cache: Path,
    n_views: int | None,
    minority_views: int | None,
    layers: str | int,
    as_json: bool,
) -> None:
    """Show what is cached of DATA, and what the next run would compute and why."""
    from hubretrain.extraction import cache_status

    table = cache_status(
        *(source.open(cache), cache),
        n_views=n_views,
        minority_views=minority_views,
        layers=layers,
    )
    if as_json:
        echo(table.to_json(orient="records", indent=2))
        return
    for _, row in table.iterrows():
        speed = row["images_per_second"]
        rate = f", {speed:,.0f} images/s" if speed == speed and speed else ""
        echo(
            f"{row['file']}: {row['n_images']:,} images, {row['done']:,} of "
            f"{row['done'] + row['todo']:,} bottlenecks, {decimal(row['bytes'])}{rate}"
        )
        echo(f"  bottlenecks of {_features(row['n_features'], row['layers'])}")
        by_view = " ".join(f"{n:,}" for n in row["done_by_view"])
        echo(f"  done per view: {by_view}")
        reasons = "; ".join(map(in_flags, row["why"]))
        why = f" ({reasons})" if reasons else ""
        echo(f"  the next run computes {row['to_compute']:,}{why}")


@cache.command(short_help="Read every bottleneck and compare digests.")
@click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path, readable=False)
)
@cache_option
@click.option(
    "--repair",
    is_flag=True,
    help="Empty views that are damaged, and move files aside that cannot be read, so that the next "
    "hubretrain cache computes them again.",
)
@click.pass_context
def verify(context: click.Context, files: tuple[Path, ...], cache: Path, repair: bool) -> None:
    """Read every bottleneck of FILEs, by default of all, and compare digests.

    Exit code 1 if one is wrong.
    """
    from hubretrain.bottlenecks import bottleneck_files
    from hubretrain.extraction import verify_files

    faults = verify_files(files or bottleneck_files(cache, recursive=True), repair=repair)
    for file, sentences in faults.items():
        for sentence in sentences:
            echo(f"{file}: {sentence}")
        if not sentences:
            echo(f"{file}: complete and undamaged")
    if any(faults.values()):
        context.exit(1)


@cache.command(short_help="Free the space of what is no longer needed.")
@data_options
@cache_option
@click.option("--views", "n_views", type=click.IntRange(1), help="Maximum views per image to keep.")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def gc(source: DataSource, cache: Path, n_views: int | None, dry_run: bool) -> None:
    """Free the space of deleted images, of killed runs and of views beyond --views."""
    from hubretrain.extraction import collect_garbage

    removed = collect_garbage(source.open(cache), cache, n_views=n_views, dry_run=dry_run)
    for file, what, n_bytes in removed:
        echo(f"{file}: {what}, {decimal(n_bytes)}")
    total = sum(n_bytes for _, _, n_bytes in removed)
    echo(f"{decimal(total)} {'would be ' if dry_run else ''}freed.")


@cache.command(short_help="Merge the files that --part made.")
@click.argument(
    "parts",
    metavar="PART...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, readable=False),
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="File to write; by default named like the parts, without the number of the part.",
)
def merge(parts: tuple[Path, ...], output: Path | None) -> None:
    """Merge the PARTs that several machines made with --part into one file."""
    from hubretrain.extraction import merge_parts

    file, n_images, missing = merge_parts(parts, output)
    echo(f"{file}: {n_images:,} images of {len(parts)} parts.")
    if missing:
        numbers = ", ".join(map(str, missing))
        echo(
            f"Parts {numbers} are missing; hubretrain cache computes what they would hold.",
            err=True,
        )


cache.add_command(import_features)
cache.add_command(export_vectors)
