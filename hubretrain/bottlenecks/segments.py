"""Which columns of a feature vector are which layer's, and the table in the file that says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import h5py
import numpy as np

OUTPUT = "output"
MEAN, STANDARD_DEVIATION = "mean", "standard deviation"
TABLE = "segments"


@dataclass(frozen=True)
class Segment:
    """Adjacent columns of a feature vector that belong to one layer.

    Attributes:
        layer: The layer's name in the module's graph; `output` for the module's own output.
        statistic: `mean` or `standard deviation` over the layer's positions; `output` for the
            module's own output.
        first: First column, counted in the whole vector, which begins with the output.
        stop: Column after the last.
        height: Height of the layer's map, positions.
        width: Its width; the output is taken as 1 x 1.
    """

    layer: str
    statistic: str
    first: int
    stop: int
    height: int
    width: int


def output_segment(n_features: int) -> Segment:
    """Return the segment of a module's own output, which has `n_features` columns."""
    return Segment(OUTPUT, OUTPUT, 0, n_features, 1, 1)


def layer_segments(
    n_features: int, points: Iterable[tuple[str, int, int, int]]
) -> tuple[Segment, ...]:
    """Return the segments of inner layers: of each its means, then its standard deviations.

    Args:
        n_features: Columns of the module's own output, which come before.
        points: Name, height, width and number of channels of each layer, shallow to deep.
    """
    segments = []
    first = n_features
    for name, height, width, n_channels in points:
        for statistic in (MEAN, STANDARD_DEVIATION):
            segments.append(Segment(name, statistic, first, first + n_channels, height, width))
            first += n_channels
    return tuple(segments)


def layer_names(segments: Iterable[Segment]) -> tuple[str, ...]:
    """Return the names of the inner layers, each once, in order."""
    return tuple(dict.fromkeys(s.layer for s in segments if s.statistic != OUTPUT))


def write_segments(file: h5py.File, segments: Sequence[Segment]) -> None:
    """Write the table of a file's segments."""
    n_bytes = max(len(segment.layer.encode()) for segment in segments)
    columns = {
        "layer": h5py.string_dtype("utf-8", n_bytes),
        "statistic": h5py.string_dtype("utf-8", len(STANDARD_DEVIATION)),
        **dict.fromkeys(("first", "stop", "height", "width"), np.dtype("<i4")),
    }
    rows = [(s.layer.encode(), s.statistic.encode(), *astuple(s)[2:]) for s in segments]
    file[TABLE] = np.array(rows, dtype=list(columns.items()))


def read_segments(file: h5py.File) -> tuple[Segment, ...]:
    """Return the segments of an open file; of one without a table, its output alone.

    Raises:
        ValueError: The table is not one, or does not fit the views; the text says in what.
        KeyError: There is no view, or none of inner features.
    """
    n_features = int(file["view_000"].shape[1])
    if TABLE not in file:
        return (output_segment(n_features),)
    try:
        rows = file[TABLE][:].tolist()
        segments = tuple(
            Segment(layer.decode(), statistic.decode(), *columns)
            for layer, statistic, *columns in rows
        )
    except (AttributeError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"/{TABLE} is no table of segments: {error}") from error
    n_inner = int(file["layers_000"].shape[1])
    points = [
        (mean.layer, mean.height, mean.width, mean.stop - mean.first) for mean in segments[1::2]
    ]
    expected = (output_segment(n_features), *layer_segments(n_features, points))
    if segments != expected or segments[-1].stop != n_features + n_inner:
        raise ValueError(
            f"/{TABLE} does not divide the {n_features} columns of the output and the {n_inner} "
            "of inner layers"
        )
    if 2 * len(layer_names(segments)) != len(segments) - 1:
        raise ValueError(f"/{TABLE} names a layer twice")
    return segments
