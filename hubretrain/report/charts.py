"""Leaderboard, costs, effects, training as rows and charts: the same numbers for page and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.evaluation import METRICS
from hubretrain.report.curves import finite
from hubretrain.report.run_data import RunData
from hubretrain.run_tables import MODULE, REFERENCE

COSTS = {
    "gflops": "GFLOPs an image (10^9 floating-point operations)",
    "ms_an_image": "milliseconds an image, on the machine that cached",
    "n_parameters": "parameters",
}
SHOWN = ("balanced_accuracy", "accuracy", "top_3")
TRAINING = {
    "loss": ("loss", "validation_loss"),
    "accuracy": ("accuracy", "validation_accuracy", "validation_balanced_accuracy"),
    "learning rate": ("learning_rate",),
}


def metric_name(metric: str) -> str:
    """A metric in words."""
    return metric.replace("_", " ")


def column_name(metric: str, of_choice: str) -> str:
    """What the leaderboard calls a metric; see `_column`."""
    is_plain = metric == "accuracy" != of_choice
    return metric_name(metric) + (" of the likeliest class" if is_plain else "")


def shown_board(gathered: RunData) -> pd.DataFrame:
    """The leaderboard without all nearest neighbours but the best, the one to beat."""
    nearest = gathered.board.index[gathered.board["module"].str.startswith("1-nearest")]
    return gathered.board.drop(index=nearest[1:])


def board_rows(gathered: RunData) -> list[dict[str, Any]]:
    """The leaderboard, a row each: name, marks, figures, costs, where to draw the interval."""
    metric = gathered.fit.metric
    board = shown_board(gathered)
    frame = _frame(board, metric)
    rows = []
    for _, row in board.iterrows():
        name = str(row["module"])
        n_members = name.count(" + ") + 1
        rows.append(
            {
                "name": f"ensemble of {n_members}" if row["kind"] == "ensemble" else name,
                "title": name,
                "kind": row["kind"],
                "place": int(row["shortlist"]) if pd.notna(row["shortlist"]) else None,
                "tied": bool(row["tied"]),
                "head": head_words(row),
                "drawn": _drawn(row, metric, frame),
                "figures": [figure_words(row, _column(row, one, metric)) for one in names(metric)],
                "costs": {cost: finite(row[cost]) for cost in COSTS if cost in row},
                "test": figure_words(row, f"test_{_column(row, metric, metric)}"),
                "reference": row["kind"] == REFERENCE,
            }
        )
    return rows


def names(metric: str) -> list[str]:
    """The metrics that the leaderboard shows."""
    return list(dict.fromkeys((metric, *SHOWN)))


def figure_words(row: Any, column: str) -> dict[str, str] | None:
    """An estimate and its interval, as text; None where there is none."""
    if column not in row or pd.isna(row[column]):
        return None
    share = METRICS[column.removeprefix("test_").removeprefix("plain_")].is_share
    scale, digits = (100, 1) if share else (1, 3)
    ends = [row.get(f"{column}_{end}", np.nan) for end in ("low", "high")]
    return {
        "value": f"{scale * row[column]:.{digits}f}",
        "ends": ""
        if pd.isna(ends[0])
        else f"{scale * ends[0]:.{digits}f}–{scale * ends[1]:.{digits}f}",
    }


def head_words(row: Any) -> str:
    """The chosen head, such as `softmax, l2 316, balanced, adjusted 0.75`."""
    if row["head"] == "none" or pd.isna(row["head"]):
        return ""
    parts = [str(row["head"])]
    if pd.notna(row.get("l2")):
        parts.append(f"l2 {row['l2']:,.0f}" if row["l2"] >= 10 else f"l2 {row['l2']:.3g}")
    if row.get("trained_on") == "all views":
        parts.append("all views")
    weight = row.get("class_weight")
    if isinstance(weight, str) and weight != "none":
        parts.append("balanced" if weight == "balanced" else f"class weights {weight}")
    if pd.notna(row.get("adjust")) and row["adjust"]:
        parts.append(f"adjusted {row['adjust']:g}")
    return ", ".join(parts)


def effect_rows(gathered: RunData) -> list[dict[str, Any]]:
    """What each ingredient was worth, with its interval's place to draw."""
    effects = gathered.effects
    if effects.empty:
        return []
    ends = np.array([*effects["low"], *effects["high"], 0.0], float)
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    span = (high - low) or 1.0
    rows = []
    for _, row in effects.iterrows():
        at = [100 * (float(row[end]) - low) / span for end in ("low", "estimate", "high")]
        sentence = str(row["sentence"])
        rows.append(
            {
                "sentence": sentence[:1].upper() + sentence[1:],
                "drawn": [round(x, 2) for x in at],
                "zero": round(100 * (0 - low) / span, 2),
            }
        )
    return rows


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Those that nothing cheaper or as cheap beats, from the cheapest on.

    Args:
        costs: The lower the better.
        values: The higher the better.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i], i))
    found: list[int] = []
    for i in order:
        if not found or values[i] > values[found[-1]]:
            found.append(i)
    return found


def cost_charts(gathered: RunData) -> dict[str, dict[str, Any]]:
    """The metric of choice against each cost that is known, with the Pareto front."""
    metric = gathered.fit.metric
    share, better = METRICS[metric].is_share, METRICS[metric].higher_is_better
    scale = 100.0 if share else 1.0
    charts = {}
    for cost, label in COSTS.items():
        if cost not in gathered.board:
            continue
        board = gathered.board[(gathered.board["kind"] != REFERENCE)]
        board = board[board[cost].notna() & (board[cost] > 0) & board[metric].notna()]
        if len(board) < 2:
            continue
        x = [float(v) for v in board[cost]]
        y = [scale * float(v) for v in board[metric]]
        low = [scale * float(v) for v in board[f"{metric}_low"]]
        high = [scale * float(v) for v in board[f"{metric}_high"]]
        front = pareto(x, y if better else [-v for v in y])
        called = [
            str(row["module"])
            if row["kind"] == MODULE
            else f"ensemble of {str(row['module']).count(' + ') + 1}"
            for _, row in board.iterrows()
        ]
        span = (max(high) - min(low)) or 1.0
        charts[f"cost-{cost}"] = {
            "title": f"{metric_name(metric)} against cost",
            "x": {"label": label, "low": min(x) / 1.3, "high": max(x) * 1.3, "log": True},
            "y": {
                "label": metric_name(metric) + (", %" if share else ", nats"),
                "low": round(min(low) - 0.08 * span, 4),
                "high": round(max(high) + 0.08 * span, 4),
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
                    "y": [round(v, 4) for v in y],
                    "low": [round(v, 4) for v in low],
                    "high": [round(v, 4) for v in high],
                    "names": called,
                    "written": True,
                },
            ],
        }
    return charts


def training_charts(gathered: RunData) -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    """Module to its curves: (id, what, chart), an epoch a point, the kept epoch marked."""
    found: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for m, (module, recorded) in enumerate(gathered.histories.items()):
        history = recorded.replace([np.inf, -np.inf], np.nan)  # a loss that overflowed
        if history.empty:
            continue
        epochs = [float(e) for e in history["epoch"]]
        kept = [e for e, is_kept in zip(epochs, history["kept"], strict=True) if is_kept]
        of_module = []
        for what, columns in TRAINING.items():
            lines = []
            for column in columns:
                values = history.get(column)
                if values is None or values.isna().all():
                    continue
                there = values.notna().to_numpy()
                lines.append((column, np.array(epochs)[there], values[there].to_numpy(float)))
            if not lines:
                continue
            top = max(float(y.max()) for _, _, y in lines)
            bottom = 0.0 if what != "accuracy" else min(float(y.min()) for _, _, y in lines) - 0.02
            series: list[dict[str, Any]] = []
            for k, (column, x, y) in enumerate(lines):
                paint = ("#4477aa", "#ee6677", "#228833")[k]
                drawn = {"x": x.tolist(), "y": [float(v) for v in y], "colour": paint}
                name = metric_name(column)
                series.append({"kind": "line", "name": name, **drawn})
                texts = [f"{name}, epoch {e:g}: {v:.4g}" for e, v in zip(x, y, strict=True)]
                series.append({"kind": "points", "r": 3, "names": texts, **drawn})
            series += [{"kind": "mark", "x": e, "name": "kept"} for e in kept]
            chart = {
                "title": f"{module}: {what}",
                "x": {
                    "label": "epoch",
                    "low": min(epochs),
                    "high": max(*epochs, 1.0),
                    "whole": True,
                },
                "y": {"label": what, "low": max(bottom, 0.0), "high": (1.05 * top) or 1.0},
                "height": 240,
                "series": series,
            }
            of_module.append((f"training-{m}-{what.replace(' ', '-')}", what, chart))
        found[module] = of_module
    return found


def line_names(chart: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, colour) of each line of a chart, for its key."""
    lines = [one for one in chart["series"] if one["kind"] == "line" and "colour" in one]
    return [(one["name"], one["colour"]) for one in lines]


def _column(row: Any, name: str, metric: str) -> str:
    """Accuracy is that of the likeliest class, unless it is the metric of choice."""
    plain = f"plain_{name}"
    return plain if name == "accuracy" != metric and pd.notna(row.get(plain)) else name


def _frame(board: pd.DataFrame, metric: str) -> tuple[float, float]:
    """Where drawn intervals begin and end; references may fall outside and are not drawn."""
    models = board[(board["kind"] != REFERENCE) & board[metric].notna()]
    low, high = float(models[f"{metric}_low"].min()), float(models[f"{metric}_high"].max())
    margin = 0.05 * ((high - low) or 1.0)
    return low - margin, high + margin


def _drawn(row: Any, metric: str, frame: tuple[float, float]) -> list[float] | None:
    ends = [row.get(f"{metric}_low"), row.get(metric), row.get(f"{metric}_high")]
    if any(pd.isna(end) for end in ends) or ends[0] < frame[0] or ends[2] > frame[1]:
        return None
    return [round(100 * (float(end) - frame[0]) / (frame[1] - frame[0]), 2) for end in ends]
