"""Test split and folds: groups stay whole, classes stay balanced.

`splits` cuts, by labels and groups as numbers (`codes`), `stratify` searches for the most even cut,
`folds` keeps it in `folds.csv`, `leakage` says what a split leaks.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
