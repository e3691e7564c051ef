"""Pixels: decoding, augmented views, resizing. The same code for caching, training and serving.

`reading` says how a data set's images are read and `formats` which ones, `opening` bounds what a
file may cost, `decoding` reads image files and cuts views, `inspection` finds damage that decoding
does not, `augmentation` draws how a view differs, `resize` resizes, `batched` cuts views in
TensorFlow for a GPU, `contact_sheet` draws views to look at.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
