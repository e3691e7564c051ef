"""The bottleneck file: one module's features of every view of every image, in HDF5.

`layout` is the format, with `segments`, the table of layers; `reader` and `writer` use it, and
`views` are what is read. `comparison` says what a file lacks of what
is required, `rebuild` grows and shrinks it, `merge` joins parts; `costs` logs what forward passes
cost.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
