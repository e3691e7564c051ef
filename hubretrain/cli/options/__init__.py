"""Options that several commands share.

`derived` makes options from the library's dataclasses; `sources` say where labelled images, cache
and split are, `backbones` which modules, `models` which run or export, `output` where the result
goes; `completion` is what a shell completes.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
