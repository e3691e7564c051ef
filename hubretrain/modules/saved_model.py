"""The folder of a SavedModel: its digest, and whether it is complete."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from hubretrain.files import file_sha256

METADATA_FILE = "module.json"
_NAMES = ("saved_model.pb", "saved_model.pbtxt")
_SHARD = re.compile(r"variables\.data-\d{5}-of-(\d{5})")


def missing(folder: Path) -> str:
    """Return what a SavedModel's folder lacks, in words; empty where it is complete.

    Systems tidy temporary folders file by file, so a library's cache there may lack any part.
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
    """Return the size in bytes of each file but `module.json`, by its path within the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != METADATA_FILE)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def tree_sha256(folder: Path) -> str:
    """Return the SHA-256 of a SavedModel: of each file's relative path and bytes, by path.

    `fingerprint.pb` is left out, because it holds a random number that is new at each save.
    """
    digest = hashlib.sha256()
    excluded = {METADATA_FILE, "fingerprint.pb"}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in excluded):
        relative = path.relative_to(folder).as_posix()
        digest.update(f"{relative}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
