"""The report stage: one page that shows why, not only how much.

`report` is the stage: it reads a run (`run_data`), computes each section and renders the page.
`sections`, `data_section`, `provenance` and `saliency` return the template values of sections;
`charts`, `curves`, `depth`, `label_errors`, `feature_map` and `thumbnails` compute what they show;
`payload` is the data of the page's script, `figures` draws PNG files; `html` renders, and has the
page of `data check`. The room `saliency` also explains single images.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
