"""Metrics, their confidence intervals, and selection without bias: labels and probabilities only.

`metrics` and `ranking_metrics` compute many resamples at once; `resamples` draws whole groups,
`intervals` has what follows from the draw (confidence intervals, differences, ties) and `evaluator`
gives every metric with its interval;
`selection` chooses the best of many candidates by cross-fitting and `parts` evaluates
what was chosen within each of its parts; `logit_adjustment` is the decision rule of classes,
`label_thresholds` that of images with several labels; `logits` turns scores into probabilities and
`temperature` calibrates these; `checks` validates predictions.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
