"""The report's figures as PNG files. The one door to matplotlib: `hubretrain[report]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hubretrain.errors import DataError
from hubretrain.evaluation import N_BINS
from hubretrain.files import whole_file
from hubretrain.report import charts, curves
from hubretrain.report.run_data import EvaluatedModel, RunData

BLUE, RED, GREY = "#3b7ea1", "#c2372d", "#8a949c"
MOST_NAMED = 20  # classes with a name on an axis or in a key


def require() -> None:
    """Makes sure that figures can be drawn.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise DataError(
            f"--png needs matplotlib ({error}); install it with: pip install 'hubretrain[report]'"
        ) from error
    matplotlib.use("Agg")


def write_figures(
    gathered: RunData, drawings: dict[str, Any], plane: dict[str, Any] | None, folder: Path
) -> tuple[Path, ...]:
    """Draws every figure of the page that needs no picture.

    Args:
        gathered: The run.
        drawings: The page's charts by name.
        plane: The feature map as the page has it, or None.
        folder: Where to.

    Raises:
        WriteError: The folder cannot be written.
    """
    require()
    drawn = {"leaderboard": _leaderboard(gathered)}
    drawn |= {name: _chart(chart) for name, chart in drawings.items()}
    if gathered.models:
        model = gathered.models[0]
        labels = gathered.images["class_index"].to_numpy()[model.rows]
        drawn["confusion"] = _confusion(model, labels, gathered.class_names)
        drawn["precision_recall"] = _curves(model, labels, gathered.class_names, "recall")
        drawn["roc"] = _curves(model, labels, gathered.class_names, "fpr")
        drawn["calibration"] = _calibration(model, labels)
    if plane is not None:
        drawn["map"] = _map(gathered, plane)
    return tuple(_save(figure, folder / f"{name}.png") for name, figure in drawn.items())


def _figure(width: float = 6.4, height: float = 4.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, file: Path) -> Path:
    with whole_file(file) as aside:  # without the version, so that the bytes follow from the run
        figure.savefig(aside, format="png", dpi=150, metadata={"Software": None})
    return file


def _leaderboard(gathered: RunData) -> Any:
    metric = gathered.fit.metric
    board = charts.shown_board(gathered)
    board = board[board[f"{metric}_low"].notna()].iloc[::-1]
    figure, axes = _figure(7.5, 1.2 + 0.4 * len(board))
    for y, (_, row) in enumerate(board.iterrows()):
        tied, reference = bool(row["tied"]), row["kind"] == "reference"
        if tied:
            axes.axhspan(y - 0.45, y + 0.45, color=BLUE, alpha=0.12, linewidth=0)
        paint = GREY if reference else BLUE
        axes.plot([row[f"{metric}_low"], row[f"{metric}_high"]], [y, y], color=paint)
        axes.plot(row[metric], y, "o", color=paint)
    members = board["module"].str.count(r" \+ ") + 1
    named = board["module"].where(board["kind"] != "ensemble", "ensemble of " + members.astype(str))
    axes.set_yticks(range(len(board)), [_plain(name) for name in named])
    axes.set_xlabel(f"{charts.metric_name(metric)}, 95 % interval")
    return figure


def _chart(chart: dict[str, Any]) -> Any:
    """A chart of the page, drawn again."""
    figure, axes = _figure()
    for one in chart["series"]:
        paint = one.get("colour", BLUE)
        if one["kind"] == "line":
            style = "--" if one.get("class") == "dashed" else "-"
            axes.plot(one["x"], one["y"], style, color=paint, label=_plain(one.get("name", "")))
        elif one["kind"] == "mark":
            axes.axvline(one["x"], color=RED, linestyle="--", linewidth=1, label=one["name"])
        else:
            axes.plot(one["x"], one["y"], "o", color=paint, markersize=4)
            for i, x in enumerate(one["x"] if "low" in one else ()):
                axes.plot([x, x], [one["low"][i], one["high"][i]], color=paint, alpha=0.6)
                axes.annotate(_plain(one["names"][i]), (x, one["y"][i]), (6, 4),
                              textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set(title=_plain(chart["title"]), xlabel=chart["x"]["label"], ylabel=chart["y"]["label"])
    if chart["x"].get("log"):
        axes.set_xscale("log")
    axes.set_ylim(chart["y"]["low"], chart["y"]["high"])
    axes.legend(frameon=False, fontsize=8)
    return figure


def _confusion(model: EvaluatedModel, labels: Any, names: tuple[str, ...]) -> Any:
    counts = curves.confusion(labels, model.decided, len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.55 * len(names))
    figure, axes = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_NAMED:
        ticks = range(len(names))
        axes.set_xticks(ticks, [_plain(n) for n in names], rotation=45, ha="right")
        axes.set_yticks(ticks, [_plain(n) for n in names])
        for r, c in np.argwhere(counts):
            paint = "white" if shares[r, c] > 0.6 else "black"
            axes.text(c, r, f"{counts[r, c]:,}", ha="center", va="center", color=paint, fontsize=8)
    axes.set(xlabel="decision", ylabel="label", title=_plain(model.title))
    return figure


def _curves(model: EvaluatedModel, labels: Any, names: tuple[str, ...], across: str) -> Any:
    figure, axes = _figure(5.6, 5.6)
    up = {"recall": "precision", "fpr": "tpr"}[across]
    for name, curve in zip(names, curves.class_curves(model.probabilities, labels), strict=True):
        if curve is not None:
            axes.plot(curve[across], curve[up], label=_plain(name), linewidth=1.2)
    words = {"recall": "recall", "precision": "precision", "fpr": "false positive rate",
             "tpr": "true positive rate"}  # fmt: skip
    axes.set(xlabel=words[across], ylabel=words[up], title=_plain(model.title), xlim=(0, 1))
    axes.set_ylim(0, 1.01)
    if len(names) <= MOST_NAMED:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _calibration(model: EvaluatedModel, labels: Any) -> Any:
    bins = curves.calibration(model.probabilities, labels)
    figure, axes = _figure(5.6, 5.6)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    left, width = [one["low"] for one in bins], 1 / N_BINS
    axes.bar(left, [one["accuracy"] for one in bins], width=width, align="edge", color=BLUE,
             alpha=0.35)  # fmt: skip
    axes.plot(
        [one["confidence"] for one in bins], [one["accuracy"] for one in bins], "o", color=BLUE
    )
    axes.set(xlabel="probability of the likeliest class", ylabel="share that is right",
             title=_plain(model.title), xlim=(0, 1), ylim=(0, 1.01))  # fmt: skip
    return figure


def _map(gathered: RunData, plane: dict[str, Any]) -> Any:
    figure, axes = _figure(8, 6)
    x, y = np.array(plane["x"]), 1 - np.array(plane["y"])
    labels = gathered.images["class_index"].to_numpy()[plane["rows"]]
    size = min(20.0, max(2.0, 12_000 / len(x)))
    for c, name in enumerate(gathered.class_names):
        axes.scatter(x[labels == c], y[labels == c], s=size, label=_plain(name), linewidths=0)
    axes.set_axis_off()
    if len(gathered.class_names) <= MOST_NAMED:
        axes.legend(frameon=False, fontsize=8, markerscale=2, loc="center left",
                    bbox_to_anchor=(1, 0.5))  # fmt: skip
    return figure


def _plain(text: str) -> str:
    """A name that matplotlib is not to read as mathematics."""
    return text.replace("$", r"\$")
