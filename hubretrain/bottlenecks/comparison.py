"""A bottleneck file beside what is required of it: what it has, lacks and would lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray, IntArray
from hubretrain.bottlenecks.layout import CONTENT_ATTRIBUTES, Attribute, RowIndex
from hubretrain.bottlenecks.reader import Bottlenecks
from hubretrain.bottlenecks.segments import Segment, layer_names
from hubretrain.errors import CacheError

# The digest says which module it is, the segments which layers; these say only what it is called,
# what it costs, how layers were requested, and how all of it is laid out.
_DESCRIPTIVE = {"about", "written_by", "module", "handle", "n_parameters", "gflops", "layers"}
_DESCRIPTIVE |= {"format", "format_version", "imported_from"}


@dataclass(frozen=True)
class FileComparison:
    """What a bottleneck file has of the rows and attributes that are required of it.

    Attributes:
        from_row: The file's row of each required row, int64; -1: it has none.
        n_new: Number of required rows that the file lacks.
        n_edited: Number of those whose path the file has with another content.
        n_gone: Number of the file's rows that are not required.
        differing: Attributes with another value: name, the file's value, the required one.
        kept_views: How many of the file's leading views still hold: all, only view 0, or none.
        layers: Segments of the inner layers that the file is to hold.
        rows: The required rows, and views beyond them that the file has finished.
    """

    from_row: IntArray
    n_new: int
    n_edited: int
    n_gone: int
    differing: tuple[tuple[str, Attribute | None, Attribute | None], ...]
    kept_views: int
    layers: tuple[Segment, ...]
    rows: RowIndex

    def for_rows(self, values: AnyArray, missing: int) -> AnyArray:
        """Return a value for each required row, from a value for each row of the file."""
        aligned = np.full(len(self.from_row), missing, dtype=values.dtype)
        aligned[self.from_row >= 0] = values[self.from_row[self.from_row >= 0]]
        return aligned


def compare_file(
    bottlenecks: Bottlenecks,
    rows: RowIndex,
    attributes: Mapping[str, Attribute],
    dtype: np.dtype[Any] | None = None,
    layers: Sequence[Segment] | None = None,
) -> FileComparison:
    """Compare a bottleneck file with what is required of it.

    Args:
        bottlenecks: The file.
        rows: The rows that it is to hold.
        attributes: Its root attributes to be.
        dtype: Its dtype to be. A wider one than the file's counts as a differing attribute: what
            was rounded stays so.
        layers: Segments of the inner layers that it is to hold; by default those that it holds.
            A file of the last layer alone can be given them; others count as differing.
    """
    row_of = {sha256: row for row, sha256 in enumerate(bottlenecks.sha256s)}
    from_row = np.array([row_of.get(sha256, -1) for sha256 in rows.sha256], dtype=np.int64)
    new_paths = [path for path, row in zip(rows.path, from_row, strict=True) if row < 0]
    cached_paths, required = set(bottlenecks.paths), set(rows.sha256)
    differing = differing_attributes(bottlenecks.attributes, attributes)
    if dtype is not None and dtype.itemsize > bottlenecks.dtype.itemsize:
        differing = (("dtype", bottlenecks.dtype.name, dtype.name), *differing)
    kept_views = 1 if differing else bottlenecks.n_views
    if any(name in (*CONTENT_ATTRIBUTES, "dtype") for name, _, _ in differing):
        kept_views = 0
    cached_layers = bottlenecks.segments[1:]
    layers = cached_layers if layers is None and kept_views else tuple(layers or ())
    if cached_layers and layers != cached_layers:
        differing = (*differing, ("layers", *_unlike_layers(bottlenecks, attributes, layers)))
    comparison = FileComparison(
        from_row,
        n_new=len(new_paths),
        n_edited=sum(path in cached_paths for path in new_paths),
        n_gone=sum(sha256 not in required for sha256 in bottlenecks.sha256s),
        differing=differing,
        kept_views=kept_views,
        layers=layers,
        rows=rows,
    )
    n_views = rows.n_views.astype(np.int16)
    if kept_views == bottlenecks.n_views:
        n_finished = comparison.for_rows(_finished_views(bottlenecks, n_views), 0)
        n_views = np.maximum(n_views, n_finished)
    # Finished or not: only quarantine.csv says that an image cannot be decoded.
    n_views = np.where(rows.n_views == 0, 0, n_views)
    return replace(comparison, rows=replace(rows, n_views=n_views.astype(np.int16)))


def differing_attributes(
    first: Mapping[str, Attribute], second: Mapping[str, Attribute]
) -> tuple[tuple[str, Attribute | None, Attribute | None], ...]:
    """Return the attributes that bottlenecks depend on and that differ: name, first, second."""
    names = [name for name in {**first, **second} if name not in _DESCRIPTIVE]
    return tuple(
        (name, first.get(name), second.get(name))
        for name in names
        if first.get(name) != second.get(name)
    )


def check_made_as(
    bottlenecks: Bottlenecks, module: str, attributes: Mapping[str, Attribute]
) -> None:
    """Raise where a file is of another module than its name says, or made otherwise than recorded.

    Args:
        bottlenecks: The file.
        module: Name of the module.
        attributes: Root attributes that the file had; further ones are left out.

    Raises:
        CacheError: It is.
    """
    bottlenecks.check_module(module)
    recorded = {name: attributes[name] for name in bottlenecks.attributes if name in attributes}
    for name, value, before in differing_attributes(bottlenecks.attributes, recorded):
        raise CacheError(
            f"{bottlenecks.path} was made with {name} = {value}, but the run was fitted on "
            f"{before}; run `hubretrain fit` again."
        )


def _unlike_layers(
    bottlenecks: Bottlenecks, attributes: Mapping[str, Attribute], layers: Sequence[Segment]
) -> tuple[str, str]:
    """Return the layers of a file and other ones in words that tell them apart."""
    cached, required = bottlenecks.layers, layer_names(layers)
    words = []
    for names, others, asked in (
        (cached, required, bottlenecks.attributes.get("layers", "last")),
        (required, cached, attributes.get("layers", "last")),
    ):
        alone = [name for name in names if name not in others]
        also = f", {alone[0]} among them" if alone else ""
        words.append(f"{asked} ({len(names)} inner layers{also})")
    return words[0], words[1]


def _finished_views(
    bottlenecks: Bottlenecks, n_views: npt.NDArray[np.int16]
) -> npt.NDArray[np.int16]:
    """Return how many leading views of each row are finished; zeros if none are beyond `n_views`.

    Zeros spare a pass over the whole file.
    """
    wanted = bottlenecks.n_views_of
    if wanted.max(initial=0) <= n_views.min(initial=0):
        return np.zeros_like(wanted)
    # Of the output: a file that is being given layers has lost nothing of what it had.
    finished = ~bottlenecks.todo("last") & (np.arange(bottlenecks.n_views) < wanted[:, None])
    return np.cumprod(finished, axis=1).sum(axis=1).astype(np.int16)


def is_up_to_date(
    bottlenecks: Bottlenecks,
    comparison: FileComparison,
    attributes: Mapping[str, Attribute],
    dtype: np.dtype[Any],
) -> bool:
    """Return whether a file has just the rows, views and layers to be: it needs only filling."""
    rows = comparison.rows
    return (
        bottlenecks.segments[1:] == comparison.layers
        and bottlenecks.attributes == dict(attributes)
        and bottlenecks.n_views == int(rows.n_views.max(initial=1))
        and bottlenecks.dtype == dtype
        and bottlenecks.sha256s == list(rows.sha256)
        and bottlenecks.paths == list(rows.path)
        and bool(np.array_equal(bottlenecks.n_views_of, rows.n_views))
    )


def check_nothing_lost(bottlenecks: Bottlenecks, comparison: FileComparison) -> None:
    """Raise where rebuilding the file would drop what was computed with other attributes.

    Raises:
        CacheError: The file is of another data set, or was made with other attributes.
    """
    remedy = "use another `cache` folder, or `overwrite` to compute it again."
    if bottlenecks.n_images and comparison.n_gone == bottlenecks.n_images:
        raise CacheError(
            f"{bottlenecks.path} holds {bottlenecks.n_images} images of another data set, "
            f"none of this one; {remedy}"
        )
    if comparison.differing:
        name, cached, required = comparison.differing[0]
        raise CacheError(
            f"{bottlenecks.path} was made with {name} = {cached}, and {required} is required now; "
            f"{remedy}"
        )
