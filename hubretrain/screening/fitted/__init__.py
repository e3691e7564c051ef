"""What a fit left, for people: its result in a notebook, features as arrays, two runs compared.

`screening` is the result, `features` loads arrays for other libraries, `pairs` compares two runs
image by image, `more_images` says what twice the images would bring, and `notes` has the sentences
of a fit.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
