"""The result of screening one module, and the file that keeps it: `screened/<module>.h5`.

A fit that was interrupted, or that later modules join, reads what is there instead of fitting
anew. On disk: `about` (JSON: choices, costs, transferability) and `identity` as attributes,
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
import pandas as pd

from hubretrain.arrays import Float32Array
from hubretrain.evaluation import Predictions
from hubretrain.files import whole_file

FORMAT = "hubretrain screened module"
FORMAT_VERSION = 2


@dataclass(frozen=True, eq=False)
class ScreenResult:
    """The screening of one module: its heads, compared on images that they never saw.

    Attributes:
        module: Name of the module.
        identity: Digest of all that the result depends on.
        about: `chosen` and `ensemble_member` (settings of the best candidate by the metric of
            choice and by log loss), `uncorrected` (metric of choice of the first, optimistic),
            `n_heads`, `n_features`, `seconds_to_fit`, `hints` (transferability scores), `module`
            (attributes of the bottleneck file); later also `images_per_second` and
            `seconds_to_cache`.
        predictions: Name to probabilities; see `hubretrain.screening.screen`.
        candidates: One row per candidate, with its metrics before any correction.
    """

    module: str
    identity: str
    about: Mapping[str, Any]
    predictions: Mapping[str, Float32Array]
    candidates: pd.DataFrame

    @property
    def chosen(self) -> Predictions:
        """Predictions of the chosen head."""
        return Predictions(self.predictions["unadjusted"], self.predictions["adjusted"])

    @property
    def averaged(self) -> Predictions | None:
        """Predictions with logits averaged over the views; None where there is one view."""
        if "averaged_adjusted" not in self.predictions:
            return None
        names = ("averaged_unadjusted", "averaged_adjusted")
        return Predictions(*(self.predictions[name] for name in names))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            WriteError: The file cannot be written.
        """
        with whole_file(path) as aside, h5py.File(aside, "w") as file:
            file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
            file.attrs["module"], file.attrs["identity"] = self.module, self.identity
            file.attrs["about"] = json.dumps(self.about)
            for name, probs in self.predictions.items():
                file[f"predictions/{name}"] = probs.astype(np.float32)
            for name in self.candidates.columns:
                values = self.candidates[name].to_numpy()
                is_text = values.dtype.kind not in "fiub"
                file[f"candidates/{name}"] = (
                    values.astype(h5py.string_dtype()) if is_text else values
                )
            file["candidates"].attrs["columns"] = list(self.candidates.columns)

    @classmethod
    def load(cls, path: Path, identity: str) -> ScreenResult | None:
        """Return the result in the file; None where there is none, or one of another identity."""
        try:
            with h5py.File(path, "r") as file:
                written = file.attrs.get("format"), file.attrs.get("format_version")
                if written != (FORMAT, FORMAT_VERSION) or file.attrs["identity"] != identity:
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
