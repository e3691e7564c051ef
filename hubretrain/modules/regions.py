"""Search for the inner layers of a graph that are worth keeping, by structure alone.

The unit is a region: one operation that makes a new map (its root: a convolution, a depthwise
convolution, a sum or concatenation of maps, a pool) and all elementwise operations on that map
(bias, BatchNorm, activation, a gate for each channel). What leaves a region with an activation is
what a network's authors draw as the output of a layer or block.

It knows operations by TensorFlow's names; a graph of another library translates its own
(`Graph`). This file imports no TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hubretrain.modules.layers import LayerPoint

_ACTIVATIONS = {
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign", "Tanh", "Sigmoid"),
    *("Erf", "Erfc", "Maximum", "Minimum", "ClipByValue", "Gelu", "Mish", "Swish"),
}
_ELEMENTWISE = _ACTIVATIONS | {
    *("Identity", "StopGradient", "PreventGradient", "CheckNumerics", "Cast", "Snapshot"),
    *("BiasAdd", "Add", "AddV2", "Sub", "Mul", "RealDiv", "Neg", "Abs", "Square", "Pow", "Exp"),
    *("SquaredDifference", "Sqrt", "Rsqrt", "SelectV2", "Select", "AddN"),
    *("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"),
    *("BatchNormWithGlobalNormalization", "Log1p", "Log", "Softmax"),
    # The same numbers in another shape: dense layers and dilated convolutions are wrapped in these.
    *("Reshape", "Squeeze", "ExpandDims", "BatchToSpaceND"),
}
_CONVOLUTIONS = {"Conv2D", "MatMul", "BatchMatMulV2", "Einsum"}
_POOLS = {"MaxPool", "MaxPoolV2", "AvgPool", "Pad", "PadV2", "MirrorPad", "SpaceToBatchND"}
_CONCATENATION = "ConcatV2"
#: Images of which the shapes of a graph are.
N_IMAGES = 2


class Graph(Protocol):
    """A flat graph: `ModuleGraph`, or what looks like one.

    Attributes:
        path: The operations on some path from the images to the output, in topological order; each
            has a `type`, and `inputs` and `outputs` with an `op`, a `shape` (images first, channels
            last), a `dtype` and `consumers()`.
        position: Index of each operation in `path`.
    """

    path: list[Any]
    position: dict[Any, int]

    def point_name(self, operation: Any) -> str:
        """Return the name of an operation's first output."""


@dataclass(eq=False)
class _Region:
    """One map and what is done to it elementwise.

    Attributes:
        root: The operation that makes the map.
        is_sum: Whether that adds (or multiplies) two maps or more.
        operations: All of the region, in topological order.
        inputs: The regions that the root reads.
        activated: Operations behind an activation.
    """

    root: Any
    is_sum: bool = False
    operations: list[Any] = field(default_factory=list)
    inputs: list[_Region] = field(default_factory=list)
    activated: set[Any] = field(default_factory=set)

    @property
    def is_concatenation(self) -> bool:
        return self.root.type == _CONCATENATION

    @property
    def is_merge(self) -> bool:
        return self.is_sum or self.is_concatenation


def layer_points(graph: Graph) -> tuple[LayerPoint, ...]:
    """Return the inner layers of a module whose features are worth keeping, shallow to deep.

    A region with an activation is one if its root is a sum or a concatenation of maps, or a full
    convolution (a depthwise one mixes no channels), and if no shortcut goes around it. One that a
    shortcut goes around is inside of a block: it is a point if it is wider than what the shortcut
    ends in, as the expansion of an inverted bottleneck is, or if other blocks as wide stand
    between it and that end. A concatenation of activations needs none of its own.

    Of tokens, (n_images, n_tokens, n_channels), the sums are the points in which shortcuts around
    activations end: a transformer's blocks. Their hidden layers are several times as wide.
    """
    return _Search(graph).points()


def cuts(graph: Graph) -> list[Any]:
    """Return the operations that every path passes, from the pixels up; the output is one.

    Number the operations of `path` in their order. Every edge leads from a lower number to a
    higher one. Then every path from images to output passes operation k if and only if no edge
    (i, j) with i < k < j jumps over it:

    - An edge that jumps over k is part of a path that avoids k, for `path` holds only what the
      images reach and the output needs: images -> i -> j -> output, with rising numbers.
    - A path that avoids k begins below k and ends above it with rising numbers, so one of its
      edges jumps over k.

    So one scan suffices: k is a cut if no edge from below k ends above k. Such an operation may
    give several tensors; it counts if only its first one is used, for a cut is one tensor.
    """
    furthest = 0  # the highest end of an edge from the operations before this one
    result = []
    for i, operation in enumerate(graph.path):
        edges = [
            (graph.position[user], output)
            for output, tensor in enumerate(operation.outputs)
            for user in tensor.consumers()
            if user in graph.position
        ]
        uses_first_only = all(output == 0 for _, output in edges)
        if furthest <= i and uses_first_only and operation.outputs:
            result.append(operation)
        furthest = max([furthest, *(end for end, _ in edges)])
    return result


class _Search:
    """The regions of a graph, and which of them are points."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.region_of: dict[Any, _Region] = {}
        self.regions: list[_Region] = []
        for operation in graph.path:
            self._add(operation)
        self._users = {o: self._users_of(o) for o in graph.path}
        self._next = self._post_dominators()
        self._cuts = set(cuts(graph))

    def _add(self, operation: Any) -> None:
        """Put an operation into the region of what it works on, or begin one."""
        inputs = [t for t in operation.inputs if t.op in self.region_of]
        main = [t for t in inputs if _is_main(t, operation)]
        regions = list(dict.fromkeys(self.region_of[t.op] for t in main or inputs))
        region = regions[0] if len(regions) == 1 and operation.type in _ELEMENTWISE else None
        if region is None:
            is_sum = operation.type in _ELEMENTWISE and len(regions) > 1
            region = _Region(operation, is_sum, inputs=regions)
            self.regions.append(region)
        self.region_of[operation] = region
        region.operations.append(operation)
        if operation is region.root:
            is_activated = self._passes_activations(operation, main)
        else:
            is_activated = operation.type in _ACTIVATIONS or any(
                t.op in region.activated for t in inputs
            )
        if is_activated:
            region.activated.add(operation)

    def _passes_activations(self, operation: Any, inputs: Sequence[Any]) -> bool:
        """Return whether a root that computes nothing new has activations alone as inputs."""
        if operation.type not in _POOLS | {_CONCATENATION}:
            return False
        inputs = inputs or [t for t in operation.inputs if t.op in self.region_of]
        return bool(inputs) and all(t.op in self.region_of[t.op].activated for t in inputs)

    def _users_of(self, operation: Any) -> list[Any]:
        users = [u for t in operation.outputs for u in t.consumers()]
        return [u for u in dict.fromkeys(users) if u in self.graph.position]

    def _post_dominators(self) -> dict[Any, Any]:
        """Return for each operation the first one that all paths from it to the output pass.

        From the output down it is the nearest common one of its users (Cooper, Harvey and Kennedy
        2001, A Simple, Fast Dominance Algorithm; one pass suffices, as the graph has no loops).
        """
        position = self.graph.position
        following: dict[Any, Any] = {}
        for operation in reversed(self.graph.path):
            common = None
            for user in self._users[operation]:
                other = user
                while common is not None and common is not other:
                    if position[common] < position[other]:
                        common = following[common]
                    else:
                        other = following[other]
                common = other
            following[operation] = common
        return following

    def points(self) -> tuple[LayerPoint, ...]:
        """Return the points, shallow to deep."""
        exits = {r: e for r in self.regions if (e := self._exit(r)) is not None}
        maps = {r: e for r, e in exits.items() if e.outputs[0].shape.rank == 4}
        candidates = {r: int(e.outputs[0].shape[3]) for r, e in maps.items() if self._may_be(r)}
        chosen = [exits[r] for r in candidates if self._is_point(r, candidates)]
        chosen += [region.root for region in self._blocks_of_tokens()]
        chosen.sort(key=self.graph.position.__getitem__)
        points = []
        for operation in chosen:
            _, height, *widths, n_channels = operation.outputs[0].shape
            name, width = self.graph.point_name(operation), widths[0] if widths else 1
            points.append(LayerPoint(name, height, width, n_channels))
        return tuple({point.name: point for point in points}.values())

    def _blocks_of_tokens(self) -> Iterable[_Region]:
        """Return the sums of tokens in which shortcuts around activations end."""
        activated = [r for r in self.regions if any(map(_is_tokens, r.activated))]
        ends = (self._end_of_shortcut(region) for region in activated)
        sums = [end for end in ends if end is not None and end.is_sum and _is_tokens(end.root)]
        return dict.fromkeys(sums)

    def _exit(self, region: _Region) -> Any:
        """Return the last operation behind an activation that another region reads, if a map."""
        leaving = [
            o
            for o in region.operations
            if o in region.activated
            and _is_map(o)
            and any(self.region_of[user] is not region for user in self._users[o])
        ]
        return leaving[-1] if leaving else None

    def _may_be(self, region: _Region) -> bool:
        """Return whether the root is a merge or a full convolution."""
        if region.is_concatenation:  # a part of the next one is no map of its own
            users = [u for o in region.operations for u in self._users[o]]
            outside = [u for u in users if self.region_of[u] is not region]
            return not all(u.type == _CONCATENATION for u in outside)
        return region.is_sum or region.root.type in _CONVOLUTIONS

    def _is_point(self, region: _Region, widths: dict[_Region, int]) -> bool:
        if any(o in self._cuts for o in region.operations):
            return True
        end = self._end_of_shortcut(region)
        if end is None or (end.is_concatenation and not region.is_merge):
            return False
        if not end.is_concatenation and widths[region] > _width(end):
            return True
        return region.is_merge and any(
            between.is_merge and widths[between] >= widths[region]
            for between in self._between(region, end)
            if between in widths
        )

    def _end_of_shortcut(self, region: _Region) -> _Region | None:
        """Return the merge in which the shortcut around a region ends, or the next cut's region."""
        operation: Any = region.root
        while (operation := self._next[operation]) is not None:
            end = self.region_of[operation]
            if end is not region and (end.is_merge or operation in self._cuts):
                return end
        return None

    def _between(self, region: _Region, end: _Region) -> Iterable[_Region]:
        """Return the regions on the paths from one to another, without both."""
        position = self.graph.position
        passed = {region}
        for other in self.regions[self.regions.index(region) + 1 :]:
            if other is end or passed.isdisjoint(other.inputs):
                continue
            passed.add(other)
            last = other.root
            while last is not None and position[last] < position[end.root]:
                last = self._next[last]
            if last is end.root:
                yield other


def _is_main(tensor: Any, operation: Any) -> bool:
    """Return whether an input is as large as the output: no gate, mean or scale."""
    shape = operation.outputs[0].shape if operation.outputs else None
    if shape is None or not shape.is_fully_defined() or not tensor.shape.is_fully_defined():
        return True
    return bool(tensor.shape.num_elements() == shape.num_elements())


def _is_map(operation: Any) -> bool:
    """Return whether the output is floating maps or tokens of several positions, fully known."""
    tensor = operation.outputs[0]
    if tensor.shape.rank not in (3, 4) or not tensor.dtype.is_floating:
        return False
    n_images, *positions, n_channels = tensor.shape
    if None in (*positions, n_channels) or math.prod(positions) < 2:
        return False
    return len(positions) == 2 or n_images == N_IMAGES


def _is_tokens(operation: Any) -> bool:
    return _is_map(operation) and operation.outputs[0].shape.rank == 3


def _width(region: _Region) -> int:
    shape = region.root.outputs[0].shape
    return int(shape[-1] or 0) if shape.rank else 0
