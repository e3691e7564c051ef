"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hubretrain import __version__
from hubretrain.errors import HubretrainError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets at length otherwise

RUNS = Path("runs")
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


def _augmentation_options(command: F) -> F:
    """The options that say how augmented views differ from their image."""
    for option in (
        click.option(
            "--flip/--no-flip",
            default=True,
            help="Mirror half of the augmented views; not for digits or text.",
        ),
        click.option(
            "--crop",
            default=0.5,
            show_default=True,
            type=click.FloatRange(0.001, 1),
            help="Least share of the area that a crop keeps.",
        ),
    ):
        command = option(command)
    return command


def _run_option(command: F) -> F:
    """The option that names a run."""
    return click.option(
        "--run",
        "run_folder",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        callback=lambda _context, _parameter, value: _run_folder(value),
        help="Where to keep what is found; a plain name is a folder in runs/. By default "
        "runs/<data set>.",
    )(command)


def _run_folder(value: Path | None) -> Path | None:
    """A plain name is a folder in ``runs/``."""
    return RUNS / value if value is not None and len(value.parts) == 1 else value


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
@_augmentation_options
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

    dataset = _open(data_options)
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


@main.command()
@click.option("--search", default="", metavar="TEXT", help="Only names that contain TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def modules(search: str, as_json: bool) -> None:
    """List the catalogue of modules, and which of them are here already."""
    from hubretrain.modules import catalogue, is_stored

    rows: list[dict[str, Any]] = [
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


@main.command()
@_data_options
@_run_option
@click.option(
    "--module",
    "-m",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this cached module; may be repeated. By default all that are cached.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="What to choose by; by default balanced accuracy "
    "where the classes are unbalanced, else accuracy.",
)
@click.option("--folds", "n_folds", default=5, show_default=True, help="Folds to validate on.")
@click.option(
    "--test-fraction",
    default=0.2,
    show_default=True,
    help="Share of the images kept for the test split.",
)
@click.option("--top", default=3, show_default=True, help="Longest shortlist.")
@click.option("--seed", default=0, show_default=True, help="Of the split and the resamples.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(
    names: tuple[str, ...],
    metric: str | None,
    n_folds: int,
    test_fraction: float,
    top: int,
    seed: int,
    as_json: bool,
    cache_folder: Path,
    run_folder: Path | None,
    **data_options: Any,
) -> None:
    """Fit softmax and logistic heads on every cached module of DATA and rank the modules."""
    from hubretrain.fit import screen_modules
    from hubretrain.runs import Run

    dataset = _open(data_options)
    found = screen_modules(
        dataset,
        Run(run_folder or RUNS / dataset.name),
        cache=cache_folder,
        modules=names,
        metric=metric,
        n_folds=n_folds,
        test_fraction=test_fraction,
        top=top,
        seed=seed,
    )
    if as_json:
        rows = json.loads(found.leaderboard.to_json(orient="records"))
        click.echo(
            json.dumps(
                {
                    "run": str(found.run.folder),
                    "metric": found.metric,
                    "leaderboard": rows,
                    "notes": found.notes,
                },
                indent=2,
            )
        )
        return
    for note in found.notes:
        click.echo(note)
    _print_leaderboard(found.leaderboard, found.metric)
    click.echo(f"Kept in {found.run.folder}/. Next: hubretrain finetune {found.run.folder}")


def _print_leaderboard(board: Any, metric: str) -> None:
    """The leaderboard as a table: estimates in percent with their 95 % intervals."""
    from rich.console import Console
    from rich.table import Table

    shown = list(dict.fromkeys((metric, "balanced_accuracy", "accuracy", "top_3")))
    table = Table(box=None)
    table.add_column("")
    table.add_column("module", no_wrap=True, overflow="fold")
    for name in shown:
        table.add_column(name.replace("_", " "))
    table.add_column("head")

    def cell(row: Any, name: str) -> str:
        estimate, low, high = (100 * row[name + end] for end in ("", "_low", "_high"))
        return f"{estimate:.1f} ({low:.1f}-{high:.1f})"

    for _, row in board.iterrows():
        mark = "*" if row["shortlist"] else "=" if row["tied"] else ""
        balanced = ", balanced" if row["class_weight"] == "balanced" else ""
        head = f"{row['head']}, l2 {row['l2']:.3g}{balanced}"
        table.add_row(mark, row["module"], *(cell(row, name) for name in shown), head)
    Console().print(table)
    click.echo("Percent, with 95 % intervals. *: shortlist. =: tied with the best too.")
    for _, row in board[board["shortlist"]].iterrows():
        if "test_accuracy" in row and row["test_accuracy"] == row["test_accuracy"]:
            figures = ", ".join(
                f"{name.replace('_', ' ')} {cell(row, 'test_' + name)}"
                for name in ("balanced_accuracy", "accuracy", "top_3")
            )
            click.echo(f"Test split, {row['module']}: {figures}")


@main.command()
@click.argument("run_folder", required=False, metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The images, if they are not where they were fitted.",
)
@click.option("--module", "-m", metavar="NAME", help="Instead of the shortlist's first.")
@click.option(
    "--unfreeze-last",
    type=click.IntRange(0),
    metavar="N",
    help="Train only the last N layers of the backbone, and the head.",
)
@click.option("--epochs", type=click.IntRange(1), help="At most so many; by default by data size.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Its peak.")
@click.option("--train-batchnorm", is_flag=True, help="Let BatchNorm follow the batches.")
@click.option("--restart", is_flag=True, help="Forget an earlier fine-tuning.")
@_augmentation_options
@click.option("--seed", default=0, show_default=True, help="Of order and augmentation.")
def finetune(
    run_folder: Path | None, data: Path | None, flip: bool, crop: float, **options: Any
) -> None:
    """Fine-tune the shortlisted module of RUN, by default the latest run, and export it.

    The same command again goes on where it was stopped.
    """
    from hubretrain.runs import Run, latest_run

    run = Run(run_folder) if run_folder else latest_run(RUNS)
    dataset, cache_folder = _dataset_of(run, data)
    from hubretrain.finetune import finetune_module
    from hubretrain.images import Augmentation

    augmentation = Augmentation(horizontal_flip=flip, crop=crop)
    found = finetune_module(dataset, run, cache=cache_folder, augmentation=augmentation, **options)
    best = int(found.history.loc[found.history["kept"], "epoch"].iloc[0])
    click.echo(
        f"{found.module}: epoch {best} of {len(found.history) - 1} is kept."
        if best
        else f"{found.module}: no epoch beat the head that training started from; it is kept."
    )
    for name in ("balanced_accuracy", "accuracy", "top_3"):
        if name in found.test:
            now, before = found.test[name], found.head_test[name]
            click.echo(
                f"Test split, {name.replace('_', ' ')}: {100 * now[0]:.1f} "
                f"({100 * now[1]:.1f}-{100 * now[2]:.1f}); "
                f"its head alone: {100 * before[0]:.1f}."
            )
    click.echo(f"Exported to {found.export}/. Next: hubretrain predict {run.folder} IMAGE")


def _dataset_of(run: Any, data: Path | None) -> tuple[Any, Path]:
    """The data set and cache that a run was fitted with."""
    from hubretrain.dataset import open_dataset
    from hubretrain.errors import RunError

    facts = run.facts().get("fit")
    if facts is None:
        raise RunError(f"{run.folder} holds no finished fit; run first: hubretrain fit")
    options = facts["data_options"]
    return open_dataset(data or facts["data"], **options), Path(facts["cache"])


@main.command()
@click.argument("model", metavar="RUN_OR_EXPORT", type=click.Path(path_type=Path))
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Classes shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def predict(
    context: click.Context, model: Path, images: tuple[Path, ...], top: int, as_json: bool
) -> None:
    """Show the likeliest classes of each IMAGE."""
    from hubretrain.predict import predict_images

    found = predict_images(model, images, top)
    if as_json:
        rows = [
            {"path": str(one.path), "error": one.error}
            if one.error
            else {"path": str(one.path), "classes": dict(one.classes)}
            for one in found
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    for one in found:
        if one.error:
            click.echo(f"hubretrain: {one.path}: {one.error}", err=True)
        elif not as_json:
            shown = ", ".join(f"{name} {probability:.1%}" for name, probability in one.classes)
            click.echo(f"{one.path}: {shown}")
    if any(one.error for one in found):
        context.exit(1)


if __name__ == "__main__":
    main()
