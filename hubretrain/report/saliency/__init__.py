"""Saliency maps: the pixels that a prediction rests on, drawn over the image.

`model` opens the model to explain, `gradients` differentiates its frozen graph, `overlay` draws;
`section` chooses images for the report, `explain` is a stage of its own.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
