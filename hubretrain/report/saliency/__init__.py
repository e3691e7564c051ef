"""What in an image the model looks at: gradients, drawn over the image.

`gradients` differentiates a frozen graph, `model` says of which model, `overlay` draws, `section`
chooses images for the report, `explain` is the stage of its own.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
