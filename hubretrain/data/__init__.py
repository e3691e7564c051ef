"""A data set: which images there are, what they are labelled, and what is wrong with them.

`dataset` opens folders (`layouts`) and tables by their `options`, with `groups` from paths and the
`classes` that were chosen, and `remembered` opens it again; `digests`, `quarantine` and
`image_table` know each file by its content; `check` looks at a data set before it is trusted:
`summary` is what it holds, made by `summarizing`, `left_out` what is not looked at, and `findings`
what that means. Rooms of its own: `preparing` (downloads), `tables` (of labels), `images` (decoding
and augmented views), `near_duplicates` (the search for them), `splitting` (test split and folds).
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
