"""The fit stage: heads on every cached module, compared on images that they never saw.

`fit` is the stage with the options of `options`; `sweep` is what is compared on every module,
`stages` screens all modules and `screen` one of them: `fitting` fits the heads on its features,
`candidates` are their out-of-fold predictions, `selection` chooses, and `result` is what is kept,
also of two kinds of heads together. `comparison` and `leaderboard` set the modules
side by side with `baselines` and `transferability` scores, and `formatting` has the words of their
rows. The room `fitted` has what people take from a fit.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
