"""hubretrain: cache bottlenecks once, screen many heads honestly, fine-tune the winner.

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so that
`import hubretrain` imports neither TensorFlow nor pandas.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
