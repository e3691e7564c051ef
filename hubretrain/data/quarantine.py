"""Images that cannot be decoded: `quarantine.csv` with columns `path, reason, sha256`.

An image whose file cannot be read is not among them: networks fail for a moment, contents for good.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd

from hubretrain.csv_tables import NAME, read_table, write_table
from hubretrain.data.images import pixels_refused

FILE_NAME = "quarantine.csv"
COLUMNS = ("path", "reason", "sha256")


class Quarantine:
    """Contents that cannot be decoded, with the reason.

    Args:
        folder: The data set's folder in the cache, which holds the file.

    Attributes:
        file: The `quarantine.csv`.
        reasons: Reason for each content, by its sha256.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE_NAME
        self._changed = False
        self._dropped: set[str] = set()
        self.reasons, self._paths = self._read()

    def add(self, sha256: str, path: str, reason: str) -> None:
        """Put one image into quarantine."""
        self.reasons[sha256], self._paths[sha256], self._changed = reason, path, True

    def keep(self, present: dict[str, str], max_pixels: int = 0) -> None:
        """Drop contents that are no longer in the data set, and update the paths of the others.

        Args:
            present: Path of each content of the data set, by its sha256.
            max_pixels: Pixels of the largest image that is read now: smaller ones that were
                refused are dropped, too.
        """
        dropped = [
            sha256
            for sha256, reason in self.reasons.items()
            if sha256 not in present or 0 < (pixels_refused(reason) or 0) <= max_pixels
        ]
        self._dropped.update(dropped)
        for sha256 in dropped:
            del self.reasons[sha256], self._paths[sha256]
        moved = {s: present[s] for s in self.reasons if present[s] != self._paths[s]}
        self._paths.update(moved)
        self._changed = self._changed or bool(dropped or moved)

    def save(self) -> None:
        """Write the table if it changed; an empty one is removed."""
        if not self._changed:
            return
        reasons, paths = self._read()  # another run may have added to it
        self.reasons = {s: r for s, r in reasons.items() if s not in self._dropped} | self.reasons
        self._paths = paths | self._paths
        rows = sorted((self._paths[s], self.reasons[s], s) for s in self.reasons)
        if rows:
            write_table(self.file, pd.DataFrame(rows, columns=list(COLUMNS)), digested=True)
        else:
            self.file.unlink(missing_ok=True)
        self._changed = False

    def listed(self) -> list[tuple[str, str]]:
        """Return (path, reason) of each content, by path."""
        return sorted((self._paths[sha256], reason) for sha256, reason in self.reasons.items())

    def _read(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return reason and path of each content in the file; nothing if missing or damaged."""
        with contextlib.suppress(OSError, KeyError, ValueError):
            table = read_table(self.file, dict.fromkeys(COLUMNS, NAME), digested=True)
            paths, reasons, sha256s = (table[name].tolist() for name in COLUMNS)
            return dict(zip(sha256s, reasons, strict=True)), dict(zip(sha256s, paths, strict=True))
        return {}, {}
