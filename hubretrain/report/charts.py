"""Leaderboard, ablation, costs and training as table rows and charts, for the page and PNG files.

A chart is a dictionary that `templates/charts.js` and `figures` draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.evaluation import metric_named
from hubretrain.report.curves import finite
from hubretrain.report.run_data import RunData
from hubretrain.runs import REFERENCE
from hubretrain.screening import formatting

Chart = dict[str, Any]

DRAWN_COSTS = {name: cost for name, cost in formatting.COSTS.items() if cost.axis}
TRAINING = {  # chart: columns of history.csv
    "loss": ("loss", "validation_loss"),
    "accuracy": ("accuracy", "validation_accuracy", "validation_balanced_accuracy"),
    "learning rate": ("learning_rate",),
}
LINE_COLOURS = ("#4477aa", "#ee6677", "#228833")


def estimate_text(row: Any, column: str) -> dict[str, str] | None:
    """Format an estimate and its confidence interval, `value` and `ends`; None without one."""
    words = formatting.estimate_words(row, column)
    if words is None:
        return None
    estimate, low, high = words
    return {"value": estimate, "ends": f"{low}–{high}" if low else ""}


def shown_board(run_data: RunData) -> pd.DataFrame:
    """Return the leaderboard with the best of the nearest-neighbour baselines only."""
    nearest = run_data.board.index[run_data.board["module"].str.startswith("1-nearest")]
    return run_data.board.drop(index=nearest[1:])


def board_rows(run_data: RunData) -> list[dict[str, Any]]:
    """Return the rows of the leaderboard: names, texts, costs, and intervals to draw."""
    metric = run_data.fit.metric
    board = shown_board(run_data)
    axis = _axis(board, metric)
    return [
        {
            "name": formatting.row_name(row),
            "title": str(row["module"]),
            "rank": int(row["shortlist"]) if pd.notna(row["shortlist"]) else None,
            "tied": bool(row["tied"]),
            "head": formatting.head_words(row),
            "drawn": _on_axis(row, metric, axis),
            "metrics": [
                estimate_text(row, name)
                for name in formatting.shown_metrics(metric, run_data.board)
            ],
            "costs": {cost: finite(row[cost]) for cost in DRAWN_COSTS if cost in row},
            "test": estimate_text(row, f"test_{metric}"),
            "is_baseline": row["kind"] == REFERENCE,
        }
        for _, row in board.iterrows()
    ]


def _axis(board: pd.DataFrame, metric: str) -> tuple[float, float]:
    """Return the range of drawn intervals: that of the models, for baselines may lie far off."""
    models = board[(board["kind"] != REFERENCE) & board[metric].notna()]
    low, high = float(models[f"{metric}_low"].min()), float(models[f"{metric}_high"].max())
    margin = 0.05 * ((high - low) or 1.0)
    return low - margin, high + margin


def _on_axis(row: Any, metric: str, axis: tuple[float, float]) -> list[float] | None:
    """Return low end, estimate and high end in percent of the axis; None outside of it."""
    ends = [row.get(f"{metric}_low"), row.get(metric), row.get(f"{metric}_high")]
    if any(pd.isna(end) for end in ends) or ends[0] < axis[0] or ends[2] > axis[1]:
        return None
    return [round(100 * (float(end) - axis[0]) / (axis[1] - axis[0]), 2) for end in ends]


def effect_rows(run_data: RunData) -> list[dict[str, Any]]:
    """Return the ablation: a sentence per option, and its interval in percent of the axis."""
    effects = run_data.effects
    if effects.empty:
        return []
    ends = np.array([*effects["low"], *effects["high"], 0.0], float)
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    span = (high - low) or 1.0
    rows = []
    for _, row in effects.iterrows():
        drawn = [100 * (float(row[end]) - low) / span for end in ("low", "estimate", "high")]
        sentence = str(row["sentence"])
        rows.append(
            {
                "sentence": sentence[:1].upper() + sentence[1:],
                "drawn": [round(position, 2) for position in drawn],
                "zero": round(100 * (0 - low) / span, 2),
            }
        )
    return rows


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the Pareto front, from the cheapest on: what nothing as cheap or cheaper beats.

    Args:
        costs: Costs, the lower the better.
        values: Values, the higher the better.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i], i))
    front: list[int] = []
    for i in order:
        if not front or values[i] > values[front[-1]]:
            front.append(i)
    return front


def cost_charts(run_data: RunData) -> dict[str, Chart]:
    """Return charts of the metric of choice against each recorded cost, with the Pareto front."""
    charts = {}
    for cost in DRAWN_COSTS:
        if cost in run_data.board:
            board = run_data.board[run_data.board["kind"] != REFERENCE]
            is_known = board[cost].notna() & (board[cost] > 0) & board[run_data.fit.metric].notna()
            if is_known.sum() >= 2:
                charts[f"cost-{cost}"] = _cost_chart(board[is_known], cost, run_data.fit.metric)
    return charts


def _cost_chart(board: pd.DataFrame, cost: str, metric: str) -> Chart:
    is_share = metric_named(metric).is_share
    scale = 100.0 if is_share else 1.0
    x = board[cost].astype(float).tolist()
    y, low, high = (
        (scale * board[f"{metric}{end}"].astype(float)).tolist() for end in ("", "_low", "_high")
    )
    front = pareto(x, y if metric_named(metric).higher_is_better else [-value for value in y])
    margin = 0.08 * ((max(high) - min(low)) or 1.0)
    return {
        "title": f"{formatting.metric_name(metric)} against cost",
        "x": {
            "label": DRAWN_COSTS[cost].axis,
            "low": min(x) / 1.3,
            "high": max(x) * 1.3,
            "log": True,
        },
        "y": {
            "label": formatting.metric_name(metric) + (", %" if is_share else ", nats"),
            "low": round(min(low) - margin, 4),
            "high": round(max(high) + margin, 4),
        },
        "height": 300,
        "series": [
            {
                "kind": "line",
                "class": "dashed",
                "x": [x[i] for i in front],
                "y": [y[i] for i in front],
                "name": "Pareto front",
            },
            {
                "kind": "points",
                "x": x,
                "y": [round(value, 4) for value in y],
                "low": [round(value, 4) for value in low],
                "high": [round(value, 4) for value in high],
                "names": [formatting.row_name(row) for _, row in board.iterrows()],
                "labelled": True,
            },
        ],
    }


def training_charts(run_data: RunData) -> dict[str, dict[str, Chart]]:
    """Return the learning curves of each fine-tuned module: module to chart by its id."""
    charts = {}
    for m, (module, history) in enumerate(run_data.histories.items()):
        if history.empty:
            continue
        of_module = {}
        for quantity, columns in TRAINING.items():
            chart = _training_chart(module, history, quantity, columns)
            if chart is not None:
                of_module[f"training-{m}-{quantity.replace(' ', '-')}"] = chart
        charts[module] = of_module
    return charts


def _training_chart(
    module: str, recorded: pd.DataFrame, quantity: str, columns: Sequence[str]
) -> Chart | None:
    """Return the chart of columns of a history, one point per epoch, the kept epoch marked."""
    history = recorded.replace([np.inf, -np.inf], np.nan)  # of a loss that overflowed
    there = [name for name in columns if name in history and history[name].notna().any()]
    if not there:
        return None
    epochs = history["epoch"].astype(float)
    series: list[dict[str, Any]] = []
    for column, colour in zip(there, LINE_COLOURS, strict=False):
        is_known = history[column].notna()
        x, y = epochs[is_known].tolist(), history[column][is_known].astype(float).tolist()
        name, points = formatting.metric_name(column), {"x": x, "y": y, "colour": colour}
        texts = [f"{name}, epoch {e:g}: {value:.4g}" for e, value in zip(x, y, strict=True)]
        series.append({"kind": "line", "name": name, **points})
        series.append({"kind": "points", "r": 3, "names": texts, **points})
    kept = epochs[history["kept"].astype(bool)]
    series += [{"kind": "mark", "x": epoch, "name": "kept"} for epoch in kept.tolist()]
    low, high = float(history[there].min().min()), float(history[there].max().max())
    return {
        "title": f"{module}: {quantity}",
        "x": {
            "label": "epoch",
            "low": float(epochs.min()),
            "high": max(float(epochs.max()), 1.0),
            "whole": True,
        },
        "y": {
            "label": quantity,
            "low": max(low - 0.02, 0.0) if quantity == "accuracy" else 0.0,
            "high": (1.05 * high) or 1.0,
        },
        "height": 240,
        "series": series,
    }


def line_names(chart: Chart) -> list[tuple[str, str]]:
    """Return (name, colour) of each line of a chart, for its legend."""
    lines = [one for one in chart["series"] if one["kind"] == "line" and "colour" in one]
    return [(line["name"], line["colour"]) for line in lines]
