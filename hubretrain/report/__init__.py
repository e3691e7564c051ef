"""The report stage: one page that shows why, not only how much.

`report` is the stage; `run_data` reads the run folder; `curves`, `label_errors`, `feature_map`,
`thumbnails`, `data_section` and `provenance` compute what is shown; `payload` and `charts`
prepare it for the page, `figures` draws PNG files, `html` renders; `data_check_page` is the page
of `data check`. A room of its own: `saliency`.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
