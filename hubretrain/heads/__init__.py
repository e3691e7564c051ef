"""Heads on bottlenecks: every fold, penalty and class weight fitted as one problem.

`inputs` validates what a fit is given and `features` standardises its rows, or `projection` takes
the principal components of those of all layers; `losses`, `objective`, `lbfgs` and `solver`
minimise; `path` follows the penalties and `validation` scores the images left out, into a `result`;
`mlp` fits networks into the same. `heads` is a fitted head and its file, `ensemble` a weighted mean
of heads, `estimators` the same heads for scikit-learn.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
