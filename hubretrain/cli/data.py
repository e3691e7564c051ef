"""hubretrain data: look at a data set, split it, lay out a published one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal

from hubretrain.cli.command import Group, echo, in_flags, next_command, terminal
from hubretrain.cli.options import (
    DataSource,
    cache_option,
    data_options,
    json_option,
    options_from,
    run_of_data,
    run_option,
    split_as_cut,
)
from hubretrain.data import SplitOptions

if TYPE_CHECKING:
    from hubretrain.data import DataCheck, ImageDataset, LabelSummary, SizeSummary

BAR_CHARACTERS = 16
N_PAIRS = 5  # of labels that are shown
MARKS = {"error": "[bold red]error[/]", "wrong": "[yellow]wrong[/]", "note": "[cyan]note[/] "}


@click.group(cls=Group)
def data() -> None:
    """Check a data set, split it, or lay out a published one."""


@data.command()
@data_options
@cache_option
@run_option
@options_from(SplitOptions, "split", only=("n_folds", "test_fraction"))
@click.option("--strict", is_flag=True, help="Exit with 1 if anything is wrong.")
@json_option
def check(
    source: DataSource,
    cache: Path,
    run: Path | None,
    split: SplitOptions,
    strict: bool,
    as_json: bool,
) -> None:
    """Show what to look at before training, and write it to data_check.html and .json.

    Classes, files, sizes, groups, duplicates, identical images with different labels, leaks of a
    given split and of a random one. Exits with 1 if a class is too small for the folds and, with
    --strict, if anything is wrong.
    """
    from hubretrain.data import check_dataset
    from hubretrain.report import write_check_page

    dataset = source.open(cache)
    folder = run_of_data(dataset, run, cache).folder
    result = check_dataset(dataset, split, cache=cache)
    result.write(folder / "data_check.json")
    page = folder / "data_check.html"
    write_check_page(page, result, dataset.root)
    if as_json:
        echo(json.dumps(result.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_check(result)
        echo(f"\nWith images: {page}")
        if result.worst != "error":
            echo(f"Next: {_after_check(source, cache, run)}")
    if result.worst == "error" or (strict and result.worst == "wrong"):
        raise click.exceptions.Exit(1)


def _after_check(source: DataSource, cache: Path, run: Path | None) -> str:
    """Return the command that compares the modules of this machine, or caches the only one."""
    from hubretrain.modules import installed_modules, stored_modules

    here = sorted({of.name for of in stored_modules()} | {of.name for of in installed_modules()})
    elsewhere = () if cache == Path("cache") else ("--cache", cache)
    if len(here) > 1:
        chosen = () if run is None else ("--run", run)
        return next_command("screen", *source.folders, "--budget", "5m", *elsewhere, *chosen)
    module = here[0] if here else "mobilenet_v2"
    return next_command("cache", *source.folders, "--module", module, *elsewhere)


def _print_check(check: DataCheck) -> None:
    from rich.markup import escape
    from rich.table import Table

    console, summary = terminal(highlight=False), check.summary
    console.print(
        f"[bold]{escape(summary.name)}[/]: {summary.n_images:,} images, "
        f"{decimal(summary.n_bytes)}, "
        f"{summary.n_classes} {'labels' if summary.labels else 'classes'}, "
        f"{summary.groups.n_groups:,} groups"
        f"{'' if summary.groups.given else ' (none given)'}"
    )
    console.print(f"[dim]{_files_line(summary.sizes)}[/]\n")
    table = Table(box=None, pad_edge=False)
    table.add_column("label" if summary.labels else "class", overflow="fold")
    table.add_column("", no_wrap=True, min_width=BAR_CHARACTERS)
    for name in ("images", "share", "groups", "size", "broken", "random leak"):
        table.add_column(name, justify="right")
    largest = max(of_class.n_images for of_class in summary.classes)
    for of_class in summary.classes:
        leak = of_class.random_split_leak
        table.add_row(
            escape(of_class.name),
            "[cyan]" + "█" * max(1, round(BAR_CHARACTERS * of_class.n_images / largest)) + "[/]",
            f"{of_class.n_images:,}",
            f"{of_class.share:.1%}",
            f"{of_class.n_clusters:,}",
            decimal(of_class.n_bytes),
            f"{of_class.n_unreadable:,}",
            "" if leak is None else f"{leak:.1%}",
        )
    console.print(table)
    console.print()
    if summary.labels:
        console.print(f"{escape(_labels_line(summary.labels))}\n")
    for finding in check.findings:
        what, advice = (escape(in_flags(text)) for text in (finding.what, finding.advice))
        console.print(f"{MARKS[finding.level]} {what} [dim]{advice}[/]")
    if not check.findings:
        console.print("[green]Nothing to fix.[/]")


def _labels_line(labels: LabelSummary) -> str:
    """Return labels per image, and the pairs that the most images have."""
    pairs = ", ".join(f"{' + '.join(p.labels)} ({p.n_images:,})" for p in labels.pairs[:N_PAIRS])
    ends = sorted({labels.per_image.least, labels.per_image.most}) if labels.per_image else [0]
    per_image = f"{' to '.join(map(str, ends))} labels per image"
    return f"{per_image}, {labels.n_sets:,} different sets; together most often: {pairs or 'none'}."


def _files_line(sizes: SizeSummary) -> str:
    """Return formats, colour modes and sizes, such as: 8,017 JPEG; RGB; 200 x 150 pixels."""
    formats = ", ".join(f"{n:,} {name}" for name, n in sizes.formats.items())
    if not formats:
        return "no image can be decoded"
    sides = (side for side in (sizes.width, sizes.height) if side is not None)
    ranges = (sorted({side.least, side.most}) for side in sides)
    pixels = " x ".join(" to ".join(map(str, ends)) for ends in ranges)
    return f"{formats}; {', '.join(sizes.modes)}; {pixels} pixels"


@data.command()
@data_options
@cache_option
@run_option
@options_from(SplitOptions)
@click.option(
    "--overwrite", is_flag=True, help="Cut a new split if the run has one, instead of adding to it."
)
@json_option
def split(
    source: DataSource,
    cache: Path,
    run: Path | None,
    options: SplitOptions,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Cut a test split and folds of DATA, and write them to folds.csv, which fit uses.

    Classes are stratified; whole groups and duplicates stay together; a given split is honoured.
    Images that an earlier folds.csv holds keep their part, and new ones are added.
    """
    from hubretrain.data.splitting import kept_together, part_table, worst_deviation, write_folds

    dataset = source.open(cache)
    of_run = run_of_data(dataset, run, cache)
    file = of_run.folds_file
    if overwrite or not file.exists():
        of_run.refuse_new_split()
    if not overwrite:
        options = split_as_cut(of_run, options)
    images = dataset.split(options, folds_file=None if overwrite else file, cache=cache)
    write_folds(file, images.assign(group=images["cluster"]), options)
    labelled = (images["fold"], images["label"], dataset.multi_label)
    counts, deviation = part_table(*labelled), worst_deviation(*labelled)
    sentence = kept_together(
        images["fold"], images["cluster"], dataset.grouped, options.keep_duplicates_together
    )
    if as_json:
        summary = {
            "file": str(file),
            "counts": counts.to_dict(orient="index"),
            "worst_deviation_points": round(deviation, 4),
            "note": sentence,
        }
        echo(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    n_images = part_table(images["fold"], images["fold"].map(lambda _: "all"))["all"]
    _print_parts(counts, n_images, dataset)
    echo(sentence)
    what = "label" if dataset.multi_label else "class"
    echo(f"Worst deviation of a {what} share: {deviation:.2f} points.")
    echo(f"The split is in {file}; hubretrain fit uses it.")


def _print_parts(counts: Any, n_images: Any, dataset: ImageDataset) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("label" if dataset.multi_label else "class", overflow="fold")
    for part in counts.index:
        table.add_column(part, justify="right")
    for name in dataset.class_names:
        table.add_row(escape(name), *(f"{n:,}" for n in counts.get(name, 0 * counts.iloc[:, 0])))
    table.add_section()
    table.add_row("all images" if dataset.multi_label else "all", *(f"{n:,}" for n in n_images))
    terminal(highlight=False).print(table)


@data.command()
@click.argument(
    "folder", metavar="[DATA]", required=False, type=click.Path(path_type=Path, readable=False)
)
@cache_option
@click.option("--forget", is_flag=True, help="Forget the options, to give them anew.")
@json_option
def show(folder: Path | None, cache: Path, forget: bool, as_json: bool) -> None:
    """Show the options of DATA that are remembered: labels, columns, groups, classes.

    They were given to an earlier command and hold for the next ones, until another value is given.
    """
    from hubretrain.data import (
        default_folder,
        forget_options,
        option_words,
        remembered_options,
    )

    folder = folder or default_folder(Path("data"))
    options = remembered_options(folder, cache)
    if forget:
        echo("Forgotten." if forget_options(folder, cache) else "There was none to forget.")
    elif as_json:
        echo(json.dumps(options, indent=2, ensure_ascii=False))
    elif options:
        for words in option_words(options):
            echo(in_flags(words, check))
    else:
        echo(f"No options of {folder} are remembered.")


@data.command()
@click.argument("name", type=click.Choice(["ham10000", "images"]))
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    metavar="DIR|ZIP",
    help="The download: a folder or an archive, which may hold zip files, or parquet files.",
)
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, readable=False),
    help="Folder to write; by default data/ham10000, or data/ and the name of the source.",
)
@click.option("--partial", is_flag=True, help="Lay out an incomplete download, too.")
def prepare(name: str, source: Path, folder: Path | None, partial: bool) -> None:
    """Lay out a published data set from its downloaded files, and check its counts.

    ham10000: Tschandl et al. 2018, https://doi.org/10.7910/DVN/DBW86T, from Harvard
    Dataverse or Kaggle: 10,015 images of 7,470 lesions.

    images: any zip of images and tables, or parquet files with images inside, as Hugging Face
    publishes them.
    """
    from hubretrain.data import prepare_ham10000, prepare_images

    folder = folder or Path("data") / (name if name == "ham10000" else source.resolve().stem)
    if name == "images":
        unpacked = prepare_images(source, folder)
        echo(f"{folder}/: {unpacked.n_images:,} images, {unpacked.n_written:,} written now.")
        echo(f"Next: {next_command('data', 'check', folder)}")
        return
    found = prepare_ham10000(source, folder, partial=partial)
    echo(
        f"{folder}/: {found.n_images:,} images of {found.n_lesions:,} lesions, "
        f"{found.n_copied:,} copied now."
    )
    echo(f"Next: {next_command('data', 'check', folder)}")
