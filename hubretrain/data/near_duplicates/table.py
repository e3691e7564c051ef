"""The near duplicates of every image content, kept in a table so that they are sought once.

On disk: `copies.csv` with columns `sha256, near, similarity, unreadable, search`. Each content
that was looked at has a row with `near` blank, and each pair that was found a row of its own.
`unreadable` says why a content could not be looked at. Where `search` is not `SEARCH`, an
earlier way of seeking found it and everything is sought again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.files import write_table
from hubretrain.storage import located

SEARCH = 1
"""Raise it when `duplicates` finds other pairs than before."""

COLUMNS = ("sha256", "near", "similarity", "unreadable", "search")
FeaturesOf = Callable[[Sequence[str]], npt.NDArray[np.float32] | None]


@dataclass(frozen=True)
class Copies:
    """The near duplicates among the contents of a data set.

    Attributes:
        pairs: Columns `a`, `b` (sha256 of two contents) and `similarity` (0.92 to 1).
        unreadable: Why a content could not be looked at, by its sha256.
    """

    pairs: pd.DataFrame
    unreadable: dict[str, str]


def near_copies(
    root: Path,
    paths: Sequence[str],
    sha256s: Sequence[str],
    table_file: Path,
    *,
    features: FeaturesOf | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Copies:
    """The near duplicates of a data set; only contents that are new since last time are compared.

    Args:
        root: The folder that `paths` are relative to.
        paths: The image files.
        sha256s: Their contents.
        table_file: The `copies.csv` to read first and to bring up to date.
        features: Gives bottlenecks of contents, float32 (n_contents, n_features), or None: more
            pairs are looked at where they are alike. Asked only if there is something to seek.
        progress: Called with what is going on, how many are done, and of how many.
    """
    path_of: dict[str, str] = {}
    for path, sha256 in zip(paths, sha256s, strict=True):
        path_of.setdefault(sha256, path)
    known = _read(table_file)
    sought = set(known["sha256"])
    if not sought.issuperset(path_of):
        known = pd.concat([known, _seek(root, path_of, sought, features, progress)])
        known = known.fillna({"near": "", "unreadable": ""}).assign(search=SEARCH)
        order = {sha256: place for place, sha256 in enumerate(path_of)}
        known = known[known["sha256"].isin(order)]
        known = known.sort_values(
            ["sha256", "near"], key=lambda column: column.map(order).fillna(-1), kind="stable"
        )
        write_table(table_file, known[list(COLUMNS)])
    known = known[known["sha256"].isin(path_of)]
    pairs = known[known["near"].isin(path_of)]
    bad = known[known["unreadable"] != ""]
    return Copies(
        pd.DataFrame({"a": pairs["sha256"], "b": pairs["near"], "similarity": pairs["similarity"]})
        .astype({"similarity": float})
        .reset_index(drop=True),
        dict(zip(bad["sha256"], bad["unreadable"], strict=True)),
    )


def _seek(
    root: Path,
    path_of: dict[str, str],
    sought: set[str],
    features: FeaturesOf | None,
    progress: Callable[[str, int, int], object] | None,
) -> pd.DataFrame:
    """Rows for contents that were not looked at before, and for their pairs."""
    from hubretrain.data.near_duplicates.search import (
        find_duplicates,  # its imports are for a search only
    )

    contents = list(path_of)
    found = find_duplicates(
        [located(root, path) for path in path_of.values()],
        contents,
        known=np.array([sha256 in sought for sha256 in contents], bool),
        features=features(contents) if features is not None else None,
        progress=progress,
        workers=max(2, os.cpu_count() or 1),
    )
    pairs = found.pairs
    rows = pd.DataFrame(
        {
            "sha256": [contents[a] for a in pairs["a"]],
            "near": [contents[b] for b in pairs["b"]],
            "similarity": pairs["similarity"].round(4),
        }
    )
    new = [sha256 for sha256 in contents if sha256 not in sought]
    why = {contents[row]: reason for row, reason in found.unreadable.items()}
    looked_at = pd.DataFrame({"sha256": new, "unreadable": [why.get(s, "") for s in new]})
    return pd.concat([looked_at, rows])


def _read(table_file: Path) -> pd.DataFrame:
    types = dict.fromkeys(COLUMNS, str) | {"similarity": float, "search": int}
    try:
        table = pd.read_csv(
            table_file, dtype=types, keep_default_na=False, na_values={"similarity": ""}
        )
        if list(table.columns) == list(COLUMNS) and (table["search"] == SEARCH).all():
            return table
    except (OSError, ValueError):
        pass  # missing or damaged: it is only a memory, and everything is sought again
    return pd.DataFrame({name: pd.Series(dtype=types[name]) for name in COLUMNS})
