"""hubretrain cache import and export: bottlenecks from and for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from hubretrain.cli.command import Command, echo, next_command
from hubretrain.cli.options import RUNS, DataSource, cache_option, data_options, out_option


@click.command("import", cls=Command, short_help="Take in features that another tool computed.")
@click.argument("features", metavar="FEATURES", type=click.Path(path_type=Path, readable=False))
@click.argument("ids", metavar="IDS")
@data_options
@cache_option
@click.option("--name", help="Name of the module to be; by default that of FEATURES.")
@click.option("--id-column", metavar="NAME", help="Column of the ids in the table IDS.")
@click.option("--vector-column", metavar="NAME", help="Array or column of the vectors in FEATURES.")
@click.option("--overwrite", is_flag=True, help="Replace other features of this name.")
def import_features(
    features: Path,
    ids: str,
    source: DataSource,
    cache: Path,
    name: str | None,
    id_column: str | None,
    vector_column: str | None,
    overwrite: bool,
) -> None:
    """Make a bottleneck file of FEATURES, which hubretrain fit ranks beside the others.

    FEATURES is a .npy file of shape (images, features), or a .npz or parquet file with such an
    array or column. IDS says of which image of DATA each vector is, by its path or the sha256 of
    the file: a text with one id per line, a table, or the name of a column of FEATURES.
    """
    from hubretrain.extraction.exchange import import_vectors

    imported = import_vectors(
        *(source.open(cache), features, ids),
        name=name,
        cache=cache,
        id_column=id_column,
        vector_column=vector_column,
        overwrite=overwrite,
    )
    views = f", up to {imported.n_views} views of each" if imported.n_views > 1 else ""
    echo(
        f"{imported.file}: {imported.n_images:,} images, {imported.n_features:,} features from "
        f"{features}{views}."
    )
    if imported.n_left_out:
        echo(
            f"{imported.n_left_out:,} vectors are of no image of the data set and are left out.",
            err=True,
        )
    elsewhere = () if cache == Path("cache") else ("--cache", cache)
    echo(f"Next: {next_command('fit', *source.folders, *elsewhere)}")


@click.command("export", cls=Command, short_help="Write bottlenecks for another tool.")
@data_options
@cache_option
@click.option(
    "--module",
    "-m",
    "modules",
    multiple=True,
    metavar="NAME",
    help="Cached module to export; by default all. May be repeated.",
)
@click.option(
    "--to",
    "file_format",
    type=click.Choice(("parquet", "npz")),
    default="parquet",
    show_default=True,
    help="Kind of file.",
)
@click.option(
    "--layers",
    type=click.Choice(("last", "all")),
    default="last",
    show_default=True,
    help="Layers whose features make a vector.",
)
@click.option(
    "--run",
    type=click.Path(path_type=Path, readable=False),
    metavar="FOLDER",
    callback=lambda _context, _parameter, run: RUNS / run if run and len(run.parts) == 1 else run,
    help="Run whose folds are written, a plain name in runs/; by default those that hubretrain "
    "fit would cut.",
)
@out_option(".", "Folder of the files.")
def export_vectors(
    source: DataSource,
    cache: Path,
    modules: tuple[str, ...],
    file_format: str,
    layers: str,
    run: Path | None,
    folder: Path,
) -> None:
    """Write the bottlenecks of DATA: path, sha256, label, fold, view and vector of each.

    The labels and folds are those of the data set, so that other tools fit on the same images. Fold
    -1 is the test split. hubretrain cache import reads the files back.
    """
    from hubretrain.bottlenecks import bottleneck_files
    from hubretrain.errors import CacheError
    from hubretrain.extraction.exchange import export_bottlenecks
    from hubretrain.runs import Run

    dataset = source.open(cache)
    files = {path.stem: path for path in bottleneck_files(dataset.cache_folder(cache))}
    for name in modules:
        if name not in files:
            raise CacheError(
                f"{name} is not cached in {dataset.cache_folder(cache)}/ (there are: "
                f"{', '.join(files)}); run `hubretrain cache` with this module first."
            )
    folds_file = None if run is None else Run(run).checked(Run(run).folds_file)
    for name in modules or files:
        output = folder / f"{name}.{file_format}"
        n_rows = export_bottlenecks(
            *(dataset, files[name], output), cache=cache, folds_file=folds_file, layers=layers
        )
        echo(f"{output}: {n_rows:,} vectors of {name}.")
