"""What a run was fitted on: its facts, and its modules as they were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hubretrain.errors import RunError
from hubretrain.modules import StoredModule, resolve, stored
from hubretrain.runs import Run


def fit_record(run: Run) -> dict[str, Any]:
    """What `run.json` says of the fit.

    Raises:
        RunError: There was none yet.
    """
    facts: dict[str, Any] | None = run.facts().get("fit")
    if facts is None:
        raise RunError(f"{run.folder} holds no finished fit; run first: hubretrain fit")
    return facts


def check_fitted(names: Iterable[str], facts: dict[str, Any]) -> None:
    """Raises RunError where a run, whose facts of the fit these are, lacks a module."""
    for name in names:
        if name not in facts["modules"]:
            raise RunError(
                f"{name} was not fitted in this run (there are: {', '.join(facts['modules'])}); "
                "cache it and fit again, or name one of them."
            )


def restore_module(name: str, facts: dict[str, Any]) -> StoredModule:
    """A module of a run, found again and checked: in the store, else by its handle.

    Args:
        name: As in the run.
        facts: What `run.json` says of the fit.

    Raises:
        RunError: The run has no such module, or it is another one by now.
        ModuleError: It cannot be had any more.
    """
    check_fitted([name], facts)
    cached = facts["modules"][name]
    low, high = (float(x) for x in cached["value_range"].strip("[]").split(","))
    size, sha256 = cached["image_size"], cached["module_sha256"]
    module = stored(name, image_size=size, value_range=(low, high))
    if module is None or module.sha256 != sha256:
        module = resolve(cached["handle"], image_size=size, value_range=(low, high))
    if module.sha256 != sha256:
        raise RunError(
            f"{name} is not what it was when its bottlenecks were computed (sha256 "
            f"{sha256[:12]} then, {module.sha256[:12]} now); cache and fit again."
        )
    return module
