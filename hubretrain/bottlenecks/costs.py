"""Cost log of forward passes: `passes.csv`, one line per module and run."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from hubretrain.csv_tables import INTEGER, NAME, NUMBER, read_table, write_table
from hubretrain.errors import first_line

_log = logging.getLogger(__name__)
_DTYPES = {
    "finished_at": NAME,
    "module": NAME,
    "engine": NAME,
    "precision": NAME,
    "n_forward": INTEGER,
    "seconds": NUMBER,
}
_COLUMNS = list(_DTYPES)


class ForwardPassLog:
    """Cost log of a data set's forward passes, to which each run appends.

    Args:
        folder: The data set's folder in the cache. A missing or damaged log is begun anew.

    Attributes:
        file: The `passes.csv` in it.
        table: Columns `finished_at` (UTC, ISO 8601), `module`, `engine`, `precision`,
            `n_forward` (forward passes) and `seconds` (in the module itself; of modules
            that ran together, its share).
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "passes.csv"
        self.table = pd.DataFrame(columns=_COLUMNS)
        try:
            self.table = read_table(self.file, _DTYPES, digested=True)[_COLUMNS]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError) as error:
            _log.warning(
                "%s cannot be read (%s): what earlier forward passes took is not known",
                *(self.file, first_line(error)),
            )

    def add(self, module: str, engine: str, precision: str, n_forward: int, seconds: float) -> None:
        """Append one run of one module and write the file.

        Args:
            module: The module's name.
            engine: `tensorflow` or `openvino`.
            precision: `f32`, `bf16` or `int8`.
            n_forward: Number of forward passes: images times views.
            seconds: Time that they took.

        Raises:
            WriteError: The file cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = [now, module, engine, precision, n_forward, round(seconds, 3)]
        line = pd.DataFrame([row], columns=_COLUMNS)
        self.table = pd.concat([self.table, line], ignore_index=True) if len(self.table) else line
        write_table(self.file, self.table, digested=True)

    def images_per_second(self, module: str) -> float | None:
        """Return the speed of a module's latest run, or None if the log has none."""
        runs = self.table[self.table["module"] == module]
        if runs.empty:
            return None
        latest = runs.iloc[-1]
        return float(latest["n_forward"] / max(latest["seconds"], 1e-9))
