"""Images that cannot be decoded: ``quarantine.csv`` with ``path``, ``reason`` and ``sha256``."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd

from hubretrain.files import write_table


class Quarantine:
    """What cannot be decoded, by content, with the reason.

    Args:
        file: The ``quarantine.csv``.

    Attributes:
        reasons: The reason for each content, by its sha256.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.reasons: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._changed = False
        with contextlib.suppress(OSError, KeyError, ValueError):
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
            self._paths = dict(zip(table["sha256"], table["path"], strict=True))
            self.reasons = dict(zip(table["sha256"], table["reason"], strict=True))

    def add(self, sha256: str, path: str, reason: str) -> None:
        """Notes one image."""
        self.reasons[sha256], self._paths[sha256], self._changed = reason, path, True

    def keep(self, present: dict[str, str]) -> None:
        """Drops what is no longer in the data set, and takes up where the rest is now."""
        gone = [sha256 for sha256 in self.reasons if sha256 not in present]
        for sha256 in gone:
            del self.reasons[sha256], self._paths[sha256]
        moved = {s: present[s] for s in self.reasons if present[s] != self._paths[s]}
        self._paths.update(moved)
        self._changed = self._changed or bool(gone or moved)

    def save(self) -> None:
        """Writes the table if it changed; an empty one is removed."""
        if not self._changed:
            return
        rows = sorted((self._paths[s], self.reasons[s], s) for s in self.reasons)
        if rows:
            write_table(self.file, pd.DataFrame(rows, columns=["path", "reason", "sha256"]))
        else:
            self.file.unlink(missing_ok=True)
        self._changed = False
