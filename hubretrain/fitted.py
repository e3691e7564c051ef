"""The modules of a fitted run, as they were when their bottlenecks were computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubretrain.errors import RunError
from hubretrain.modules import StoredModule, resolve


def module_of(name: str, facts: dict[str, Any]) -> StoredModule:
    """A module of a run, found again and checked.

    Args:
        name: As in the run.
        facts: What ``run.json`` says of the fit.

    Raises:
        RunError: The run has no such module, or it is another one by now.
        ModuleError: It cannot be had any more.
    """
    if name not in facts["modules"]:
        raise RunError(
            f"{name} was not fitted in this run (there are: {', '.join(facts['modules'])}); "
            "cache it and fit again, or name one of them."
        )
    cached = facts["modules"][name]
    low, high = (float(x) for x in cached["value_range"].strip("[]").split(","))
    handle = cached["handle"] if Path(cached["handle"]).exists() else name
    module = resolve(handle, image_size=cached["image_size"], value_range=(low, high))
    if module.sha256 != cached["module_sha256"]:
        raise RunError(
            f"{name} is not what it was when its bottlenecks were computed (sha256 "
            f"{cached['module_sha256'][:12]} then, {module.sha256[:12]} now); cache and fit again."
        )
    return module
