"""Downloads become folders to work on: the only code that writes below `data/`.

`ham10000` lays out HAM10000; `archives` unpacks a zip of images, and parquet files that hold them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
