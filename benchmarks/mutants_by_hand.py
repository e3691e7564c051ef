# ruff: noqa: E501, ISC004
"""Faults that make a figure dishonest, or a model another one, as somebody might write them.

Each is a name, the file below `hubretrain/`, what stands there, what stands there instead, and the
test files one of which is to fail. Random changes of an operator hardly ever give such faults.
"""

from __future__ import annotations

FIT, COMPARISON = "tests/screening/test_fit.py", "tests/screening/test_comparison.py"
CALIBRATION, FITTING = "tests/screening/test_calibration.py", "tests/screening/test_fitting.py"
NULL, LAYERS = "tests/screening/test_null.py", "tests/screening/test_layers.py"
INTERVALS, SELECTION = "tests/evaluation/test_intervals.py", "tests/evaluation/test_selection.py"
MODULE, STEPS = "tests/finetuning/test_module.py", "tests/finetuning/test_steps.py"
TRAINER, FINETUNE = "tests/finetuning/test_trainer.py", "tests/finetuning/test_finetune.py"
EXPORT, SPLITS = "tests/export/test_export.py", "tests/data/splitting/test_splits.py"

MUTANTS: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "the temperature of what is fine-tuned is fitted on the test split",
        "finetuning/module",
        'self.criterion.calibration_of(probs["validation"], kept)',
        '__import__("hubretrain.evaluation").evaluation.calibrate('
        'probs["test"], self._labels(self.parts["test"]), may_sharpen=False)',
        MODULE,
    ),
    (
        "the export is chosen by the test split",
        "finetuning/finetune",
        "    if export == BEST:\n        return best, exported\n",
        '    of_test = LEADERBOARD.read(run.folder).set_index("module")["test_accuracy"]\n'
        '    truth = module.parts["test"]["class_index"].to_numpy()\n'
        "    names = [c for c in candidates if c.kind != FINE_TUNED]\n"
        '    tuned = (module._probabilities("{}")["test"].argmax(axis=1) == truth).mean()\n'
        "    if is_trained and tuned > 1 - of_test.max():\n"
        "        best = current\n"
        "    if export == BEST:\n        return best, exported\n",
        MODULE,
    ),
    (
        "class weights are left out of the fit",
        "screening/fitting",
        "PathFitter(inputs, features, source.kind, weights, ",
        "PathFitter(inputs, features, source.kind, [None] * len(weights), ",
        FITTING,
    ),
    (
        "class weights are left out of fine-tuning",
        "finetuning/module",
        "np.ones_like(weights) if options.balanced_sampling else weights)",
        "np.ones_like(weights))",
        TRAINER,
    ),
    (
        "L2-SP times 3",
        "finetuning/steps",
        "options.l2_sp * pull",
        "3 * options.l2_sp * pull",
        STEPS,
    ),
    (
        "members of the ensemble are chosen by scores out of fold",
        "screening/comparison",
        "crossfitted_ensemble(within, members, *options)",
        "crossfitted_ensemble(members, members, *options)",
        COMPARISON,
    ),
    (
        "members of the ensemble are chosen on all images",
        "heads/ensemble",
        "        chosen_on = ~here & scored\n",
        "        chosen_on = scored\n",
        COMPARISON,
    ),
    (
        "the best module is chosen by scores out of fold",
        "screening/comparison",
        "result.chosen_by[NESTED] for",
        'result.chosen_by["chosen"] for',
        COMPARISON,
    ),
    (
        "the best module is chosen on all images",
        "screening/comparison",
        "        choice = choose(values, self.sweep.metric)\n",
        "        choice = choose(np.repeat(values[:1], 3, axis=0), self.sweep.metric)\n",
        COMPARISON,
    ),
    (
        "the threshold of ties times 1.5",
        "evaluation/intervals",
        "critical = widening * np",
        "critical = 1.5 * widening * np",
        INTERVALS,
    ),
    (
        "ties at 60 %",
        "evaluation/intervals",
        "confidence: float = 0.95, later: float = 0.0",
        "confidence: float = 0.6, later: float = 0.0",
        INTERVALS,
    ),
    (
        "ties of the leaderboard at 60 %",
        "screening/leaderboard",
        "tied_with_best([of[m] for m in modules])",
        "tied_with_best([of[m] for m in modules], 0.6)",
        "tests/screening/test_leaderboard.py",
    ),
    (
        "test figures are of the warm start",
        "screening/fit",
        "head = heads[name].deployed\n",
        "head = heads[name].warm_start\n",
        FIT,
    ),
    (
        "test figures of what is fine-tuned are of its head",
        "finetuning/module",
        "self.evaluator.metrics(predictions), self.evaluator.metrics(before)",
        "self.evaluator.metrics(before), self.evaluator.metrics(before)",
        "tests/finetuning/test_layers.py " + TRAINER,
    ),
    (
        "what was trained on all folds is not what is evaluated",
        "finetuning/module",
        'before["test"], probs["test"] = of_all',
        'before["test"], _ = of_all',
        TRAINER,
    ),
    (
        "the training on all folds lacks the validation fold",
        "finetuning/module",
        'pd.concat([self.train, self.parts["validation"]])',
        'pd.concat([self.train, self.parts["validation"][:0]])',
        TRAINER,
    ),
    (
        "the looks of fits never grow",
        "screening/fit",
        "(*looks, look)\n",
        "looks[:1] or (look,)\n",
        FIT,
    ),
    (
        "the looks of fine-tunings never grow",
        "finetuning/finetune",
        "(*looks, look)\n",
        "looks[:1] or (look,)\n",
        FINETUNE,
    ),
    (
        "folds ignore the clusters",
        "screening/fit",
        "cut_parts(images, run.folds_file",
        'cut_parts(images.assign(cluster=images["sha256"]), run.folds_file',
        FIT,
    ),
    (
        "the bootstrap ignores the groups",
        "screening/comparison",
        "self.evaluator = Evaluator(labels, groups, seed,",
        "self.evaluator = Evaluator(labels, np.arange(len(labels)), seed,",
        COMPARISON,
    ),
    (
        "the bootstrap ignores the seed",
        "screening/comparison",
        "self.evaluator = Evaluator(labels, groups, seed,",
        "self.evaluator = Evaluator(labels, groups, 0,",
        COMPARISON,
    ),
    (
        "intervals at 90 %",
        "evaluation/evaluator",
        "CONFIDENCE = 0.95\n",
        "CONFIDENCE = 0.9\n",
        COMPARISON,
    ),
    (
        "effects are tested each alone",
        "screening/comparison",
        "self.sweep.metric, len(of_effects))",
        "self.sweep.metric, 1)",
        COMPARISON,
    ),
    (
        "components see the images of the fold",
        "screening/fitting",
        "row_image, folds=self._folds)",
        "row_image, folds=np.full_like(self._folds, TRAIN_ONLY))",
        LAYERS,
    ),
    (
        "logit adjustment by equal priors",
        "screening/fitting",
        "self.priors = class_priors(self.labels, self.n_classes)",
        "self.priors = np.full(self.n_classes, 1 / self.n_classes)",
        CALIBRATION,
    ),
    (
        "the temperature ignores the groups",
        "screening/selection",
        "calibrate(deployed, self._labels, groups)",
        "calibrate(deployed, self._labels)",
        CALIBRATION,
    ),
    (
        "the warm start has seen the validation fold",
        "screening/selection",
        "self.calibration, VALIDATION_FOLD)",
        "self.calibration)",
        CALIBRATION,
    ),
    (
        "nested predictions are of the choice by scores out of fold",
        "screening/selection",
        '"nested_unadjusted": (self.nested, candidates.unadjusted)',
        '"nested_unadjusted": (self.by_metric, candidates.unadjusted)',
        NULL,
    ),
    (
        "the temperature is not exported",
        "export/export",
        '        "temperature": calibration.temperature,\n',
        '        "temperature": 1.0,\n',
        EXPORT,
    ),
    (
        "averages of weights are not evaluated",
        "finetuning/trainer",
        "self.model.optimizers[phase].averaged if number else nullcontext",
        "nullcontext",
        MODULE,
    ),
    (
        "the last epoch's weights are kept",
        "finetuning/trainer",
        "            self.checkpoints.read_best(self.state)\n            self._interpolate",
        "            self._interpolate",
        TRAINER,
    ),
    (
        "the validation fold is seen augmented",
        "finetuning/steps",
        "arrays = source.batches(images, batches, [0 * batch for batch in batches])\n        for batch",
        "arrays = source.batches(images, batches, [0 * batch + 1 for batch in batches])\n"
        "        for batch",
        TRAINER,
    ),
    (
        "every epoch has the same order",
        "finetuning/epoch_loop",
        "images, self.options.seed, number, is_balanced",
        "images, self.options.seed, 1, is_balanced",
        TRAINER,
    ),
    (
        "the split ignores the seed",
        "data/splitting/splits",
        "_seeded_rank(task.group_names, seed)",
        "_seeded_rank(task.group_names, 0)",
        SPLITS,
    ),
)
