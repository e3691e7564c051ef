"""Inner layers of a module whose feature maps are worth keeping, and which of them are kept.

This file imports no TensorFlow; `regions` finds the points in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Features of one image of one module, its output included. Heads are fitted on principal
#: components, so further layers cost disk and time to read more than they bring.
MAX_FEATURES = 16_384
#: Mean and standard deviation over the positions of a map.
N_STATISTICS = 2
#: What `spatial_statistics` adds to a variance: this much of the mean square, and a constant.
RELATIVE_VARIANCE, LEAST_VARIANCE = 1e-4, 1e-12
# Larger maps hold edges and colours of pixels, cost most of the pooling, and bring next to nothing.
_MAX_EDGE = 28
_MAX_EDGE_SHARE = 1 / 5

Layers = Literal["all", "last"] | int


@dataclass(frozen=True)
class LayerPoint:
    """A feature map inside a module.

    Attributes:
        name: Name of the operation that gives it, in the module's graph with all calls inlined; of
            ONNX modules, of the tensor.
        height: Height, positions; the number of a transformer's tokens.
        width: Width, positions; 1 of tokens.
        n_channels: Channels; it gives twice as many features, `spatial_statistics`.
    """

    name: str
    height: int
    width: int
    n_channels: int

    @property
    def n_features(self) -> int:
        """Number of features: a mean and a standard deviation of each channel."""
        return N_STATISTICS * self.n_channels

    def is_large(self, image_size: int) -> bool:
        """Return whether it is left out where there are smaller maps.

        Args:
            image_size: Height and width of the module's input, pixels.
        """
        return max(self.height, self.width) > max(_MAX_EDGE, _MAX_EDGE_SHARE * image_size)


def choose_layers(
    points: Sequence[LayerPoint], layers: Layers, n_output: int, image_size: int
) -> tuple[LayerPoint, ...]:
    """Choose the layers whose features are kept, shallow to deep.

    Maps with an edge above 28 positions and a fifth of the image are left out, unless there is
    nothing else, and so are those that alone exceed the budget of `MAX_FEATURES`. Of the others as
    many are taken as the budget holds, evenly over depth, the last one always.

    Args:
        points: The module's points, shallow to deep.
        layers: `all`; `last` for none of them, only the module's own output; or at most how many.
        n_output: Length of the module's own output.
        image_size: Height and width of its input, pixels.

    Examples:
        >>> points = [LayerPoint(str(edge), edge, edge, 64) for edge in (112, 56, 28, 28, 14, 7)]
        >>> [point.name for point in choose_layers(points, "all", 1280, 224)]
        ['28', '28', '14', '7']
        >>> [point.name for point in choose_layers(points, 2, 1280, 224)]
        ['28', '7']
    """
    if layers == "last" or not points:
        return ()
    small = [p for p in points if not p.is_large(image_size)] or points
    budget = MAX_FEATURES - n_output
    candidates = [p for p in small if p.n_features <= budget]
    most = len(candidates) if layers == "all" else min(int(layers), len(candidates))
    for n in range(most, 0, -1):
        chosen = [candidates[(i + 1) * len(candidates) // n - 1] for i in range(n)]
        if sum(p.n_features for p in chosen) <= budget:
            return tuple(chosen)
    return ()


def why_not_chosen(
    point: LayerPoint, chosen: Sequence[LayerPoint], n_output: int, image_size: int
) -> str:
    """Return why `choose_layers`, asked for all, left out a layer, in words; empty if it did not.

    Args:
        point: A point of the module.
        chosen: What was chosen.
        n_output: Length of the module's own output.
        image_size: Height and width of its input, pixels.
    """
    if point in chosen:
        return ""
    if n_output + point.n_features > MAX_FEATURES:
        return f"alone above the budget of {MAX_FEATURES:,} features"
    if point.is_large(image_size):
        return "large maps cost much and bring little"
    return f"left out evenly, for a budget of {MAX_FEATURES:,} features"
