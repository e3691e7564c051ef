"""Several bottleneck files of one module become one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.bottlenecks.layout import RowIndex
from hubretrain.bottlenecks.reader import Bottlenecks
from hubretrain.bottlenecks.rebuild import differing_attributes, gather, make
from hubretrain.bottlenecks.writer import seal_file
from hubretrain.errors import CacheError
from hubretrain.locks import only_writer


def merge_files(parts: Sequence[Path], output: Path) -> RowIndex:
    """Writes the rows of several bottleneck files into one, in order of path.

    Args:
        parts: The files; a content may be in several of them if its bottlenecks are the same.
        output: The file to make; it may be one of the parts.

    Returns:
        The rows of the new file.

    Raises:
        CacheError: The parts do not belong together, or the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Bottlenecks(part)) for part in parts]
        first = opened[0]
        for other in opened[1:]:
            _belong_together(first, other)
        source: dict[str, tuple[int, int]] = {}  # content: its part, and its row in there
        for p, part in enumerate(opened):
            for row, sha256 in enumerate(part.sha256s):
                if sha256 not in source:
                    source[sha256] = (p, row)
                else:
                    source[sha256] = _better(opened, source[sha256], (p, row))
        found = [(opened[p].paths[row], sha256, p, row) for sha256, (p, row) in source.items()]
        found.sort()
        part_of = np.array([p for _, _, p, _ in found], dtype=np.int64)
        row_of = np.array([row for _, _, _, row in found], dtype=np.int64)
        n_views = np.array([opened[p].n_views_of[row] for _, _, p, row in found], dtype=np.int16)
        rows = RowIndex(tuple(f[0] for f in found), tuple(f[1] for f in found), n_views)

        def rows_of(v: int, start: int, stop: int, values: npt.NDArray[Any]) -> None:
            for p, part in enumerate(opened):
                if v < part.n_views:
                    mine = (part_of[start:stop] == p) & (n_views[start:stop] > v)
                    into = np.flatnonzero(mine)
                    gather(part.view(v), row_of[start:stop][into], values, into)

        dtype, attributes, n_features = first.view(0).dtype, first.attributes, first.n_features
        with only_writer(output):
            make(output, rows, n_features, attributes, dtype, rows_of)
    seal_file(output)
    return rows


def _belong_together(first: Bottlenecks, other: Bottlenecks) -> None:
    differing = differing_attributes(first.attributes, other.attributes)
    if differing:
        name, one, two = differing[0]
        raise CacheError(
            f"{first.path} and {other.path} do not belong together: {name} is {one} in the first "
            f"and {two} in the second; merge parts that were made by the same command."
        )
    one, two = first.view(0), other.view(0)
    if (one.shape[1], one.dtype) != (two.shape[1], two.dtype):
        raise CacheError(
            f"{first.path} and {other.path} do not belong together: {one.shape[1]} features of "
            f"{one.dtype} in the first, {two.shape[1]} of {two.dtype} in the second."
        )


def _better(
    parts: Sequence[Bottlenecks], one: tuple[int, int], two: tuple[int, int]
) -> tuple[int, int]:
    """Which of two rows of one content has more; both must agree where both are done."""

    def views_of(place: tuple[int, int]) -> list[npt.NDArray[Any]]:
        part, row = parts[place[0]], place[1]
        views = [part.view(v)[row] for v in range(part.n_views_of[row])]
        return [view for view in views if not np.isnan(view).any()]

    of_one, of_two = views_of(one), views_of(two)
    if not all(np.array_equal(a, b) for a, b in zip(of_one, of_two, strict=False)):
        path = parts[one[0]].paths[one[1]]
        raise CacheError(
            f"{parts[one[0]].path} and {parts[two[0]].path} have different bottlenecks of {path}; "
            "they were made on different kinds of machine: merge parts that do not overlap."
        )
    return one if len(of_one) >= len(of_two) else two
