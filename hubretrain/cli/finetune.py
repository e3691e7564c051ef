"""hubretrain finetune: train the backbones of a run, and export the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hubretrain.cli.command import Command
from hubretrain.cli.options import (
    augmentation_options,
    chosen_run,
    images_option,
    offline_option,
    run_argument,
)

if TYPE_CHECKING:
    from hubretrain.data import ImageDataset
    from hubretrain.finetuning import FineTuneResult
    from hubretrain.runs import Run

NOT_OF_TRAINING = {"run_folder", "data", "modules", "top", "epochs", "restart", "resume"}


class Epochs(click.ParamType):  # type: ignore[type-arg]
    """`N`, or `+N` to add to a training that is finished."""

    name = "N|+N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, bool]:
        """(how many, whether to add them)."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        if not text.removeprefix("+").isdecimal() or int(text) < 1:
            self.fail(f"{text!r} is neither a number of epochs, at least 1, nor +N.", param, ctx)
        return int(text), text.startswith("+")


@click.command(cls=Command, aliases={"more_epochs": "--epochs +{}"})
@run_argument
@images_option
@click.option(
    "--module",
    "-m",
    "modules",
    multiple=True,
    metavar="NAME",
    help="Instead of the shortlist's first; several are trained in turn.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help="Train the best N modules in turn, export the best, and say whether the screening "
    "order held.",
)
@click.option(
    "--unfreeze-last",
    type=click.IntRange(0),
    metavar="N",
    help="Train only the last N layers of the backbone, and the head. The frozen part is run once "
    "a view and kept, where the module can be cut.",
)
@click.option(
    "--epochs",
    type=Epochs(),
    help="At most so many, by default by data size; +N goes on with a finished training.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Its peak.")
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "plateau"]),
    default="cosine",
    show_default=True,
    help="The rate falls to zero over the epochs, or by half at each plateau.",
)
@click.option(
    "--warmup-head",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Train the head alone for N epochs first.",
)
@click.option(
    "--depth-decay",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Learning rate of the first layer as a share of the head's, geometric in between.",
)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of each label that is spread over all classes.",
)
@click.option(
    "--balanced-sampling",
    is_flag=True,
    help="Show each class equally often, instead of class weights and adjustment.",
)
@click.option(
    "--l2-sp",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Pull weights back to where they started from, such as 0.01.",
)
@click.option("--train-batchnorm", is_flag=True, help="Let BatchNorm follow the batches.")
@click.option("--mixed-precision", is_flag=True, help="Compute in float16, on a GPU.")
@click.option(
    "--trunk-views",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    metavar="N",
    help="With --unfreeze-last: augmented views an image that are kept behind the frozen part; "
    "epochs show them in turn. 0 runs it anew in each epoch.",
)
@click.option("--restart", is_flag=True, help="Forget an earlier fine-tuning.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the latest fine-tuning, or that of --module, with its options.",
)
@offline_option
@augmentation_options
@click.option("--seed", default=0, show_default=True, help="Of order and augmentation.")
@click.pass_context
def finetune(
    context: click.Context,
    /,
    run_folder: Path | None,
    data: Path | None,
    modules: tuple[str, ...],
    top: int | None,
    epochs: tuple[int, bool] | None,
    restart: bool,
    resume: bool,
    **options: Any,
) -> None:
    """Fine-tune the shortlisted module of RUN, by default the latest run, and export it.

    The same command again goes on where it was stopped. TensorBoard shows the epochs of
    RUN/finetune/. Several machines train together where TF_CONFIG names them.
    """
    more = epochs[0] if epochs and epochs[1] else None
    resume = resume or more is not None
    _check(context, resume, restart, top, modules, epochs)

    run = chosen_run(run_folder)
    dataset, cache_folder = _dataset_of(run, data)
    from hubretrain.finetuning import (
        FineTuneOptions,
        Resumption,
        best_modules,
        finetune_modules,
        latest_finetuning,
    )

    names = list(modules)
    if not names:
        names = [latest_finetuning(run)] if resume and not top else best_modules(run, top or 1)
    tuning = FineTuneOptions(epochs=epochs[0] if epochs and more is None else None, **options)
    every = finetune_modules(
        dataset,
        run,
        names,
        cache=cache_folder,
        options=tuning,
        resumption=Resumption(resume, more, restart),
    )
    for found in every:
        _show(found)
    _show_choice(run, [found.module for found in every])
    if diverged := [found.diverged for found in every if found.diverged]:
        from hubretrain.errors import RunError

        raise RunError(" ".join(diverged))


def _check(
    context: click.Context,
    resume: bool,
    restart: bool,
    top: int | None,
    modules: tuple[str, ...],
    epochs: tuple[int, bool] | None,
) -> None:
    if top and modules:
        raise click.UsageError("--top chooses the modules; leave out --module, or --top.")
    if resume and restart:
        raise click.UsageError("--resume goes on and --restart begins anew; leave one out.")
    if resume and epochs and not epochs[1]:
        raise click.UsageError(
            "a fine-tuning that goes on keeps its length; leave out --epochs, or add to it with "
            f"--epochs +{epochs[0]}."
        )
    if epochs and epochs[1] and max(top or 1, len(modules)) > 1:
        raise click.UsageError(
            f"--epochs +{epochs[0]} goes on with one module; name it with --module."
        )
    if resume:
        given = [
            parameter.opts[0]
            for parameter in context.command.params
            if parameter.name not in NOT_OF_TRAINING
            and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(
                "a fine-tuning that goes on (--resume, --epochs +N) keeps its options; leave out "
                f"{', '.join(given)}."
            )


def _show(found: FineTuneResult) -> None:
    for note in found.notes:
        click.echo(note)
    best = found.kept_epoch
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


def _show_choice(run: Run, trained: list[str]) -> None:
    """Says which module is best, and of which one the run's export is."""
    record = run.finetune
    order, chosen = record.order, record.chosen
    if chosen is None:  # of several machines one writes the record, and reports it
        return
    best = chosen
    if order is not None:
        from hubretrain.evaluation import METRICS

        best = order.finetuned[0]
        tau, regret = order.kendall_tau, order.regret
        is_share = METRICS[order.metric].is_share
        lost = f"{100 * regret:.1f} points" if is_share else f"{regret:.3f}"
        held = "held" if order.screening == order.finetuned else "did not hold"
        click.echo(
            f"By {order.metric.replace('_', ' ')} on the validation fold the screening order "
            f"{held}: {', '.join(order.finetuned)} "
            f"(Kendall's tau {'undefined' if tau is None else f'{tau:.2f}'}; the screening's "
            f"first is {lost} below the best)."
        )
        click.echo(f"{best} is the best on the validation fold.")
    if best != chosen:
        click.echo(
            f"What is exported is {chosen}; to export {best}: hubretrain finetune {run.folder} "
            f"--module {best} --resume"
        )
    if chosen in trained:
        click.echo(f"Exported to {run.export_folder}/.", nl=False)
    else:
        click.echo(f"{run.export_folder}/ stays that of {chosen}.", nl=False)
    click.echo(f" Next: hubretrain predict {run.folder} IMAGE")


def _dataset_of(run: Run, data: Path | None) -> tuple[ImageDataset, Path]:
    """The data set and cache that a run was fitted with."""
    from hubretrain.data import reopen_dataset

    fit = run.fit
    return reopen_dataset(data or fit.data, fit.data_options), fit.cache
