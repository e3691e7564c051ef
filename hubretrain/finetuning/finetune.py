"""The fine-tuning stage: shortlisted backbones of a run, trained, evaluated once, exported."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from hubretrain.data import ImageDataset
from hubretrain.data.splitting import NEW, TEST, previous_parts, read_folds
from hubretrain.errors import NotTrainableError, RunError
from hubretrain.export import export_run
from hubretrain.files import StrPath
from hubretrain.finetuning.devices import Devices, available_devices
from hubretrain.finetuning.module import ModuleFineTuning
from hubretrain.finetuning.options import FineTuneOptions, saved_options
from hubretrain.finetuning.plan import Plan, best_first, choose, remembered, timed_plans
from hubretrain.finetuning.results import (
    ExportCandidate,
    FineTuneResult,
    best_candidate,
    ensemble_probabilities,
    exported_candidate,
    fitted_candidates,
    labels_of,
    order_of,
    regret_ends,
    screening_metric,
    with_fine_tuned,
)
from hubretrain.finetuning.trainer import SECONDS_BETWEEN_CHECKPOINTS
from hubretrain.locks import only_writer
from hubretrain.progress import progress_shown
from hubretrain.runs import (
    ENSEMBLE,
    FINE_TUNED,
    HEAD,
    LEADERBOARD,
    MEAN,
    VALIDATION_FOLD,
    VALIDATION_PREDICTIONS,
    ExportedRecord,
    FineTunedModuleRecord,
    FineTuneRecord,
    FitRecord,
    Run,
)

_log = logging.getLogger(__name__)
BEST = "best"


@dataclass(frozen=True)
class Resumption:
    """How a fine-tuning continues one that the run holds already.

    By default it resumes where that one stopped, and must have the same options.

    Attributes:
        resume: Take the options of the fine-tuning that is there.
        more_epochs: Epochs to add to it once it is finished; None for none. For one module only.
        restart: Delete it, and begin again.
        export: What becomes the run's export: the `best` on the validation fold of heads, ensemble,
            fine-tuned models and their means with the ensemble; or of the module that is trained
            last, the `fine-tuned` one or its `mean`.
        seconds_between_checkpoints: At most this much training within an epoch is lost by a kill.
    """

    resume: bool = False
    more_epochs: int | None = None
    restart: bool = False
    export: str = BEST
    seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS


def finetune_module(
    dataset: ImageDataset,
    run: Run | StrPath,
    *,
    module: str | None = None,
    cache: StrPath = "cache",
    options: FineTuneOptions | None = None,
    resumption: Resumption | None = None,
) -> FineTuneResult:
    """Fine-tune one module of a run, by default the best that can be trained.

    It is trained on all folds but the first, stopped by the first, and evaluated once on the test
    split. Calling it again resumes what was interrupted.

    Args:
        dataset: The data set that the run was fitted on.
        run: A fitted run, or its folder.
        module: Name of the module; None for the first of the shortlist that can be trained, or
            with `hours` for the one of the shortlist that is planned.
        cache: The cache folder, which holds the data set's digests.
        options: How to train; by default as the size of the data set suggests.
        resumption: How to continue what the run holds already.

    Raises:
        RunError: The run is not fitted, holds another fine-tuning, or has no such module, or
            training cannot continue.
        ModuleError: The module cannot be loaded or trained.

    Examples:
        >>> from hubretrain import FineTuneOptions, finetune_module, open_dataset
        >>> data, options = open_dataset("data/digits"), FineTuneOptions(epochs=1)
        >>> result = finetune_module(data, "runs/digits", options=options)
        >>> result.history["epoch"].tolist()  # epoch 0: the head that training starts from
        [0, 1]
    """
    run = Run.of(run)
    shortlist = _fitted(run, dataset).shortlist
    is_planned = options is not None and options.hours is not None
    return finetune_modules(
        dataset,
        run,
        [module] if module else shortlist if is_planned else shortlist[:1],
        cache=Path(cache),
        options=options,
        resumption=resumption,
        may_replace=module is None,
    )[0]


def finetune_modules(
    dataset: ImageDataset,
    run: Run,
    modules: Sequence[str],
    *,
    cache: Path = Path("cache"),
    options: FineTuneOptions | None = None,
    resumption: Resumption | None = None,
    may_replace: bool = False,
) -> list[FineTuneResult]:
    """Fine-tune modules in turn; the model that is best on the validation fold is exported.

    That may be the head of one of them, or the ensemble of heads. An export of the best model that
    was fine-tuned before is kept, even if its training was discarded.

    `run.json` records whether the order of the screening held among all modules that were
    fine-tuned in the run. Arguments and errors as of `finetune_module`.

    Args:
        dataset: The data set that the run was fitted on.
        run: A fitted run.
        modules: Names of modules of the run; with `hours`, of which one is trained.
        cache: The cache folder, which holds the data set's digests.
        options: How to train each of them.
        resumption: How to continue what the run holds already.
        may_replace: Whether the next best module takes the place of one that cannot be trained.
    """
    fit, options = _fitted(run, dataset), options or FineTuneOptions()
    resumption = resumption or Resumption()
    is_planned = options.hours is not None and not resumption.resume
    if is_planned and not resumption.restart and (earlier := remembered(run, modules, options)):
        modules, options, is_planned = [earlier[0]], earlier[1], False
    options_of, devices, images = _begin(dataset, run, modules, cache, options, resumption)
    if is_planned:
        plan = choose(
            timed_plans(dataset, run, images, modules, options_of, devices), options.hours or 0.0
        )
        _log.info("%s, of %g hours", plan.sentence(), options.hours)
        modules, options, may_replace = [plan.module], plan.options, False
        options_of = {plan.module: plan.options}
    results: list[FineTuneResult] = []
    others = [n for n in best_first(run) if n not in options_of] if may_replace else []
    queue = list(options_of)
    while queue:
        name = queue.pop(0)
        chosen = options_of.get(name) or options
        if len(modules) > 1 and devices.is_chief:
            _log.info("%s:", name)
        folder = run.finetune_folder(name)
        lock = only_writer(folder) if devices.is_chief else contextlib.nullcontext()
        with lock, progress_shown(devices.is_chief):
            try:
                module = ModuleFineTuning(dataset, run, images, name, fit, devices)
                module.prepare(chosen, resumption.seconds_between_checkpoints)
            except NotTrainableError as error:
                if not others:
                    raise
                _log.warning("%s Trained instead: %s", error, others[0])
                queue.insert(0, others.pop(0))
                continue
            if not resumption.restart:
                module.check(resumption.more_epochs)
            if devices.is_chief:  # what it holds is deleted only now that another can be trained
                _prepare(folder, chosen, restart=resumption.restart)
            result, record = module.fine_tune(resumption.more_epochs)
            results.append(result)
            if devices.is_chief:
                with run.locked():
                    _keep(run, fit, module, result, record, resumption.export)
            module.trainer.conclude()
    return results


def plan_modules(
    dataset: ImageDataset,
    run: Run,
    modules: Sequence[str],
    *,
    cache: Path = Path("cache"),
    options: FineTuneOptions | None = None,
) -> list[Plan]:
    """Return how modules would be trained from their heads, by a few timed steps of each.

    Of those of `hours` the first is the one that would be trained. Nothing is written. Arguments
    and errors as of `finetune_modules`.

    Args:
        dataset: The data set that the run was fitted on.
        run: A fitted run.
        modules: Names of modules of the run.
        cache: The cache folder, which holds the data set's digests.
        options: How to train.
    """
    options = options or FineTuneOptions()
    options_of, devices, images = _begin(dataset, run, modules, cache, options, Resumption())
    plans = timed_plans(dataset, run, images, modules, options_of, devices)
    if options.hours is None:
        return plans
    chosen = choose(plans, options.hours)
    return [chosen, *(plan for plan in plans if plan is not chosen)]


def _begin(
    dataset: ImageDataset,
    run: Run,
    modules: Sequence[str],
    cache: Path,
    options: FineTuneOptions,
    resumption: Resumption,
) -> tuple[dict[str, FineTuneOptions], Devices, pd.DataFrame]:
    """Return the options of each module, the devices, and the images with their `fold`.

    Raises:
        RunError: What is requested cannot be trained, or the images are not those of the fit.
    """
    fit = run.fit
    for name in modules:
        fit.module(name)  # refuses one that was not fitted, before anything is trained
    options_of = _options_of(run, modules, options, resumption)
    devices = available_devices(
        mixed_precision=any(chosen.mixed_precision for chosen in options_of.values())
    )
    folds = read_folds(run.checked(run.folds_file))
    images = dataset.usable_images(cache, near_duplicates=fit.duplicates_kept_together)
    images = _with_folds(images, folds, run)
    validation, test = (images[images["fold"] == part] for part in (VALIDATION_FOLD, TEST))
    _check_results(run, modules, validation)
    parts = {"validation": validation, "test": test}
    if resumption.export == MEAN and ensemble_probabilities(run, parts) is None:
        raise RunError(
            f"{run.folder} has no ensemble of heads that a mean could be exported with; fit two "
            "modules or more, or export the `best` or the `fine-tuned` model."
        )
    return options_of, devices, images


def _check_results(run: Run, modules: Sequence[str], validation: pd.DataFrame) -> None:
    """Read what trained models are compared with, so that damage is found before the training.

    Raises:
        RunError: A file is damaged or missing.
        HeadError: The same, of heads or the ensemble.
    """
    LEADERBOARD.read(run.folder)
    fitted_candidates(run, dict.fromkeys([run.fit.shortlist[0], *modules]), validation)
    for name in run.finetune.modules:
        if name not in modules:
            VALIDATION_PREDICTIONS.read(run.finetune_folder(name))


def _options_of(
    run: Run, modules: Sequence[str], options: FineTuneOptions, resumption: Resumption
) -> dict[str, FineTuneOptions]:
    """Return the options of each module: its saved ones where it is resumed.

    Raises:
        RunError: They cannot all be trained by one call.
    """
    more_epochs = resumption.more_epochs
    if more_epochs is not None and resumption.restart:
        raise RunError(
            f"`more_epochs={more_epochs}` adds to a training that `restart=True` would delete; "
            "leave out one of them."
        )
    if more_epochs is not None and len(modules) > 1:
        raise RunError(
            f"`more_epochs={more_epochs}` continues one module, but {len(modules)} are named; name "
            "one with `modules`."
        )
    options_of = {
        name: saved_options(run.finetune_folder(name)) if resumption.resume else options
        for name in modules
    }
    if len({chosen.mixed_precision for chosen in options_of.values()}) > 1:
        raise RunError(
            f"some of {', '.join(modules)} were trained with `mixed_precision` and others without; "
            "continue one at a time with `modules`."
        )
    return options_of


def _prepare(folder: Path, options: FineTuneOptions, *, restart: bool) -> None:
    """Clear the folder for a restart, and save the options of a fine-tuning that is new.

    `all_folds` may come later, or go: it changes no epoch.
    """
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    if not (folder / "checkpoint" / "state.json").exists():
        options.save(folder)
    elif (saved := saved_options(folder)).all_folds != options.all_folds:
        replace(saved, all_folds=options.all_folds).save(folder)


def _keep(
    run: Run,
    fit: FitRecord,
    module: ModuleFineTuning,
    result: FineTuneResult,
    record: FineTunedModuleRecord,
    export: str,
) -> None:
    """Put a module into `run.json`, and export the best model of the run.

    The caller holds `Run.locked`, as another process may end its training just now.
    """
    earlier = run.finetune
    records = {**earlier.modules, result.module: record}
    looks = _looks(earlier, result, record)
    # Whatever fails from here on: the figures may have been seen by then.
    run.write_finetune(replace(earlier, test_looked_at=looks))
    metric = fit.metric
    on_validation = {
        name: other.validation[metric][0]
        for name, other in records.items()
        if metric in other.validation and other.identity["images"] == record.identity["images"]
    }
    screening = screening_metric(LEADERBOARD.read(run.folder), fit.modules, metric)
    finetuned = {name: score for name, score in on_validation.items() if name in screening}
    order = order_of(screening, finetuned, metric) if len(finetuned) > 1 else None
    if order is not None:
        images = module.parts["validation"]
        order = replace(order, regret_ends=regret_ends(run, records, order, images, fit.seed))
    best, exported = _best(run, fit, module, [*records], export)
    if best is module.candidate:
        module.export(result)
    elif module.mean is not None and best is module.mean.candidate:
        module.export_mean(module.mean)
    elif best.kind in (HEAD, ENSEMBLE):
        is_ensemble = best.kind == ENSEMBLE
        head = None if is_ensemble else best.module
        export_run(run, head=head, ensemble=is_ensemble, output=run.export_folder)
    chosen = best.module if best.kind in (FINE_TUNED, MEAN) else None
    run.write_finetune(FineTuneRecord(records, chosen, order, exported, looks))
    with run.writing_fit() as written:
        board = with_fine_tuned(LEADERBOARD.read(run.folder), records)
        LEADERBOARD.write(written.folder, board)
        run.publish_changes(written)


def _looks(
    earlier: FineTuneRecord, result: FineTuneResult, record: FineTunedModuleRecord
) -> tuple[Mapping[str, str], ...]:
    """Return each different look at the test split: those so far, and this if it is new."""
    looks = earlier.test_looked_at
    if not result.test:
        return looks
    of_all = ["all folds"] if record.all_folds else []
    identity = [record.identity, record.kept_epoch, *of_all]
    model = json.dumps(identity, sort_keys=True, default=str)
    look = {result.module: hashlib.sha256(model.encode()).hexdigest()}
    return looks if look in looks else (*looks, look)


def _best(
    run: Run, fit: FitRecord, module: ModuleFineTuning, tuned: Sequence[str], export: str
) -> tuple[ExportCandidate, ExportedRecord]:
    """Return the model of the run that is to be exported, and the record of it.

    Args:
        run: The run.
        fit: What its fit recorded.
        module: The module that was trained.
        tuned: Names of all modules that were fine-tuned; their heads are compared.
        export: See `Resumption`.
    """
    images, current = module.parts["validation"], module.candidate
    earlier = exported_candidate(run, images)
    # Where no epoch was better than the head, the head that is fitted on all folds stands for it.
    is_trained = module.trainer.state.best_epoch > 0
    candidates = [current] if is_trained else []
    candidates += [module.mean.candidate] if module.mean is not None else []
    if earlier is not None and not any(map(earlier.is_of, candidates)):
        candidates.append(earlier)
    candidates += fitted_candidates(run, dict.fromkeys([fit.shortlist[0], *tuned]), images)
    labels, groups = labels_of(images, fit.class_names), images["cluster"].to_numpy()
    best, exported = best_candidate(candidates or [current], labels, groups, fit.metric, fit.seed)
    if export == BEST:
        return best, exported
    kind = export if is_trained else HEAD
    if not is_trained:
        _log.warning(
            "no epoch of %s was better than its head, which is exported as it was fitted on all "
            "folds",
            module.name,
        )
    requested = [c for c in candidates if (c.kind, c.module) == (kind, module.name)]
    best = requested[0] if requested else current
    return best, replace(exported, kind=best.kind, module=best.module, name=best.name)


def _fitted(run: Run, dataset: ImageDataset) -> FitRecord:
    """Return what the fit recorded, its classes checked against the data set's."""
    fit = run.fit
    if fit.class_names != dataset.class_names:
        raise RunError(
            f"{run.folder} was fitted on the classes {', '.join(fit.class_names)}, but the data "
            f"set has {', '.join(dataset.class_names)}; fit again, or choose the run's data set."
        )
    if fit.multi_label != dataset.multi_label:
        fitted, given = (
            "several labels per image" if multi_label else "one class per image"
            for multi_label in (fit.multi_label, dataset.multi_label)
        )
        raise RunError(
            f"{run.folder} was fitted on {fitted}, but the data set has {given}; fit again, or "
            "choose the run's data set."
        )
    return fit


def _with_folds(images: pd.DataFrame, folds: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Return the images that the run split, with their `fold`; say which it lacks.

    Raises:
        RunError: An image has other bytes than were fitted.
    """
    paths, sha256s = images["path"].tolist(), images["sha256"].tolist()
    absent = folds[~folds["sha256"].isin(sha256s)]
    changed = absent.loc[absent["path"].isin(paths), "path"].tolist()
    if changed:
        raise RunError(
            f"{len(changed):,} images have changed since {run.folder} was fitted, the first "
            f"{changed[0]}; restore them, or run `hubretrain cache` and `hubretrain fit` again."
        )
    if len(absent):
        _log.warning(
            "%d images of %s are gone, the first %s: training and figures are without them",
            *(len(absent), run.folds_file, absent["path"].iloc[0]),
        )
    fitted = set(zip(folds["sha256"], folds["label"], strict=True))
    labelled = zip(sha256s, images["label"], strict=True)
    known = set(folds["sha256"])
    if n_other := sum(pair[0] in known and pair not in fitted for pair in labelled):
        _log.warning(
            "%d images have other labels than %s was fitted with, which its head's figures are of; "
            "fit again",
            *(n_other, run.folder),
        )
    parts = previous_parts(folds, paths, sha256s)
    if n_new := int((parts == NEW).sum()):
        _log.warning("%d images that the run was not fitted on take no part; fit again", n_new)
    return images.assign(fold=parts)[parts != NEW].reset_index(drop=True)
