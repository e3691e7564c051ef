"""What there is to explain at a place, found without TensorFlow."""

from __future__ import annotations

from pathlib import Path

from hubretrain.errors import RunError
from hubretrain.export.manifest import export_of as export_of
from hubretrain.export.manifest import heads_sha256
from hubretrain.files import file_sha256
from hubretrain.runs import Run


def identity_of(place: Path, module: str | None) -> str:
    """What an explanation follows from besides the images, without loading anything."""
    folder = export_of(place)
    if folder is not None and module is None:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "fingerprint.pb")
        return "\n".join(f"{p.name} {file_sha256(p)}" for p in files)
    name = module or shortlisted(Run(place))
    return f"{name} {heads_sha256(Run(place), name)}"


def shortlisted(run: Run) -> str:
    """The first module of the shortlist.

    Raises:
        RunError: The run is not fitted.
    """
    fit = run.facts().get("fit")
    if fit is None:
        raise RunError(
            f"{run.folder} holds neither an export nor a finished fit; name an export folder, or "
            "run first: hubretrain fit"
        )
    return str(fit["shortlist"][0])
