"""Every exception that hubretrain raises on purpose.

HubretrainError
├── DataError      the images, their labels, or the files that name them
├── SplitError     a test split or folds that cannot be cut
├── ModuleError    a module that cannot be found, fetched, loaded or used
├── EngineError    an engine that is missing, or cannot run a module as asked
├── CacheError     a bottleneck file that is unfinished, foreign or damaged
├── HeadError      heads that cannot be fitted or read
├── WorkerError    workers that cannot be started or reached, or that die
└── RunError       a run folder that is missing, unfinished or cannot be written

Each message is one sentence or two: where, what is, what was expected, what to do.
The command line prints it and exits with 1; no traceback.
"""

from __future__ import annotations


class HubretrainError(Exception):
    """The root: catching this catches everything that hubretrain raises on purpose."""


class DataError(HubretrainError):
    """The images, their labels, or the files that name them are not as expected."""


class SplitError(HubretrainError):
    """A test split or folds cannot be cut as asked."""


class ModuleError(HubretrainError):
    """A module cannot be found, fetched, loaded or used."""


class EngineError(HubretrainError):
    """An engine is not installed, or cannot run a module as asked."""


class CacheError(HubretrainError):
    """A bottleneck file is unfinished, belongs to something else, or is damaged."""


class HeadError(HubretrainError):
    """Heads cannot be fitted to these features, or a head file cannot be read."""


class WorkerError(HubretrainError):
    """Workers cannot be started or reached, or die again and again."""


class RunError(HubretrainError):
    """A run folder is missing, unfinished, or cannot be written."""
