"""A SavedModel's folder: its digest, and whether it is whole."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from hubretrain.files import file_sha256

FACTS = "module.json"
_NAMES = ("saved_model.pb", "saved_model.pbtxt")
_SHARD = re.compile(r"variables\.data-\d{5}-of-(\d{5})")


def missing(folder: Path) -> str:
    """What a SavedModel's folder lacks, in words; empty where it is whole.

    Temporary folders are tidied file by file, so that a cache that was found in one may have
    any part missing.
    """
    if not folder.is_dir():
        return "does not exist"
    if not any((folder / name).is_file() for name in _NAMES):
        return "holds no saved_model.pb"
    shards = [p.name for p in (folder / "variables").glob("variables.data-*")]
    has_index = (folder / "variables" / "variables.index").is_file()
    if (folder / "variables").is_dir() and (shards or has_index):
        n_expected = max((int(m[1]) for s in shards if (m := _SHARD.fullmatch(s))), default=1)
        if not has_index:
            return "holds no variables/variables.index"
        if len(shards) < n_expected:
            return f"holds {len(shards)} of {n_expected} variables/variables.data files"
    return ""


def sizes(folder: Path) -> dict[str, int]:
    """Each file's size in bytes, by its path within the folder; without the facts."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FACTS)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def tree_sha256(folder: Path) -> str:
    """Digest of a SavedModel: of each file's relative path and bytes, in order of path.

    Without `fingerprint.pb`, which holds a random number that is new at each save.
    """
    digest = hashlib.sha256()
    left_out = {FACTS, "fingerprint.pb"}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in left_out):
        relative = path.relative_to(folder).as_posix()
        digest.update(f"{relative}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
