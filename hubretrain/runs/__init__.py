"""A run: the folder of one fit and of what followed it.

`run` has its paths, reads and writes `run.json`, and lets the files of a fit appear together;
`records` are the contents of `run.json`; `run_tables` are the CSV files; `listing` lists the runs
of a folder, and removes one.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
