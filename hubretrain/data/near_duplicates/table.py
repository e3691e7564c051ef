"""The near duplicates of every image content, kept in a table so that they are searched once.

On disk: `copies.csv` with columns `sha256, near, similarity, unreadable, search`. Each content
that was searched has a row with `near` blank, and each pair of near duplicates a row of its own.
`unreadable` says why a content could not be decoded; a file that could not be read is an error, for
a moment must not decide for ever on which side of a split a copy is. Where `search` is not
`SEARCH`, an earlier version of the search wrote the table, and everything is searched again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.arrays import Float32Array
from hubretrain.csv_tables import INTEGER, NAME, NUMBER, read_table, write_table
from hubretrain.data.digests import forget_digests
from hubretrain.errors import DataError
from hubretrain.storage import located

SEARCH = 2
"""To be raised when `search` finds other pairs than before."""

FILE_NAME = "copies.csv"
COLUMNS = ("sha256", "near", "similarity", "unreadable", "search")
_TYPES = dict.fromkeys(COLUMNS, NAME) | {"similarity": NUMBER, "search": INTEGER}
FeaturesOf = Callable[[Sequence[str]], Float32Array | None]
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class NearDuplicates:
    """The near duplicates among the contents of a data set.

    Attributes:
        pairs: Columns `a`, `b` (sha256 of two contents) and `similarity` (0.92 to 1).
        unreadable: Why a content could not be decoded, by its sha256.
    """

    pairs: pd.DataFrame
    unreadable: dict[str, str]


def find_near_duplicates(
    root: Path,
    paths: Sequence[str],
    sha256s: Sequence[str],
    folder: Path,
    *,
    features: FeaturesOf | None = None,
    progress: Progress | None = None,
) -> NearDuplicates:
    """Return the near duplicates of a data set; only new contents are compared, with all.

    Args:
        root: The folder that `paths` are relative to.
        paths: The image files.
        sha256s: Digest of each image file.
        folder: The data set's folder in the cache, whose `copies.csv` is read first and updated.
        features: Returns bottlenecks of contents, float32 (n_contents, n_features), or None: pairs
            that they find similar are compared too. Called only if there is a content to search.
        progress: Called with the name of the step, the number done, and the number of all.

    Raises:
        DataError: A file cannot be read now, or its bytes have changed; of the other images the
            result is kept.
    """
    path_of: dict[str, str] = {}
    for path, sha256 in zip(paths, sha256s, strict=True):
        path_of.setdefault(sha256, path)
    table = _read(folder)
    if table is None:
        dtypes = {name: str if kind == NAME else kind for name, kind in _TYPES.items()}
        table = pd.DataFrame({name: pd.Series(dtype=dtypes[name]) for name in COLUMNS})
    searched = set(table["sha256"])
    if not searched.issuperset(path_of):
        rows, unread = _search(root, path_of, searched, features, progress)
        table = pd.concat([table, rows])
        table = table.fillna({"near": "", "unreadable": ""}).assign(search=SEARCH)
        position_of = {sha256: position for position, sha256 in enumerate(path_of)}
        table = table[table["sha256"].isin(position_of)]
        table = table.sort_values(
            ["sha256", "near"], key=lambda column: column.map(position_of).fillna(-1), kind="stable"
        )
        write_table(folder / FILE_NAME, table[list(COLUMNS)], digested=True)
        if unread:
            sha256, reason = next(iter(unread.items()))
            forget_digests(folder, [path_of[sha256] for sha256 in unread])
            raise DataError(
                f"{located(root, path_of[sha256])}: {reason}, so near duplicates of it would be "
                "missed; rerun the command, or move the file away."
            )
    return _near_duplicates(table, path_of)


def read_near_duplicates(folder: Path) -> NearDuplicates | None:
    """Return the near duplicates that `copies.csv` holds; None if there was no search.

    None too where the table is damaged, or an earlier version of the search wrote it.

    Args:
        folder: The data set's folder in the cache.
    """
    table = _read(folder)
    return None if table is None else _near_duplicates(table, set(table["sha256"]))


def _near_duplicates(table: pd.DataFrame, contents: dict[str, str] | set[str]) -> NearDuplicates:
    """Return the pairs and the unreadable ones among some contents."""
    table = table[table["sha256"].isin(contents)]
    pairs = table[table["near"].isin(contents)]
    unreadable = table[table["unreadable"] != ""]
    return NearDuplicates(
        pd.DataFrame({"a": pairs["sha256"], "b": pairs["near"], "similarity": pairs["similarity"]})
        .astype({"similarity": float})
        .reset_index(drop=True),
        dict(zip(unreadable["sha256"], unreadable["unreadable"], strict=True)),
    )


def _search(
    root: Path,
    path_of: dict[str, str],
    searched: set[str],
    features: FeaturesOf | None,
    progress: Progress | None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return rows for contents that were not searched before, and for their pairs.

    Also why a content cannot be read now; it has no row, so that it is searched the next time.
    """
    # Here, because its imports take time and are for a search only.
    from hubretrain.data.near_duplicates.search import find_duplicates

    contents = list(path_of)
    duplicates = find_duplicates(
        [located(root, path) for path in path_of.values()],
        contents,
        known=np.array([sha256 in searched for sha256 in contents], bool),
        features=features(contents) if features is not None else None,
        progress=progress,
        workers=max(2, os.cpu_count() or 1),
    )
    pairs = duplicates.pairs
    pair_rows = pd.DataFrame(
        {
            "sha256": [contents[a] for a in pairs["a"]],
            "near": [contents[b] for b in pairs["b"]],
            "similarity": pairs["similarity"].round(4),
        }
    )
    unread = {contents[row]: duplicates.unreadable[row] for row in sorted(duplicates.unread)}
    new = [sha256 for sha256 in contents if sha256 not in searched and sha256 not in unread]
    reasons = {contents[row]: reason for row, reason in duplicates.unreadable.items()}
    new_rows = pd.DataFrame({"sha256": new, "unreadable": [reasons.get(s, "") for s in new]})
    return pd.concat([new_rows, pair_rows]), unread


def _read(folder: Path) -> pd.DataFrame | None:
    """Return the table; None if it is missing, damaged or of an earlier version of the search."""
    try:
        table = read_table(folder / FILE_NAME, _TYPES, digested=True)
    except (OSError, ValueError):
        return None
    is_current = list(table.columns) == list(COLUMNS) and (table["search"] == SEARCH).all()
    return table if is_current else None
