"""Merging several bottleneck files of one module into one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hubretrain.arrays import AnyArray, IntArray
from hubretrain.bottlenecks.comparison import differing_attributes
from hubretrain.bottlenecks.layout import RowIndex
from hubretrain.bottlenecks.reader import Bottlenecks
from hubretrain.bottlenecks.rebuild import make_file
from hubretrain.bottlenecks.writer import seal_file
from hubretrain.errors import CacheError
from hubretrain.locks import only_writer

_Location = tuple[int, int]  # number of a part, and a row in it


def merge_files(parts: Sequence[Path], output: Path) -> RowIndex:
    """Write the rows of several bottleneck files into one, in order of path.

    Args:
        parts: The files; a content may be in several of them if its bottlenecks are the same.
        output: The file to make; it may be one of the parts.

    Returns:
        The rows of the new file.

    Raises:
        CacheError: The parts do not belong together, or the file cannot be written.
        LockedError: Another process is writing the file.
    """
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Bottlenecks(part)) for part in parts]
        first = opened[0]
        for other in opened[1:]:
            _check_same_kind(first, other)
        rows, part_of, row_of = _merged_rows(opened)
        layers = first.layers

        def fill(view: int, start: int, stop: int, values: AnyArray) -> None:
            for p, part in enumerate(opened):
                if view < part.n_views:
                    of_part = part_of[start:stop] == p
                    to_rows = np.flatnonzero(of_part & (rows.n_views[start:stop] > view))
                    values[to_rows] = part.view(view, layers).take(row_of[start:stop][to_rows])

        with only_writer(output):
            make_file(
                *(output, rows, first.n_features, first.attributes, first.dtype, fill),
                layers=first.segments[1:],
            )
    seal_file(output)
    return rows


def _merged_rows(
    parts: Sequence[Bottlenecks],
) -> tuple[RowIndex, IntArray, IntArray]:
    """Return the rows of all parts in order of path, and the part and row that each comes from."""
    location_of: dict[str, _Location] = {}  # by content
    for p, part in enumerate(parts):
        for row, sha256 in enumerate(part.sha256s):
            location = location_of.get(sha256)
            location_of[sha256] = (
                (p, row) if location is None else _fuller(parts, location, (p, row))
            )
    table = sorted((parts[p].paths[row], s, p, row) for s, (p, row) in location_of.items())
    n_views = np.array([parts[p].n_views_of[row] for _, _, p, row in table], dtype=np.int16)
    rows = RowIndex(tuple(line[0] for line in table), tuple(line[1] for line in table), n_views)
    part_of = np.array([p for _, _, p, _ in table], dtype=np.int64)
    row_of = np.array([row for _, _, _, row in table], dtype=np.int64)
    return rows, part_of, row_of


def _check_same_kind(first: Bottlenecks, second: Bottlenecks) -> None:
    differing = differing_attributes(first.attributes, second.attributes)
    if differing:
        name, value, other_value = differing[0]
        raise CacheError(
            f"{first.path} and {second.path} do not belong together: {name} is {value} in the "
            f"first and {other_value} in the second; merge parts that were made by the same "
            "command."
        )
    if (first.n_features, first.dtype) != (second.n_features, second.dtype):
        raise CacheError(
            f"{first.path} and {second.path} do not belong together: {first.n_features} features "
            f"of {first.dtype} in the first, {second.n_features} of {second.dtype} in the second."
        )
    if first.segments != second.segments:
        raise CacheError(
            f"{first.path} and {second.path} do not belong together: {len(first.layers)} inner "
            f"layers in the first, {len(second.layers)} in the second, and not the same; merge "
            "parts that were made by the same command."
        )


def _fuller(parts: Sequence[Bottlenecks], first: _Location, second: _Location) -> _Location:
    """Return which of two rows of one content has more finished views.

    Raises:
        CacheError: They disagree on a view that both have finished.
    """

    def finished_views(location: _Location) -> list[AnyArray]:
        part, row = parts[location[0]], location[1]
        views = [part.view(v, part.layers)[row] for v in range(part.n_views_of[row])]
        return [view for view in views if not np.isnan(view).any()]

    views, other_views = finished_views(first), finished_views(second)
    if not all(np.array_equal(a, b) for a, b in zip(views, other_views, strict=False)):
        path = parts[first[0]].paths[first[1]]
        raise CacheError(
            f"{parts[first[0]].path} and {parts[second[0]].path} have different bottlenecks of "
            f"{path}; they were made on different kinds of machine: merge parts that do not "
            "overlap."
        )
    return first if len(views) >= len(other_views) else second
