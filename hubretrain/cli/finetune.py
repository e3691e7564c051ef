"""hubretrain finetune: train the backbones of a run, and export the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hubretrain.cli.command import Command, echo, in_flags, next_command, this_command_without
from hubretrain.cli.options import (
    chosen_run,
    images_option,
    named_modules,
    offline_option,
    options_from,
    run_argument,
)
from hubretrain.finetuning import FineTuneOptions
from hubretrain.runs import ENSEMBLE, FINE_TUNED, MEAN, EnsembleMeanRecord, ExportedRecord

if TYPE_CHECKING:
    from hubretrain.data import ImageDataset
    from hubretrain.finetuning import FineTuneResult
    from hubretrain.runs import Run

NOT_OF_TRAINING = {
    *("run", "data", "modules", "top", "epochs", "export", "restart", "resume", "dry_run")
}


class Epochs(click.ParamType):  # type: ignore[type-arg]
    """`N`, or `+N` to add to a finished training."""

    name = "N|+N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, bool]:
        """Return how many, and whether they are added."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        if not text.removeprefix("+").isdecimal() or int(text) < 1:
            self.fail(f"{text!r} is neither a number of epochs, at least 1, nor +N.", param, ctx)
        return int(text), text.startswith("+")


@click.command(
    cls=Command,
    aliases={"more_epochs": "--epochs +{}"},
    short_help="Fine-tune the best module of a run and export it.",
)
@run_argument
@images_option
@named_modules(
    "Module to train; may be repeated. By default the first of the shortlist that can be trained."
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help="Train the best N modules in turn, export the best, and report whether the screening "
    "order held.",
)
@click.option(
    "--epochs",
    type=Epochs(),
    help="Maximum number of epochs, by default by the size of the data set; +N adds epochs to a "
    "finished training.",
)
@options_from(FineTuneOptions)
@click.option(
    "--export",
    type=click.Choice(["best", FINE_TUNED, MEAN]),
    default="best",
    show_default=True,
    help="What is exported: the best on the validation fold of heads, ensemble, fine-tuned models "
    "and their means with the ensemble; or, whatever it is worth, the fine-tuned one or its mean.",
)
@click.option("--restart", is_flag=True, help="Discard an earlier fine-tuning.")
@click.option(
    "--resume",
    is_flag=True,
    help="Resume the latest fine-tuning, or that of --module, with its options.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Time a few steps, show how long training would take, and stop.",
)
@offline_option
@click.pass_context
def finetune(
    context: click.Context,
    /,
    run: Path | None,
    data: Path | None,
    modules: tuple[str, ...],
    top: int | None,
    epochs: tuple[int, bool] | None,
    options: FineTuneOptions,
    export: str,
    restart: bool,
    resume: bool,
    dry_run: bool,
) -> None:
    """Fine-tune the first module in the shortlist of RUN, by default the latest run.

    The model that is then best on the validation fold is exported: the fine-tuned one, a head, or
    the ensemble of heads.

    Rerun the command to resume after an interruption. TensorBoard shows the epochs in
    RUN/finetune/. Several machines train together if TF_CONFIG names them.
    """
    more_epochs = epochs[0] if epochs and epochs[1] else None
    resume = resume or more_epochs is not None
    _check(context, resume, restart, top, modules, epochs)
    _check_plan(options, dry_run, resume or restart, top or len(modules), epochs)

    of_run = chosen_run(run)
    dataset, cache = _dataset_of(of_run, data)
    from hubretrain.finetuning import Resumption, finetune_modules, plan_modules

    names = list(modules) or _names(of_run, options, top, resume=resume)
    if epochs and more_epochs is None:
        options = replace(options, epochs=epochs[0])
    if dry_run:
        plans = plan_modules(dataset, of_run, names, cache=cache, options=options)
        for plan in plans:
            echo(f"{plan.sentence()}.")
        if options.hours is not None and len(plans) > 1:
            echo(f"Of these {plans[0].module} would be trained.")
        echo(f"Next: {this_command_without('--dry-run')}")
        return
    results = finetune_modules(
        dataset,
        of_run,
        names,
        cache=cache,
        options=options,
        resumption=Resumption(resume, more_epochs, restart, export),
        may_replace=not modules and not resume,
    )
    for result in results:
        _show(result, of_run.fit.metric)
    if any(result.test for result in results) and (looks := of_run.looks_at_test()):
        echo(looks)
    _show_choice(of_run, results)
    if diverged := [result.diverged for result in results if result.diverged]:
        from hubretrain.errors import RunError

        raise RunError(" ".join(diverged))


def _names(run: Run, options: FineTuneOptions, top: int | None, *, resume: bool) -> list[str]:
    """Return the modules where none is named: those to train, or to choose from by the plan."""
    from hubretrain.finetuning import best_modules, latest_finetuning

    if resume and not top:
        return [latest_finetuning(run)]
    return best_modules(run, top or (1 if options.hours is None else len(run.fit.shortlist)))


def _check_plan(
    options: FineTuneOptions,
    dry_run: bool,
    continues: bool,
    n_modules: int,
    epochs: tuple[int, bool] | None,
) -> None:
    if options.hours is not None and epochs:
        raise click.UsageError("--hours plans the number of epochs; leave out one of them.")
    if options.hours is not None and n_modules > 1:
        raise click.UsageError("--hours trains one module; leave out --top, and name at most one.")
    if dry_run and continues:
        raise click.UsageError(
            "--dry-run plans a training from its beginning; leave out --resume and --restart."
        )


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
        raise click.UsageError("--resume and --restart exclude each other; choose one.")
    if resume and epochs and not epochs[1]:
        raise click.UsageError(
            "a fine-tuning that is resumed keeps its length; leave out --epochs, or add epochs "
            f"with --epochs +{epochs[0]}."
        )
    if epochs and epochs[1] and max(top or 1, len(modules)) > 1:
        raise click.UsageError(f"--epochs +{epochs[0]} resumes one module; name it with --module.")
    if resume:
        given = [
            parameter.opts[0]
            for parameter in context.command.params
            if parameter.name not in NOT_OF_TRAINING
            and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(
                "a fine-tuning that is resumed (--resume, --epochs +N) keeps its options; leave "
                f"out {', '.join(given)}."
            )


def _show(result: FineTuneResult, metric_of_choice: str) -> None:
    from hubretrain.evaluation import Difference, intervals

    for note in result.notes:
        echo(in_flags(note))
    best = result.kept_epoch
    echo(
        f"{result.module}: epoch {best} of {len(result.history) - 1} is kept."
        if best
        else f"{result.module}: no epoch was better than the fitted head, which is kept. Figures "
        "here are of it without the validation fold; of all folds, those of `hubretrain fit`."
    )
    if result.all_folds:
        echo(
            "It was trained once more, on all folds: the figures of the test split are of that "
            "model and of the head of all folds, those of the validation fold of the model that "
            "chose the epoch."
        )
    metrics = {
        "balanced_accuracy": "balanced accuracy",
        "accuracy": "accuracy",
        "top_3": "top-3 accuracy",
    }
    for metric, words in metrics.items():
        if metric in result.test:
            (estimate, low, high), head = result.test[metric], result.head_test[metric]
            if metric == "top_3" and estimate == head[0] == 1:
                continue  # as of three classes, where it tells nothing
            echo(
                f"Test split, {words}: {100 * estimate:.1f} ({100 * low:.1f}-{100 * high:.1f}); "
                f"its head alone: {100 * head[0]:.1f}."
            )
    for part, words in (("test", "test split"), ("validation", "validation fold")):
        if part in result.over_head:
            change = Difference(metric_of_choice, *result.over_head[part], float("nan"), 0.95)
            name = f"Against its head on the {words}, {metric_of_choice.replace('_', ' ')}"
            echo(f"{intervals.effect(name, change)}.")
    if result.with_ensemble is not None:
        _show_mean(result.with_ensemble, metric_of_choice)
    _show_calibration(result)


def _show_mean(mean: EnsembleMeanRecord, metric: str) -> None:
    """Show what the mean with the ensemble brings to the fine-tuned model alone."""
    from hubretrain.evaluation import Difference, intervals

    for part, words in (("test", "test split"), ("validation", "validation fold")):
        if part in mean.over_fine_tuned:
            change = Difference(metric, *mean.over_fine_tuned[part], float("nan"), 0.95)
            name = f"Its mean with the ensemble against it alone on the {words}"
            sentence = intervals.effect(f"{name}, {metric.replace('_', ' ')}", change)
            echo(f"{sentence}.")


def _show_calibration(result: FineTuneResult) -> None:
    """Show the temperature and what it is worth where figures have it."""
    before = result.uncalibrated_log_loss
    losses = [
        f"log loss on the {words} {before[part]:.3f} before, {figures['log_loss'][0]:.3f} after"
        for part, words, figures in (
            ("test", "test split", result.test),
            ("validation", "validation fold", result.validation),
        )
        if part in before and "log_loss" in figures
    ]
    echo("; ".join([f"Temperature {result.temperature:.2f}", *losses]) + ".")


def _show_choice(run: Run, results: Sequence[FineTuneResult]) -> None:
    """Show which model of the run is best, and which one is exported."""
    trained = [result.module for result in results if result.kept_epoch]
    record = run.finetune
    order, exported = record.order, record.exported
    if exported is None:  # of several machines one writes the record, and reports it
        return
    if order is not None:
        from hubretrain.evaluation import metric_named

        tau, regret = order.kendall_tau, order.regret
        is_share = metric_named(order.metric).is_share
        scale, digits = (100, 1) if is_share else (1, 3)
        lost = f"{scale * regret:.{digits}f}{' points' if is_share else ''}"
        if order.regret_ends is not None:
            low, high = (scale * end for end in order.regret_ends)
            lost += f" (95 % {low:+.{digits}f} to {high:+.{digits}f}, by the fold that chose)"
        held = "held" if order.screening == order.finetuned else "did not hold"
        echo(
            f"By {order.metric.replace('_', ' ')} on the validation fold the screening order "
            f"{held}: {', '.join(order.finetuned)} "
            f"(Kendall's tau {'undefined' if tau is None else f'{tau:.2f}'}; the screening's "
            f"first is {lost} below the best)."
        )
    _show_comparison(exported)
    what = f"the {exported.name}" if exported.kind == MEAN else exported.name
    what = "the ensemble of heads" if exported.kind == ENSEMBLE else what
    echo(f"{run.export_folder}/ holds {what}.")
    if exported.name not in (f"{name}, {FINE_TUNED}" for name in trained):
        for name in trained:
            echo(
                f"To export {name} fine-tuned all the same: "
                + next_command("finetune", run.folder, "--module", name, "--resume")
                + f" --export {FINE_TUNED}"
            )
    else:
        head = next_command("export", run.folder, "--head", exported.module)
        echo(f"For a head instead: {head}")
    echo(f"Next: {next_command('predict', run.folder)} IMAGE")


def _show_comparison(exported: ExportedRecord) -> None:
    """Show the models of the run on the validation fold, the best first."""
    from hubretrain.evaluation import Difference, intervals, metric_named

    metric = metric_named(exported.metric)
    best_first = sorted(
        exported.on_validation.items(), key=lambda pair: pair[1], reverse=metric.higher_is_better
    )
    values = (
        f"{name} {100 * value:.1f}" if metric.is_share else f"{name} {value:.3f}"
        for name, value in best_first
    )
    words = exported.metric.replace("_", " ")
    echo(f"On the validation fold, {words}: {'; '.join(values)}.")
    if exported.gain is not None:
        change = Difference(exported.metric, *exported.gain, float("nan"), 0.95)
        sentence = intervals.effect("The best fine-tuned model against the best head", change)
        echo(f"{sentence}. The fold has chosen the epoch, which flatters the former.")


def _dataset_of(run: Run, data: Path | None) -> tuple[ImageDataset, Path]:
    """Return the data set and the cache that a run was fitted with."""
    from hubretrain.data import reopen_dataset

    fit = run.fit
    return reopen_dataset(data or fit.data, fit.data_options), fit.cache
