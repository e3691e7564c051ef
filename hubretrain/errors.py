"""Every exception that hubretrain raises on purpose.

    HubretrainError
    ├── DataError      the images, their labels, or the files that name them
    ├── SplitError     a test split or folds that cannot be cut
    ├── ModuleError    a module that cannot be found, downloaded, loaded or used
    ├── EngineError    an engine that is missing, or cannot run a module as asked
    ├── CacheError     a bottleneck file that is unfinished, foreign or damaged
    ├── HeadError      heads that cannot be fitted or read
    ├── WorkerError    workers that cannot be started or reached, or that die
    ├── RunError       a run folder or an export that is missing, unfinished or damaged
    ├── WriteError     a file or folder that cannot be written
    └── LockedError    a file that another process is writing

Each message is one sentence or two: where, what is, what was expected, what to do. It names
parameters in backticks; the command line puts its flags in their place, prints the message and
exits with 1, without a traceback.
"""

from __future__ import annotations

_LONGEST_REASON = 300


class HubretrainError(Exception):
    """The root: catching this catches everything that hubretrain raises on purpose.

    Examples:
        >>> from hubretrain import HubretrainError, open_dataset
        >>> try:
        ...     open_dataset("data/nowhere")
        ... except HubretrainError as error:
        ...     print(type(error).__name__)
        DataError
    """


class DataError(HubretrainError):
    """The images, their labels, or the files that name them are not as expected."""


class SplitError(HubretrainError):
    """A test split or folds cannot be cut as asked."""


class ModuleError(HubretrainError):
    """A module cannot be found, downloaded, loaded or used."""


class NotTrainableError(ModuleError):
    """A module can be cached and screened, but not fine-tuned."""


class EngineError(HubretrainError):
    """An engine is not installed, or cannot run a module as asked."""


class CacheError(HubretrainError):
    """A bottleneck file is unfinished, belongs to something else, or is damaged."""


class HeadError(HubretrainError):
    """Heads cannot be fitted to these features, or a head file cannot be read."""


class WorkerError(HubretrainError):
    """Workers cannot be started or reached, or die again and again."""


class RunError(HubretrainError):
    """A run folder or an export is missing, unfinished or damaged."""


class WriteError(HubretrainError):
    """A file or folder cannot be written."""


class LockedError(HubretrainError):
    """Another process is writing the file."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, to stand in parentheses.

    At most 300 characters, without a full stop at the end; the error's type if it says nothing.
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ")[:_LONGEST_REASON] if lines else type(error).__name__


def unreadable(path: object, error: BaseException, remedy: str) -> str:
    """Return the sentence about a file that cannot be read.

    What only cannot be read at the moment, such as for a lack of permission, needs no repair.

    Args:
        path: The file.
        error: What reading it raised.
        remedy: What to do about a damaged file, a clause.
    """
    if isinstance(error, OSError) and error.errno:
        return f"{path} cannot be read ({error.strerror}); make it readable and run this again."
    return f"{path} is damaged or of another version ({first_line(error)}); {remedy}."
