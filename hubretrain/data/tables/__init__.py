"""Tables of labels, as people write them, become image tables.

`reading` turns a file into a table of text, `columns` says which column is what, `matching` finds
the image that a cell names, `labels` checks the classes, and `labelling` puts them together.
`beside` uses tables that lie beside images and that no option names.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
