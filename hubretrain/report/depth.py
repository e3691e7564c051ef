"""Where a decision rests: what a head on features of several layers loses without each of them.

The features of one layer are replaced by their means over the images, so the head learns nothing
from that layer about any of them; the change of the metric is what only that layer tells it. Layers
repeat one another, so the changes do not add up to the whole.

The head is `warm_start`: the settings of the deployed one, fitted without the validation fold. So
all images of that fold are new to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubretrain.arrays import AnyArray, Float32Array
from hubretrain.bottlenecks import Bottlenecks, check_made_as
from hubretrain.errors import HubretrainError
from hubretrain.evaluation import Difference, Evaluator, Predictions, at_temperature, metric_named
from hubretrain.heads import Head, ModuleHeads, probabilities
from hubretrain.report.charts import Chart
from hubretrain.report.run_data import RunData
from hubretrain.runs import VALIDATION_FOLD
from hubretrain.screening import formatting

MAX_IMAGES = 10_000  # more make the intervals no narrower than a chart shows
OUTPUT = "the module's own output"


@dataclass(frozen=True)
class LayerEffect:
    """What a head loses without one layer.

    Attributes:
        layer: Name of the layer, or `OUTPUT`.
        map_size: Height and width of its map, such as `14 x 14`; empty for the output.
        n_features: Number of its features.
        change: Metric without the layer minus the metric with it.
    """

    layer: str
    map_size: str
    n_features: int
    change: Difference


def layer_effects(
    head: Head,
    features_of: Mapping[str, Callable[[], Float32Array]],
    evaluator: Evaluator,
    metric: str,
) -> dict[str, Difference]:
    """Return the change of a metric where a head does without each layer, in the given order.

    Args:
        head: A head, linear or with a hidden layer.
        features_of: Layer to a function that reads its features, float32 (n_images, n_features),
            in the order of the head's weights. They are read twice, one layer at a time.
        evaluator: The images.
        metric: Name in `METRICS`.
    """
    is_linear = head.hidden_weight is None
    weight = head.weight if head.hidden_weight is None else head.hidden_weight
    total: AnyArray = np.zeros((len(evaluator.labels), weight.shape[1]))
    total = total + (head.bias if head.hidden_bias is None else head.hidden_bias)
    columns: dict[str, slice] = {}
    for layer, read in features_of.items():
        features, first = read(), sum(len(range(c.start, c.stop)) for c in columns.values())
        columns[layer] = slice(first, first + features.shape[1])
        total = total + features @ weight[columns[layer]]

    def predictions(sums: AnyArray) -> Predictions:
        logits = sums if is_linear else np.maximum(sums, 0) @ head.weight + head.bias
        probs = probabilities(logits, head.kind, head.multi_label)
        calibrated = at_temperature(probs, head.calibration.temperature, head.multi_label)
        return Predictions(calibrated, head.rule.adjust(probs))

    whole = predictions(total).of(metric)
    effects = {}
    for layer, read in features_of.items():
        features = read()
        told = (features - features.mean(axis=0)) @ weight[columns[layer]]
        pair = predictions(total - told).of(metric), whole
        effects[layer] = evaluator.effect([pair], metric, len(features_of))
    return effects


def depth_section(run_data: RunData) -> tuple[dict[str, Any], dict[str, Chart]]:
    """Return the template values on the layers of the shortlist's first module, and the chart.

    There is none of a head that takes the module's own output alone.
    """
    module = run_data.fit.shortlist[0]
    try:
        heads = ModuleHeads.load(run_data.run.checked_heads(module))
        if not heads.warm_start.layers:
            return _nothing(f"The head of {module} takes the module's own output alone.")
        effects, n_images = _effects(run_data, module, heads.warm_start)
    except HubretrainError as error:
        return _nothing(f"Not computed: {error}")
    if not effects:
        return _nothing("The validation fold has fewer than two groups, so there is no interval.")
    metric = run_data.fit.metric
    unit, scale, digits = ("points", 100, 1) if metric_named(metric).is_share else ("nats", 1, 3)
    rows = [
        {
            "layer": effect.layer,
            "map_size": effect.map_size,
            "n_features": effect.n_features,
            "value": f"{scale * effect.change.estimate:+.{digits}f}",
            "ends": f"{scale * effect.change.low:+.{digits}f} to "
            f"{scale * effect.change.high:+.{digits}f}",
        }
        for effect in effects
    ]
    differs = "" if _same_layers(heads) else " The deployed head takes other layers."
    note = (
        f"Change of the {formatting.metric_name(metric)} in {unit}, with confidence "
        f"intervals that hold together at 95 %, of the head of {module} where it learns nothing "
        f"from one layer: its features are replaced by their means. {n_images:,} images of the "
        "validation fold; the head was fitted without them, with the settings of the deployed one. "
        f"Layers repeat one another, so a layer with a small change may still be used.{differs}"
    )
    values = {"depth": rows, "depth_note": note, "depth_missing": ""}
    return values, {"depth": _chart(effects, metric, unit, scale)}


def _nothing(why: str) -> tuple[dict[str, Any], dict[str, Chart]]:
    return {"depth": [], "depth_note": "", "depth_missing": why}, {}


def _same_layers(heads: ModuleHeads) -> bool:
    return heads.deployed.layers == heads.warm_start.layers


def _effects(run_data: RunData, module: str, head: Head) -> tuple[list[LayerEffect], int]:
    """Return the effects, shallow to deep with the output last, and the number of images."""
    images = run_data.images
    rows = np.flatnonzero(images["fold"].to_numpy() == VALIDATION_FOLD)
    if len(rows) > MAX_IMAGES:
        chosen = np.random.default_rng(run_data.fit.seed).choice(len(rows), MAX_IMAGES, False)
        rows = rows[np.sort(chosen)]
    labels = run_data.labels[rows]
    evaluator = Evaluator.if_grouped(labels, images["group"].to_numpy()[rows], run_data.fit.seed)
    if evaluator is None:
        return [], len(rows)
    sha256s = images["sha256"].iloc[rows].tolist()
    with Bottlenecks(run_data.fit.cache_folder / f"{module}.h5") as bottlenecks:
        check_made_as(bottlenecks, module, run_data.fit.modules[module].attributes)
        n_output = bottlenecks.n_features
        features_of = {OUTPUT: lambda: bottlenecks.rows(sha256s)}
        features_of |= {layer: _reader(bottlenecks, sha256s, layer) for layer in head.layers}
        changes = layer_effects(head, features_of, evaluator, run_data.fit.metric)
        maps = {s.layer: f"{s.height} x {s.width}" for s in bottlenecks.segments}
        n_features = {name: bottlenecks.n_features_of([name]) - n_output for name in head.layers}
    effects = [
        LayerEffect(name, maps[name], n_features[name], changes[name]) for name in head.layers
    ]
    return [*effects, LayerEffect(OUTPUT, "", n_output, changes[OUTPUT])], len(rows)


def _reader(
    bottlenecks: Bottlenecks, sha256s: Sequence[str], layer: str
) -> Callable[[], Float32Array]:
    """Return a function that reads the features of one inner layer."""

    def read() -> Float32Array:
        return bottlenecks.rows(sha256s, layers=[layer])[:, bottlenecks.n_features :]

    return read


def _chart(effects: Sequence[LayerEffect], metric: str, unit: str, scale: float) -> Chart:
    x = list(range(1, len(effects) + 1))
    y, low, high = (
        [round(scale * getattr(effect.change, end), 4) for effect in effects]
        for end in ("estimate", "low", "high")
    )
    margin = 0.08 * ((max(*high, 0.0) - min(*low, 0.0)) or 1.0)
    name = formatting.metric_name(metric)
    return {
        "title": f"{name} without each layer",
        "x": {"label": "layer, shallow to deep", "low": 0.5, "high": x[-1] + 0.5, "whole": True},
        "y": {
            "label": f"change of the {name}, {unit}",
            "low": round(min(*low, 0.0) - margin, 4),
            "high": round(max(*high, 0.0) + margin, 4),
        },
        "height": 300,
        "series": [
            {"kind": "line", "class": "dashed", "x": [0.5, x[-1] + 0.5], "y": [0, 0], "name": ""},
            {
                "kind": "points",
                "x": x,
                "y": y,
                "low": low,
                "high": high,
                "names": [f"{i}: {effect.layer}" for i, effect in zip(x, effects, strict=True)],
            },
        ],
    }
