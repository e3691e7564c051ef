"""The report's charts as PNG files, drawn with matplotlib; an extra: `hubretrain[report]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hubretrain.errors import DataError
from hubretrain.evaluation import N_BINS
from hubretrain.files import whole_file
from hubretrain.report import charts, curves
from hubretrain.report.charts import Chart
from hubretrain.report.run_data import EvaluatedModel, RunData
from hubretrain.runs import REFERENCE
from hubretrain.screening import formatting

BLUE, RED, GREY = "#3b7ea1", "#c2372d", "#8a949c"
MAX_NAMED = 20  # classes with a name on an axis or in a legend


def require_matplotlib() -> None:
    """Check that matplotlib is installed, and let it draw without a screen.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise DataError(
            f"matplotlib is not installed ({error}); install it with: "
            "pip install 'hubretrain[report]'"
        ) from error
    matplotlib.use("Agg")


def write_figures(
    run_data: RunData,
    fixed_charts: dict[str, Chart],
    points: dict[str, list[Any]] | None,
    folder: Path,
) -> tuple[Path, ...]:
    """Draw every chart of the page.

    Args:
        run_data: The run.
        fixed_charts: The page's charts that do not depend on the selected model, by id.
        points: Rows and positions of the points of the feature map, or None.
        folder: The folder of the PNG files.

    Returns:
        The files.

    Raises:
        WriteError: The folder cannot be written.
    """
    require_matplotlib()
    figures = {"leaderboard": _leaderboard(run_data)}
    figures |= {name: _chart(chart) for name, chart in fixed_charts.items()}
    if run_data.models:
        model = run_data.models[0]
        labels = run_data.labels[model.rows]
        if not run_data.multi_label:
            figures["confusion"] = _confusion(model, labels, run_data.class_names)
        figures["precision_recall"] = _curves(model, labels, run_data.class_names, "recall")
        figures["roc"] = _curves(model, labels, run_data.class_names, "fpr")
        figures["calibration"] = _calibration(model, labels)
    if points is not None:
        figures["map"] = _map(run_data, points)
    return tuple(_save(figure, folder / f"{name}.png") for name, figure in figures.items())


def _figure(width: float = 6.4, height: float = 4.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    with whole_file(path) as aside:  # without the version, so that the bytes depend on the run only
        figure.savefig(aside, format="png", dpi=150, metadata={"Software": None})
    return path


def _leaderboard(run_data: RunData) -> Any:
    metric = run_data.fit.metric
    board = charts.shown_board(run_data)
    board = board[board[f"{metric}_low"].notna()].iloc[::-1]
    figure, axes = _figure(7.5, 1.2 + 0.4 * len(board))
    for y, (_, row) in enumerate(board.iterrows()):
        if row["tied"]:
            axes.axhspan(y - 0.45, y + 0.45, color=BLUE, alpha=0.12, linewidth=0)
        colour = GREY if row["kind"] == REFERENCE else BLUE
        axes.plot([row[f"{metric}_low"], row[f"{metric}_high"]], [y, y], color=colour)
        axes.plot(row[metric], y, "o", color=colour)
    names = [_literal(formatting.row_name(row)) for _, row in board.iterrows()]
    axes.set_yticks(range(len(board)), names)
    axes.set_xlabel(f"{formatting.metric_name(metric)}, 95 % confidence interval")
    return figure


def _chart(chart: Chart) -> Any:
    """Draw a chart of the page."""
    figure, axes = _figure()
    for series in chart["series"]:
        x, y, colour = series["x"], series.get("y"), series.get("colour", BLUE)
        if series["kind"] == "line":
            style = "--" if series.get("class") == "dashed" else "-"
            axes.plot(x, y, style, color=colour, label=_literal(series.get("name", "")))
        elif series["kind"] == "mark":
            axes.axvline(x, color=RED, linestyle="--", linewidth=1, label=series["name"])
        else:
            axes.plot(x, y, "o", color=colour, markersize=4)
            for i in range(len(x) if "low" in series else 0):
                ends = [series["low"][i], series["high"][i]]
                axes.plot([x[i], x[i]], ends, color=colour, alpha=0.6)
                if series.get("labelled"):
                    axes.annotate(_literal(series["names"][i]), (x[i], y[i]), (6, 4),
                                  textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set(title=_literal(chart["title"]), xlabel=chart["x"]["label"], ylabel=chart["y"]["label"])
    if chart["x"].get("log"):
        axes.set_xscale("log")
    axes.set_ylim(chart["y"]["low"], chart["y"]["high"])
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _confusion(model: EvaluatedModel, labels: Any, names: tuple[str, ...]) -> Any:
    counts = curves.confusion(labels, model.decisions, len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.55 * len(names))
    figure, axes = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MAX_NAMED:
        ticks = range(len(names))
        axes.set_xticks(ticks, [_literal(n) for n in names], rotation=45, ha="right")
        axes.set_yticks(ticks, [_literal(n) for n in names])
        for r, c in np.argwhere(counts):
            ink = "white" if shares[r, c] > 0.6 else "black"
            axes.text(c, r, f"{counts[r, c]:,}", ha="center", va="center", color=ink, fontsize=8)
    axes.set(xlabel="decision", ylabel="label", title=_literal(model.title))
    return figure


def _curves(model: EvaluatedModel, labels: Any, names: tuple[str, ...], x: str) -> Any:
    """Draw the precision-recall curves (`x` is `recall`) or the ROC curves (`x` is `fpr`)."""
    figure, axes = _figure(5.6, 5.6)
    y = {"recall": "precision", "fpr": "tpr"}[x]
    marks: list[Any] = []
    if model.thresholds:
        marks = curves.at_thresholds(model.probabilities, labels, model.thresholds)
    for c, curve in enumerate(curves.class_curves(model.probabilities, labels)):
        name = names[c]
        if curve is not None:
            (line,) = axes.plot(curve[x], curve[y], label=_literal(name), linewidth=1.2)
            if marks and None not in (mark := (marks[c][x], marks[c][y])):
                axes.plot(*mark, "o", color=line.get_color())
    axis_names = {"recall": "recall", "precision": "precision", "fpr": "false positive rate",
                  "tpr": "true positive rate"}  # fmt: skip
    title = _literal(model.title)
    axes.set(xlabel=axis_names[x], ylabel=axis_names[y], title=title, xlim=(0, 1))
    axes.set_ylim(0, 1.01)
    if len(names) <= MAX_NAMED:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _calibration(model: EvaluatedModel, labels: Any) -> Any:
    bins = curves.calibration(model.probabilities, labels)
    figure, axes = _figure(5.6, 5.6)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    low, confidence, accuracy = (
        [b[key] for b in bins] for key in ("low", "confidence", "accuracy")
    )
    axes.bar(low, accuracy, width=1 / N_BINS, align="edge", color=BLUE, alpha=0.35)
    axes.plot(confidence, accuracy, "o", color=BLUE)
    names = "confidence (top-1 probability)", "accuracy"
    if labels.ndim > 1:
        names = "probability of a label", "share of images with the label"
    axes.set(xlabel=names[0], ylabel=names[1],
             title=_literal(model.title), xlim=(0, 1), ylim=(0, 1.01))  # fmt: skip
    return figure


def _map(run_data: RunData, points: dict[str, list[Any]]) -> Any:
    figure, axes = _figure(8, 6)
    x, y = np.array(points["x"]), 1 - np.array(points["y"])  # the page's y points down
    labels = run_data.labels[points["rows"]]
    size = min(20.0, max(2.0, 12_000 / len(x)))
    for c, name in enumerate(run_data.class_names):
        has = curves.of_class(labels, c)
        axes.scatter(x[has], y[has], s=size, label=_literal(name), linewidths=0)
    axes.set_axis_off()
    if len(run_data.class_names) <= MAX_NAMED:
        axes.legend(frameon=False, fontsize=8, markerscale=2, loc="center left",
                    bbox_to_anchor=(1, 0.5))  # fmt: skip
    return figure


def _literal(text: str) -> str:
    """Escape a name so that matplotlib does not read it as mathematics."""
    return text.replace("$", r"\$")
