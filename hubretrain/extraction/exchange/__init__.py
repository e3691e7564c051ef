"""Bottlenecks exchanged with other tools: their embeddings taken in, the cache given out.

`vectors` reads files of embeddings and the ids of their images, `importing` makes a bottleneck file
of them, `exporting` writes one as parquet or npz.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
