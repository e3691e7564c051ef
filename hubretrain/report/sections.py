"""The sections of the report: each function returns the template values of one.

The sections on data, saliency and provenance have files of their own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.bottlenecks import Bottlenecks, check_made_as
from hubretrain.errors import CacheError
from hubretrain.evaluation import metric_named
from hubretrain.report import charts, feature_map
from hubretrain.report.charts import Chart
from hubretrain.report.run_data import OUT_OF_FOLD, RunData
from hubretrain.report.thumbnails import Thumbnails
from hubretrain.runs import FineTunedModuleRecord, OrderRecord
from hubretrain.screening import formatting

_log = logging.getLogger(__name__)

MAX_DOUBTFUL = 40  # labels to review that the page shows
_METHOD_NAMES = {"tsne": "t-SNE", "umap": "UMAP"}


def summary(run_data: RunData, board: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the tiles on top: what, value, and its interval."""
    metric = run_data.fit.metric
    name = formatting.metric_name(metric)
    tiles = [
        ("images", f"{len(run_data.images):,}", ""),
        ("labels" if run_data.multi_label else "classes", f"{len(run_data.class_names):,}", ""),
        ("modules", f"{len(run_data.fit.modules):,}", ""),
    ]
    for row in board:
        if row["rank"] == 1 and row["metrics"][0]:
            text = row["metrics"][0]
            tiles.append((f"{name}, head of {row['name']}", text["value"], text["ends"]))
    for model in run_data.models[:1]:
        text = _estimate_text(model.figures.get(metric), metric)
        if model.part != OUT_OF_FOLD and text:
            tiles.append((f"{name}, {model.title}", text["value"], text["ends"]))
    return {"summary": tiles}


def leaderboard(
    run_data: RunData, board: list[dict[str, Any]], cost_charts: dict[str, Chart]
) -> dict[str, Any]:
    """Return the leaderboard, the cost charts and the ablation."""
    metric = run_data.fit.metric
    costs = [
        cost
        for cost in charts.DRAWN_COSTS
        if any(row["costs"].get(cost) is not None for row in board)
    ]
    return {
        "notes": run_data.fit.notes,
        "metric": formatting.metric_name(metric),
        "columns": [
            formatting.metric_name(name)
            for name in formatting.shown_metrics(metric, run_data.board)
        ],
        "board": board,
        "any_test": any(row["test"] for row in board),
        "cost_keys": costs,
        "cost_labels": [charts.DRAWN_COSTS[cost].title for cost in costs],
        "cost_charts": list(cost_charts),
        "is_only_module": len(run_data.fit.modules) == 1,
        "effects": charts.effect_rows(run_data),
    }


def features(run_data: RunData, method: str) -> tuple[dict[str, Any], dict[str, list[Any]] | None]:
    """Return the feature map of the shortlist's first module, and its points for the script.

    The points are rows of the image table and positions `x` and `y` from 0 to 1; None without a
    map.
    """
    fit, sha256s = run_data.fit, run_data.images["sha256"].tolist()
    module = fit.shortlist[0]
    contents = feature_map.chosen_contents(sha256s)
    file = feature_map.MapFile(run_data.run.folder / "report", module, method)
    identity = file.identity(fit.modules[module].module_sha256, contents, fit.seed)
    plane = file.load(identity)
    if plane is None:
        try:
            with Bottlenecks(fit.cache_folder / f"{module}.h5") as bottlenecks:
                check_made_as(bottlenecks, module, fit.modules[module].attributes)
                rows = bottlenecks.rows(contents)
        except CacheError as error:
            return {"map_note": "", "map_missing": f"No feature map: {error}"}, None
        _log.info(
            "%s map of %s images of %s; this may take a minute", method, len(contents), module
        )
        plane = feature_map.project(rows, method, fit.seed)
        file.save(identity, contents, plane)
    index_of = {sha256: i for i, sha256 in enumerate(contents)}
    mapped = [row for row, sha256 in enumerate(sha256s) if sha256 in index_of]
    sample = f", a sample of {len(mapped):,} images" if len(mapped) < len(sha256s) else ""
    note = (
        f"{_METHOD_NAMES[method]} of the bottlenecks of {module}{sample}. Images close together "
        "look alike to the module; large distances mean little. Hover over a point or tap it to "
        "see its image; drag to move the map; click it, then scroll to zoom."
    )
    x, y = plane[[index_of[sha256s[row]] for row in mapped]].T.tolist()
    return {"map_note": note, "map_missing": ""}, {"rows": mapped, "x": x, "y": y}


def label_errors(doubtful: pd.DataFrame, csv: Path, *, multi_label: bool = False) -> dict[str, Any]:
    """Return the labels to review."""
    n = len(doubtful)
    what = "images confidently belong to another class than their label"
    if multi_label:
        what = "labels that images have, or lack, are confidently wrong, each label by itself"
    more = f" The first {MAX_DOUBTFUL} are shown." if n > MAX_DOUBTFUL else ""
    note = (
        f"{n:,} {what}, according to heads "
        "that were not fitted on them (confident learning, Northcutt et al. 2021); all are in "
        f"{csv.name}.{more}"
    )
    rows = doubtful.head(MAX_DOUBTFUL).to_dict(orient="records")
    return {"doubtful": rows, "doubtful_note": note if n else ""}


def training(run_data: RunData, training_charts: dict[str, dict[str, Chart]]) -> dict[str, Any]:
    """Return the learning curves, the metrics before and after, and the order of the modules."""
    metric = run_data.fit.metric
    rows = [
        {
            "module": module,
            "before": _estimate_text(record.head_test.get(metric), metric),
            "after": _estimate_text(record.test.get(metric), metric),
            "gain": _gain_text(record.over_head.get("test"), metric),
            "kept_epoch": _kept_epoch(record),
        }
        for module, record in run_data.finetune.modules.items()
    ]
    legends = {
        module: [(chart_id, charts.line_names(chart)) for chart_id, chart in of_module.items()]
        for module, of_module in training_charts.items()
    }
    return {"training": legends, "fine_tuned": rows, "order": _order(run_data.finetune.order)}


def _kept_epoch(record: FineTunedModuleRecord) -> str:
    if not record.kept_epoch:
        return "none improved on the head"
    # Its figures of the test split are then of another model than those of the validation fold.
    return f"{record.kept_epoch}{', trained again on all folds' if record.all_folds else ''}"


def _gain_text(gain: tuple[float, float, float] | None, metric: str) -> dict[str, str] | None:
    if gain is None:
        return None
    scale, digits = (100, 1) if metric_named(metric).is_share else (1, 3)
    value, low, high = (f"{scale * number:+.{digits}f}" for number in gain)
    return {"value": value, "ends": f"{low} to {high}"}


def _order(order: OrderRecord | None) -> dict[str, Any] | None:
    if order is None:
        return None
    tau, metric = order.kendall_tau, formatting.metric_name(order.metric)
    sentences = [] if tau is None else [f"Kendall's tau of the two orders: {tau:.2f} (1: equal)."]
    ends = ""
    if order.regret_ends is not None:
        low, high = order.regret_ends
        ends = f"; 95 % {low:+.4g} to {high:+.4g}, by the fold that chose the best"
    sentences.append(
        f"Choosing the module that screening ranked first costs {order.regret:.4g} in {metric} "
        f"(regret{ends})."
    )
    pairs = list(zip(order.screening, order.finetuned, strict=True))
    return {"pairs": pairs, "sentence": " ".join(sentences)}


def missing_thumbnails(thumbnails: Thumbnails, root: Path) -> list[str]:
    """Say how many images have no thumbnail, and why."""
    reasons = pd.Series(list(thumbnails.missing.values()), dtype=object).value_counts()
    if reasons.empty:
        return []
    counts = "; ".join(f"{n:,}: {reason}" for reason, n in reasons.head(4).items())
    advice = (
        ""
        if root.exists()
        else f" {root} does not exist; write the report again with the folder of the images."
    )
    n_missing, n_images = int(reasons.sum()), len(thumbnails.index)
    return [f"{n_missing:,} of {n_images:,} images have no thumbnail ({counts}).{advice}"]


def _estimate_text(figure: tuple[float, float, float] | None, metric: str) -> dict[str, str] | None:
    if figure is None:
        return None
    columns = (metric, f"{metric}_low", f"{metric}_high")
    return charts.estimate_text(dict(zip(columns, figure, strict=True)), metric)
