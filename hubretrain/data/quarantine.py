"""Images that cannot be decoded: `quarantine.csv` with `path`, `reason` and `sha256`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd

from hubretrain.files import write_table


class Quarantine:
    """What cannot be decoded, by content, with the reason.

    Args:
        file: The `quarantine.csv`.

    Attributes:
        reasons: The reason for each content, by its sha256.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._changed = False
        self._gone: set[str] = set()
        self.reasons, self._paths = self._read()

    def add(self, sha256: str, path: str, reason: str) -> None:
        """Notes one image."""
        self.reasons[sha256], self._paths[sha256], self._changed = reason, path, True

    def keep(self, present: dict[str, str]) -> None:
        """Drops what is no longer in the data set, and takes up where the rest is now."""
        gone = [sha256 for sha256 in self.reasons if sha256 not in present]
        self._gone.update(gone)
        for sha256 in gone:
            del self.reasons[sha256], self._paths[sha256]
        moved = {s: present[s] for s in self.reasons if present[s] != self._paths[s]}
        self._paths.update(moved)
        self._changed = self._changed or bool(gone or moved)

    def save(self) -> None:
        """Writes the table if it changed; an empty one is removed."""
        if not self._changed:
            return
        reasons, paths = self._read()  # another run may have added to it
        self.reasons = {s: r for s, r in reasons.items() if s not in self._gone} | self.reasons
        self._paths = paths | self._paths
        rows = sorted((self._paths[s], self.reasons[s], s) for s in self.reasons)
        if rows:
            write_table(self.file, pd.DataFrame(rows, columns=["path", "reason", "sha256"]))
        else:
            self.file.unlink(missing_ok=True)
        self._changed = False

    def listed(self) -> list[tuple[str, str]]:
        """(path, reason) of each, by path."""
        return sorted((self._paths[sha256], why) for sha256, why in self.reasons.items())

    def _read(self) -> tuple[dict[str, str], dict[str, str]]:
        """Reason and path of each content in the file."""
        with contextlib.suppress(OSError, KeyError, ValueError):
            table = pd.read_csv(self.file, dtype=str, keep_default_na=False)
            columns = table["sha256"], table["reason"], table["path"]
            sha256s, reasons, paths = (column.tolist() for column in columns)
            return dict(zip(sha256s, reasons, strict=True)), dict(zip(sha256s, paths, strict=True))
        return {}, {}
