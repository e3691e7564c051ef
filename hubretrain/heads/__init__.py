"""Linear heads on bottlenecks: every fold, penalty and class weight fitted as one problem.

`features` standardises rows, `losses` and `solver` minimise, `path` follows the penalties,
`inputs` checks what it is given; `heads` is a fitted head and its file, `ensemble` a weighted
mean of heads, `estimators` the same heads for scikit-learn.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
