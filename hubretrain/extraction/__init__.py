"""The cache stage: images to bottlenecks, for several modules at once.

`cache` is the stage with the options of `options`; `plan` says what is computed and how,
`pipeline` decodes ahead and runs the modules, `ray` does so in several processes; `estimate` says
how long it would take; `maintenance` shows, verifies, merges and cleans up.
`engines` and `exchange` are rooms of their own: TensorFlow and OpenVINO; and what other tools
computed or are given.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
