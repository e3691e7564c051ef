"""Metrics, their confidence intervals, and unbiased selection: knows labels and probabilities only.

`metrics` and `ranking_metrics` compute many resamples at once; `intervals` resamples whole groups
(confidence intervals, differences, ties); `selection` chooses one of many candidates without
selection bias; `logit_adjustment` is the decision rule; `temperature` calibrates probabilities;
`checks` refuses what is no prediction.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
