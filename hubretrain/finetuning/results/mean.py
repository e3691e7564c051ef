"""The mean of a fine-tuned model and the run's ensemble of heads.

A frozen and a fine-tuned network err differently, so their mean is often better than both, as that
of several networks is (Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.evaluation import (
    Calibration,
    DecisionRule,
    LabelThresholds,
    Predictions,
    Rule,
    at_temperature,
)
from hubretrain.export import why_not_joined
from hubretrain.finetuning.results.candidates import ExportCandidate, recorded_probs
from hubretrain.finetuning.results.criterion import Criterion
from hubretrain.finetuning.results.part_evaluator import PartEvaluator
from hubretrain.heads import ENSEMBLE_NAME, Ensemble
from hubretrain.runs import (
    MEAN,
    OUT_OF_FOLD,
    TEST_PREDICTIONS,
    EnsembleMeanRecord,
    Run,
)

SHARE = 0.5  # of the fine-tuned model; to choose it, too, on the fold would flatter the mean


@dataclass(frozen=True, eq=False)
class EnsembleMean:
    """The mean of a fine-tuned model and the ensemble, evaluated.

    Attributes:
        ensemble: The ensemble.
        rule: Decision rule of the mean, of probabilities without the temperature.
        calibration: The temperature of the mean.
        candidate: The mean on the validation fold, where it may be chosen as the export.
        record: Its figures.
    """

    ensemble: Ensemble
    rule: Rule
    calibration: Calibration
    candidate: ExportCandidate
    record: EnsembleMeanRecord


def mean_name(module: str) -> str:
    """Return the name for people of a fine-tuned module's mean with the ensemble."""
    return f"mean of {module}, fine-tuned, and the ensemble"


def ensemble_probabilities(
    run: Run, parts: Mapping[str, pd.DataFrame]
) -> tuple[Ensemble, dict[str, AnyArray]] | None:
    """Return the ensemble and its probabilities of the validation fold and of the test split.

    Those of the fold are of heads that were not fitted on it, those of the test split of the heads
    of all folds; both without the temperature, at which the run's files hold them.

    Args:
        run: A fitted run.
        parts: The images of `validation` and `test`.

    Returns:
        None where the run has no ensemble, it cannot be exported, or lacks an image of the fold. A
        test split that it was not applied to is left out.
    """
    if not run.ensemble_file.exists():
        return None
    ensemble = Ensemble.load(run.checked_ensemble())
    if why_not_joined(run.fit, ensemble.weights):
        return None
    multi_label, temperature = run.fit.multi_label, ensemble.calibration.temperature
    probs: dict[str, AnyArray] = {}
    for part, file in (("validation", OUT_OF_FOLD), ("test", TEST_PREDICTIONS)):
        table = file.read(run.folder)
        table = table[table["module"] == ENSEMBLE_NAME]
        of_part = recorded_probs(table, parts[part], multi_label=multi_label)
        if of_part is not None:
            probs[part] = at_temperature(of_part, 1 / temperature, multi_label)
    return (ensemble, probs) if "validation" in probs else None


def mean_with_ensemble(
    run: Run,
    parts: Mapping[str, pd.DataFrame],
    module: str,
    probs: Mapping[str, AnyArray],
    epoch: int,
    criterion: Criterion,
    evaluator: PartEvaluator,
    tuned: Mapping[str, Predictions],
    head: Mapping[str, Predictions],
) -> EnsembleMean | None:
    """Return the mean of a fine-tuned model and the ensemble; None without an ensemble.

    Its rule is between those of the two, and thresholds of labels and the temperature are chosen on
    the validation fold, as those of the fine-tuned model are.

    Args:
        run: A fitted run.
        parts: The images of `validation` and `test`.
        module: The module that was fine-tuned.
        probs: Part to the fine-tuned model's probabilities without its temperature.
        epoch: The epoch that was kept, at least 1.
        criterion: How epochs were compared.
        evaluator: The labels of the parts.
        tuned: Part to the predictions of the fine-tuned model.
        head: Part to those of the head that training started from.
    """
    of_ensemble = ensemble_probabilities(run, parts)
    if of_ensemble is None:
        return None
    ensemble, others = of_ensemble
    mean = {part: SHARE * probs[part] + (1 - SHARE) * others[part] for part in others}
    criterion = replace(criterion, rule=_rule_between(criterion.rule, ensemble.rule))
    rule = criterion.rule_of(mean["validation"], epoch)
    calibration = criterion.calibration_of(mean["validation"].astype(np.float32), epoch)
    predictions = evaluator.predictions(mean, epoch, criterion, rule, calibration)
    figures = evaluator.metrics(predictions)
    record = EnsembleMeanRecord(
        test=figures.get("test", {}),
        validation=figures["validation"],
        **recorded(rule),
        temperature=calibration.temperature,
        uncalibrated_log_loss=evaluator.log_losses(mean),
        over_head=evaluator.differences(predictions, head),
        over_fine_tuned=evaluator.differences(predictions, tuned),
    )
    candidate = ExportCandidate(MEAN, module, mean_name(module), predictions["validation"])
    return EnsembleMean(ensemble, rule, calibration, candidate, record)


def _rule_between(tuned: Rule, ensemble: Rule) -> Rule:
    """Return the rule of the mean; of labels, the thresholds where too few images choose them."""
    if isinstance(tuned, DecisionRule) and isinstance(ensemble, DecisionRule):
        priors = tuned.priors or ensemble.priors
        strength = SHARE * tuned.strength + (1 - SHARE) * ensemble.strength
        return DecisionRule(strength, priors)
    return tuned


def recorded(rule: Rule) -> dict[str, Any]:
    """Return the entries of a record that hold a decision rule."""
    if isinstance(rule, LabelThresholds):
        return {"adjust": 0.0, "priors": (), "thresholds": rule.values}  # noqa: PD011 - no table
    return {"adjust": rule.strength, "priors": rule.priors}
