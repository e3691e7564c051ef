"""The screen stage: many modules on growing slices of the images, the hopeless ones left out early.

`race` is the stage with the options of `options`: `slices` says which images come next, `pace` how
many of them the budget allows, `entrants` computes a module's features of a slice and how well
quick heads do on them, `elimination` decides who is left out, and `record` keeps what is known, to
resume from. `hour` divides the time of `hubretrain auto`.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
