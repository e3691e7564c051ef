"""The search for near duplicates: `sketches` finds candidates, `alignment` compares their pixels.

`search` joins the two; `table` keeps the result, by content, in `copies.csv`.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
