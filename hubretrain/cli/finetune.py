"""hubretrain finetune: train the backbone of a run, and export it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hubretrain.cli.options import RUNS, augmentation_options, offline_option


@click.command()
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
@offline_option
@augmentation_options
@click.option("--seed", default=0, show_default=True, help="Of order and augmentation.")
def finetune(run_folder: Path | None, data: Path | None, **options: Any) -> None:
    """Fine-tune the shortlisted module of RUN, by default the latest run, and export it.

    The same command again goes on where it was stopped.
    """
    from hubretrain.runs import Run, latest_run

    run = Run(run_folder) if run_folder else latest_run(RUNS)
    dataset, cache_folder = _dataset_of(run, data)
    from hubretrain.finetune import finetune_module

    found = finetune_module(dataset, run, cache=cache_folder, **options)
    best = int(found.history.loc[found.history["kept"], "epoch"].iloc[0])
    click.echo(
        f"{found.module}: epoch {best} of {len(found.history) - 1} is kept."
        if best
        else f"{found.module}: no epoch beat the head that training started from; it is kept."
    )
    names = {
        "balanced_accuracy": "balanced accuracy by the head's decision rule",
        "plain_accuracy": "accuracy of the likeliest class",
        "top_3": "top 3",
    }
    for name, called in names.items():
        if name in found.test:
            now, before = found.test[name], found.head_test[name]
            click.echo(
                f"Test split, {called}: {100 * now[0]:.1f} "
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
