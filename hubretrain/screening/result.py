"""The result of screening one module, its file, and two results that are made one.

A fit that was interrupted, or that later modules join, reads what is there instead of fitting
anew.

On disk, `screened/<heads>/<module>.h5`: `about` (JSON: choices, costs, transferability) and
`identity` as attributes, `predictions/<name>` float32 (n_validated, n_classes),
`chosen_by/<choice>` float64 (1 + n_parts,), `candidates/<column>`, and the heads that are kept in
`heads/`. Its first 512 bytes hold the digest of the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from hubretrain.arrays import BoolArray, Float32Array, FloatArray, IntArray
from hubretrain.evaluation import Calibration, Predictions, metric_named
from hubretrain.hdf5 import array_in, check_digest_block, open_hdf5
from hubretrain.heads import ModuleHeads, digested_hdf5

FORMAT = "hubretrain screened module"
FORMAT_VERSION = 7
CHOSEN, NESTED, MEMBER = "chosen", "nested", "ensemble_member"
DEPLOYED_OF = {  # of the best by all images alone
    CHOSEN: (
        "deployed",
        "deployed_adjusted",
        "deployed_averaged",
        "deployed_averaged_adjusted",
    ),
    MEMBER: ("ensemble_member", "ensemble_member_averaged"),
}
CHOSEN_ABOUT = ("calibration", "uncorrected", "n_features")  # what is known of the chosen head
PREDICTIONS_OF = {
    CHOSEN: ("unadjusted", "adjusted", "averaged_unadjusted", "averaged_adjusted"),
    NESTED: ("nested_unadjusted", "nested_adjusted"),
    MEMBER: ("member", "member_averaged"),
}
WITHIN = "member_within"  # of the member that was chosen without the other part


@dataclass(frozen=True, eq=False)
class ScreenResult:
    """The screening of one module: its heads, compared on images that they never saw.

    Attributes:
        module: Name of the module.
        identity: Digest of all that the result depends on.
        about: `chosen` and `ensemble_member` (settings of the best candidate by the metric of
            choice and by log loss), `calibration` (temperature of the first; see `calibration`),
            `uncorrected` (metric of choice of the first, optimistic),
            `n_heads`, `n_features`, `n_views_averaged`, `seconds_to_fit`, `hints` (transferability
            scores), `module` (attributes of the bottleneck file); later also `images_per_second`
            and `seconds_to_cache`.
        predictions: Name to probabilities; see `hubretrain.screening.screen`.
        candidates: One row per candidate, with its metrics before any correction.
        chosen_by: What was chosen by, of `chosen` and `nested` the metric of choice and of
            `ensemble_member` the log loss: float64 (1 + n_parts,), of the best by all images and
            then of the best without each part; see `Selection` and `Outside`.
    """

    module: str
    identity: str
    about: Mapping[str, Any]
    predictions: Mapping[str, Float32Array]
    candidates: pd.DataFrame
    chosen_by: Mapping[str, FloatArray]

    @property
    def chosen(self) -> Predictions:
        """Predictions of the chosen head."""
        deployed = self._predictions("deployed", "deployed_adjusted")
        return self._predictions("unadjusted", "adjusted")._replace(deployed=deployed)

    @property
    def nested(self) -> Predictions:
        """Predictions of heads chosen by others that were fitted without the image's half."""
        return self._predictions("nested_unadjusted", "nested_adjusted")

    @property
    def calibration(self) -> Calibration:
        """Temperature of the deployed head, fitted on the predictions `deployed`."""
        return Calibration(**self.about["calibration"])

    @property
    def n_views_averaged(self) -> int:
        """Views of each image that `averaged` is the mean over; 1 where there is one view."""
        return int(self.about["n_views_averaged"])

    @property
    def averaged(self) -> Predictions | None:
        """Predictions averaged over the views; None where there is one view."""
        if "averaged_adjusted" not in self.predictions:
            return None
        deployed = self._predictions("deployed_averaged", "deployed_averaged_adjusted")
        averaged = self._predictions("averaged_unadjusted", "averaged_adjusted")
        return averaged._replace(deployed=deployed)

    def _predictions(self, unadjusted: str, adjusted: str) -> Predictions:
        return Predictions(self.predictions[unadjusted], self.predictions[adjusted])

    def save(self, path: Path, heads: ModuleHeads) -> None:
        """Write the file, whole or not at all, with the heads that are kept.

        Raises:
            WriteError: The file cannot be written.
        """
        with digested_hdf5(path) as file:
            file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
            file.attrs["module"], file.attrs["identity"] = self.module, self.identity
            file.attrs["about"] = json.dumps(self.about)
            for name, probs in self.predictions.items():
                file[f"predictions/{name}"] = probs.astype(np.float32)
            for name, values in self.chosen_by.items():
                file[f"chosen_by/{name}"] = values
            for name in self.candidates.columns:
                column = self.candidates[name].to_numpy()
                is_text = column.dtype.kind not in "fiub"
                file[f"candidates/{name}"] = (
                    column.astype(h5py.string_dtype()) if is_text else column
                )
            file["candidates"].attrs["columns"] = list(self.candidates.columns)
            heads.write(file.create_group("heads"))

    @staticmethod
    def load_heads(path: Path) -> ModuleHeads:
        """Return the heads in the file of a result that `load` has read."""
        with open_hdf5(path) as file:
            return ModuleHeads.read(file["heads"])

    @classmethod
    def load(cls, path: Path, identity: str) -> ScreenResult | None:
        """Return the result in the file; None where there is none, or one of another identity."""
        try:
            check_digest_block(path)
            with open_hdf5(path) as file:
                written = tuple(str(file.attrs.get(n)) for n in ("format", "format_version"))
                if written != (FORMAT, str(FORMAT_VERSION)):
                    return None
                if str(file.attrs["identity"]) != identity or not ModuleHeads.are_in(file["heads"]):
                    return None
                ModuleHeads.read(file["heads"])  # so that damaged ones are fitted anew
                table = {}
                for name in file["candidates"].attrs["columns"]:
                    values = array_in(file, f"candidates/{name}", "fiubO", 1)
                    table[str(name)] = values.asstr()[:] if values.dtype.kind == "O" else values[:]
                return cls(
                    str(file.attrs["module"]),
                    identity,
                    json.loads(file.attrs["about"]),
                    _arrays(file["predictions"], 2),
                    pd.DataFrame(table),
                    _arrays(file["chosen_by"], 1),
                )
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            return None


def _arrays(group: h5py.Group, n_axes: int) -> dict[str, Any]:
    return {str(name): array_in(group, name, "f", n_axes)[:] for name in group}


def merged(
    first: ScreenResult, second: ScreenResult, metric: str, parts: IntArray, effect: str
) -> ScreenResult:
    """Return the screening of the candidates of both, of which the first are the simpler.

    Nothing is fitted again: the best of a union is the better of the two bests, also without each
    part of the images. So what was chosen in either, and by what values, gives exactly the choice
    and the cross-fitted predictions that screening all candidates at once would give.

    Args:
        first: Screening of a module; its baselines, hints and effects are kept.
        second: Screening of the same module with other kinds of heads.
        metric: Metric of choice.
        parts: int (n_validated,), from `choice_parts`.
        effect: Name of the effect of the second's heads instead of the first's.
    """
    predictions = dict(first.predictions)
    chosen_by, about = {}, dict(first.about)
    for name, is_better in _is_better(first, second, metric).items():
        best = second if is_better[0] else first
        if name in DEPLOYED_OF:
            about[name] = best.about[name]
            predictions |= {
                of: best.predictions[of] for of in DEPLOYED_OF[name] if of in predictions
            }
        if name == CHOSEN:
            about |= {key: best.about[key] for key in CHOSEN_ABOUT}
        chosen_by[name] = np.where(is_better, second.chosen_by[name], first.chosen_by[name])
        of_second = dict.fromkeys(PREDICTIONS_OF[name], is_better[1:][parts])
        if name == MEMBER:
            of_second[WITHIN] = is_better[1:][1 - parts]
        for kind, mask in of_second.items():
            if kind in predictions:
                predictions[kind] = np.where(
                    mask[:, None], second.predictions[kind], first.predictions[kind]
                )
    predictions[f"with_{effect}"] = second.chosen.of(metric)
    predictions[f"without_{effect}"] = first.chosen.of(metric)
    about |= {
        name: first.about[name] + second.about[name] for name in ("n_heads", "seconds_to_fit")
    }
    about[f"seconds_of_{effect}"] = second.about["seconds_to_fit"]
    identity = hashlib.sha256(f"{first.identity} {second.identity}".encode()).hexdigest()
    candidates = pd.concat([first.candidates, second.candidates], ignore_index=True)
    return ScreenResult(first.module, identity, about, predictions, candidates, chosen_by)


def merged_heads(
    first: ScreenResult, second: ScreenResult, metric: str, heads: tuple[ModuleHeads, ModuleHeads]
) -> ModuleHeads:
    """Return the heads that are kept of the candidates of both; `heads` are those of either."""
    is_better = _is_better(first, second, metric)
    chosen, member = (heads[int(is_better[name][0])] for name in (CHOSEN, MEMBER))
    return ModuleHeads(
        chosen.deployed, chosen.warm_start, member.ensemble_member, chosen.class_names
    )


def _is_better(first: ScreenResult, second: ScreenResult, metric: str) -> dict[str, BoolArray]:
    """Return where the second's choices are better, of equal ones the first's: (1 + n_parts,)."""
    result: dict[str, Any] = {}
    for name, by in ((CHOSEN, metric), (NESTED, metric), (MEMBER, "log_loss")):
        sign = 1 if metric_named(by).higher_is_better else -1
        scores = [np.nan_to_num(sign * of.chosen_by[name], nan=-np.inf) for of in (first, second)]
        result[name] = scores[1] > scores[0]
    return result
