"""What the forward passes cost: `passes.csv`, a line for each module of each run."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from hubretrain.files import write_table

DTYPES = {
    "finished_at": str,
    "module": str,  # text whatever it looks like: a module may be called 2024 or NA
    "engine": str,
    "precision": str,
    "n_forward": int,
    "seconds": float,
}
COLUMNS = list(DTYPES)


class ForwardPassLog:
    """The costs of a data set's bottlenecks, appended to by each run.

    Args:
        file: The `passes.csv`.

    Attributes:
        table: Columns `finished_at` (UTC), `module`, `engine`, `precision`,
            `n_forward` (forward passes) and `seconds` (in the module itself; of modules
            that ran together, its share).
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.table = pd.DataFrame(columns=COLUMNS)
        with contextlib.suppress(OSError, ValueError, KeyError):
            self.table = pd.read_csv(file, dtype=DTYPES, keep_default_na=False)[COLUMNS]

    def add(self, module: str, engine: str, precision: str, n_forward: int, seconds: float) -> None:
        """Notes one run of one module."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = [now, module, engine, precision, n_forward, round(seconds, 3)]
        line = pd.DataFrame([row], columns=COLUMNS)
        self.table = pd.concat([self.table, line], ignore_index=True) if len(self.table) else line
        write_table(self.file, self.table)

    def images_per_second(self, module: str) -> float | None:
        """The latest run's, or None where there was none."""
        of_module = self.table[self.table["module"] == module]
        if of_module.empty:
            return None
        last = of_module.iloc[-1]
        return float(last["n_forward"] / max(last["seconds"], 1e-9))
