"""What fitting one module found, and the file that keeps it: `screened/<module>.h5`.

A fit that is stopped, or that later modules join, reads what is there instead of fitting anew.
On disk: `about` (JSON: what was chosen, costs, hints) and `identity` as attributes,
`predictions/<name>` float32 (n_validated, n_classes), and `candidates/<column>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.files import whole_file

FORMAT = "hubretrain screened module"
FORMAT_VERSION = 2


@dataclass(frozen=True, eq=False)
class ScreenResult:
    """The heads of one module, compared on images that they never saw.

    Attributes:
        module: Its name.
        identity: Digest of all that the result depends on.
        about: Facts: `chosen` and `likeliest` (trained_on, head, class_weight, l2, adjust),
            `naive`, `n_heads`, `seconds_to_fit`, `module` (of the cache), `hints`.
        predictions: Name to probabilities float32 (n_validated, n_classes), each image's from
            heads that were neither fitted nor chosen on it; see `screening`.
        candidates: One row a candidate, with its metrics before any correction.
    """

    module: str
    identity: str
    about: Mapping[str, Any]
    predictions: Mapping[str, npt.NDArray[np.float32]]
    candidates: pd.DataFrame

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            WriteError: It cannot be written.
        """
        with whole_file(path) as aside, h5py.File(aside, "w") as file:
            file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
            file.attrs["module"], file.attrs["identity"] = self.module, self.identity
            file.attrs["about"] = json.dumps(self.about)
            for name, said in self.predictions.items():
                file[f"predictions/{name}"] = said.astype(np.float32)
            for name in self.candidates.columns:
                values = self.candidates[name].to_numpy()
                is_text = values.dtype.kind not in "fiub"
                file[f"candidates/{name}"] = (
                    values.astype(h5py.string_dtype()) if is_text else values
                )
            file["candidates"].attrs["columns"] = list(self.candidates.columns)

    @classmethod
    def load(cls, path: Path, identity: str) -> ScreenResult | None:
        """Reads the file where it is there and of this identity; else None: fit anew."""
        try:
            with h5py.File(path, "r") as file:
                known = file.attrs.get("format"), file.attrs.get("format_version")
                if known != (FORMAT, FORMAT_VERSION) or file.attrs["identity"] != identity:
                    return None
                table = {}
                for name in file["candidates"].attrs["columns"]:
                    values = file[f"candidates/{name}"]
                    is_text = h5py.check_string_dtype(values.dtype) is not None
                    table[str(name)] = values.asstr()[:] if is_text else values[:]
                return cls(
                    str(file.attrs["module"]),
                    identity,
                    json.loads(file.attrs["about"]),
                    {str(name): values[:] for name, values in file["predictions"].items()},
                    pd.DataFrame(table),
                )
        except (OSError, KeyError, ValueError):
            return None
