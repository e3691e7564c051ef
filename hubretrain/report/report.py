"""`report.html`: one self-contained page of a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hubretrain._version import __version__
from hubretrain.bottlenecks import Bottlenecks
from hubretrain.errors import CacheError
from hubretrain.files import write_table
from hubretrain.report import charts, curves, feature_map, figures, payload, provenance
from hubretrain.report import label_errors as mistakes
from hubretrain.report.data_section import data_values_of
from hubretrain.report.html import write_page
from hubretrain.report.run_data import OUT_OF_FOLD, EvaluatedModel, RunData, gather
from hubretrain.report.saliency import SaliencyRow, saliency_rows
from hubretrain.report.thumbnails import Thumbnails, as_uri, make_thumbnails
from hubretrain.runs import OrderRecord, Run

_log = logging.getLogger(__name__)

SCRIPTS = ("charts.js", "report.js", "map.js")
N_LARGE = 160  # images with a larger thumbnail
MAX_LARGE_PIXELS, LARGE_SIDE = 3_000_000, 144  # of all; the longer side of one
N_DOUBTFUL = 40
N_SALIENCY = 8


@dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
        page: The page.
        label_errors: The CSV of labels to look at again.
        n_doubtful: Its rows.
        missing: What the page cannot show, a sentence each.
        pictures: The PNG files.
    """

    page: Path
    label_errors: Path
    n_doubtful: int
    missing: tuple[str, ...]
    pictures: tuple[Path, ...] = ()


def write_report(
    run: Run,
    *,
    data: Path | None = None,
    output: Path | None = None,
    png: Path | None = None,
    map_method: str = "tsne",
    n_saliency: int = N_SALIENCY,
) -> Report:
    """Writes the report of a run: `report.html` and `label_errors.csv`.

    Args:
        run: A fitted run.
        data: The images, if they are not where they were fitted.
        output: The page; by default `report.html` in the run folder.
        png: A folder for the figures as PNG files, or None.
        map_method: `tsne` or `umap`.
        n_saliency: Images with saliency maps; 0 for none.

    Raises:
        RunError: The run is not fitted, or is damaged.
        WriteError: The page cannot be written.
        DataError: The map method is not known or not installed, or matplotlib is not.
    """
    if png is not None:
        figures.require()
    gathered = gather(run)
    root = data or gathered.fit.data
    missing = list(gathered.missing)
    hints = mistakes.hints_of(gathered)
    doubtful = _doubtful(gathered, hints)
    csv = run.folder / "label_errors.csv"
    write_table(csv, doubtful[list(mistakes.COLUMNS)])
    rows = _large_rows(gathered, doubtful)
    images = gathered.images
    paths, sha256s = images["path"].tolist(), images["sha256"].tolist()
    thumbnails = make_thumbnails(root, paths, sha256s, rows)
    large = make_thumbnails(
        root,
        [paths[r] for r in rows],
        [sha256s[r] for r in rows],
        max_pixels=MAX_LARGE_PIXELS,
        max_side=LARGE_SIDE,
    )
    missing += _missing_images(thumbnails, len(images), root)
    plane, map_values = _map(gathered, map_method)
    shown, note = saliency_rows(gathered, root, n_saliency)
    wrong = _wrong_rows(gathered)
    board, cost_charts = charts.board_rows(gathered), charts.cost_charts(gathered)
    training_charts = charts.training_charts(gathered)
    drawn = dict(cost_charts)
    for of_module in training_charts.values():
        drawn |= {name: chart for name, _, chart in of_module}
    data_values = {
        "classes": list(gathered.class_names),
        "n_steps": curves.N_STEPS,
        "images": payload.images_payload(
            gathered, thumbnails, large, rows, {r: t for r, t in hints.items() if r in wrong}
        ),
        "thumbs": payload.sheet_payload(thumbnails),
        "large": payload.sheet_payload(large),
        "models": [payload.model_payload(one, gathered) for one in gathered.models],
        "map": plane,
        "charts": drawn,
    }
    values = {
        "name": run.name,
        "run_folder": run.folder.as_posix(),
        "data_folder": str(gathered.fit.data),
        "version": __version__,
        "sheets": {"sheet": thumbnails.sheets, "large": large.sheets},
        "missing": missing,
        "data": data_values,
        "n_models": len(gathered.models),
        **_leaderboard(gathered, board, cost_charts),
        **map_values,
        **_saliency(shown, note),
        **_labels(doubtful, csv),
        **_training(gathered, training_charts),
        **data_values_of(gathered, thumbnails, root),
        "commands": provenance.commands(gathered),
        "provenance": provenance.table(gathered),
        "modules": provenance.modules(gathered),
        "files": provenance.file_digests(run),
    }
    page = output or run.folder / "report.html"
    write_page(page, "report.html", values, SCRIPTS)
    pictures: tuple[Path, ...] = ()
    if png is not None:
        pictures = figures.write_figures(gathered, drawn, plane, png)
    return Report(page, csv, len(doubtful), tuple(missing), pictures)


def _leaderboard(
    gathered: RunData, board: list[dict[str, Any]], cost_charts: dict[str, Any]
) -> dict[str, Any]:
    metric = gathered.fit.metric
    keys = [k for k in charts.COSTS if any(row["costs"].get(k) is not None for row in board)]
    labels = {"gflops": "GFLOPs", "ms_an_image": "ms an image", "n_parameters": "parameters"}
    return {
        "notes": gathered.fit.notes,
        "metric": charts.metric_name(metric),
        "columns": [charts.column_name(one, metric) for one in charts.names(metric)],
        "board": board,
        "any_test": any(row["test"] for row in board),
        "cost_keys": keys,
        "cost_labels": [labels[key] for key in keys],
        "cost_charts": list(cost_charts),
        "one_module": len(gathered.fit.modules) == 1,
        "effects": charts.effect_rows(gathered),
        "sums": _sums(gathered, board),
    }


def _sums(gathered: RunData, board: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The figures on top: what, value, and more."""
    metric = gathered.fit.metric
    name = charts.metric_name(metric)
    sums = [
        ("images", f"{len(gathered.images):,}", ""),
        ("classes", f"{len(gathered.class_names):,}", ""),
        ("modules", f"{len(gathered.fit.modules):,}", ""),
    ]
    for row in board:
        if row["place"] == 1 and row["figures"][0]:
            one = row["figures"][0]
            sums.append((f"{name}, head of {row['name']}", one["value"], one["ends"]))
    for model in gathered.models[:1]:
        if model.part != OUT_OF_FOLD and metric in model.figures:
            frame = dict(zip((metric, f"{metric}_low", f"{metric}_high"), model.figures[metric],
                             strict=True))  # fmt: skip
            one = charts.figure_words(frame, metric)
            if one:
                sums.append((f"{name}, {model.title}", one["value"], one["ends"]))
    return sums


def _doubtful(gathered: RunData, hints: dict[int, str]) -> pd.DataFrame:
    """Labels to look at again, by the ensemble or else the first module out of fold."""
    judges = [one for one in gathered.models if one.part == OUT_OF_FOLD]
    judge: EvaluatedModel | None = next((one for one in judges if one.kind == "ensemble"), None)
    judge = judge or next(iter(judges), None)
    if judge is None:
        return pd.DataFrame(columns=[*mistakes.COLUMNS, "row"])
    return mistakes.label_errors(gathered, judge, hints)


def _labels(doubtful: pd.DataFrame, csv: Path) -> dict[str, Any]:
    n = len(doubtful)
    more = f" The first {N_DOUBTFUL} are shown." if n > N_DOUBTFUL else ""
    note = (
        f"{n:,} images are confidently another class than their label, by heads that never saw "
        f"them (confident learning, Northcutt et al. 2021); all are in {csv.name}.{more}"
    )
    rows = doubtful.head(N_DOUBTFUL).to_dict(orient="records")
    return {"doubtful": rows, "doubtful_note": note if n else ""}


def _wrong_rows(gathered: RunData) -> set[int]:
    """Rows that some model decides wrongly."""
    labels = gathered.images["class_index"].to_numpy()
    found: set[int] = set()
    for model in gathered.models:
        likeliest = model.probabilities.argmax(axis=1)
        of = labels[model.rows]
        found |= set(model.rows[(model.decided != of) | (likeliest != of)].tolist())
    return found


def _large_rows(gathered: RunData, doubtful: pd.DataFrame) -> list[int]:
    """Rows that are shown larger: the most confident mistakes of each model in turn."""
    labels = gathered.images["class_index"].to_numpy()
    lists = []
    for model in gathered.models:
        wrong = np.flatnonzero(model.decided != labels[model.rows])
        sure = model.probabilities[wrong, model.decided[wrong]]
        lists.append(model.rows[wrong[np.argsort(-sure, kind="stable")]].tolist())
    lists.append(doubtful["row"].head(N_DOUBTFUL).tolist())
    found: dict[int, None] = {}
    for i in range(max(map(len, lists), default=0)):
        found |= dict.fromkeys(int(some[i]) for some in lists if i < len(some))
        if len(found) >= N_LARGE:
            break
    return sorted(list(found)[:N_LARGE])


def _missing_images(thumbnails: Thumbnails, n_images: int, root: Path) -> list[str]:
    reasons = pd.Series(list(thumbnails.missing.values()), dtype=object).value_counts()
    if reasons.empty:
        return []
    why = "; ".join(f"{n:,}: {reason}" for reason, n in reasons.head(4).items())
    advice = "" if root.exists() else f" {root} is not there: name the images with --data."
    return [f"{int(reasons.sum()):,} of {n_images:,} images have no thumbnail ({why}).{advice}"]


def _map(gathered: RunData, method: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The feature map of the shortlist's first module."""
    board = gathered.board[gathered.board["shortlist"].notna()].sort_values("shortlist")
    module = str(board["module"].iloc[0])
    contents = feature_map.chosen_contents(gathered.images["sha256"].tolist())
    file = feature_map.MapFile(gathered.run.folder / "report", module, method)
    seed = gathered.fit.seed
    identity = file.identity(gathered.fit.modules[module].module_sha256, contents, seed)
    plane = file.load(identity)
    if plane is None:
        try:
            with Bottlenecks(gathered.fit.cache_folder / f"{module}.h5") as bottlenecks:
                features = bottlenecks.rows(contents)
        except CacheError as error:
            return None, {"map_note": "", "map_missing": f"No map: {error}"}
        _log.info(
            "%s map of %s images of %s; this may take a minute", method, len(contents), module
        )
        plane = feature_map.project(features, method, seed)
        file.save(identity, contents, plane)
    place = {sha256: i for i, sha256 in enumerate(contents)}
    at = [(row, place[s]) for row, s in enumerate(gathered.images["sha256"]) if s in place]
    sample = f", a sample of {len(at):,}" if len(at) < len(gathered.images) else ""
    name = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    note = (
        f"{name} of the bottlenecks of {module}{sample}: near is alike for the module, far says "
        "little. Hover or tap for the picture; drag to move; click the map, then the wheel zooms."
    )
    values = {
        "rows": [row for row, _ in at],
        "x": [float(plane[i, 0]) for _, i in at],
        "y": [float(plane[i, 1]) for _, i in at],
    }
    return values, {"map_note": note, "map_missing": ""}


def _saliency(shown: list[SaliencyRow], note: str) -> dict[str, Any]:
    rows = [
        {
            "path": one.path,
            "label": one.label,
            "said": one.said,
            "image": as_uri(one.image, 70),
            "maps": [as_uri(picture, 70) for picture in one.overlays],
        }
        for one in shown
    ]
    return {"saliency": rows, "saliency_note": note}


def _training(
    gathered: RunData, training_charts: dict[str, list[tuple[str, str, dict[str, Any]]]]
) -> dict[str, Any]:
    metric = gathered.fit.metric
    rows = []
    for module, record in gathered.finetune.modules.items():
        words = []
        for metrics in (record.head_test, record.test):
            figure = metrics.get(metric)
            frame = (
                dict(zip((metric, f"{metric}_low", f"{metric}_high"), figure, strict=True))
                if figure
                else {}
            )
            words.append(charts.figure_words(frame, metric))
        kept = str(record.kept_epoch) if record.kept_epoch else "none beat the head"
        rows.append({"module": module, "before": words[0], "after": words[1], "kept": kept})
    training = {
        module: [(name, what, charts.line_names(chart)) for name, what, chart in of_module]
        for module, of_module in training_charts.items()
    }
    return {"training": training, "tuned": rows, "order": _order(gathered.finetune.order)}


def _order(order: OrderRecord | None) -> dict[str, Any] | None:
    if order is None:
        return None
    tau, metric = order.kendall_tau, charts.metric_name(order.metric)
    told = [] if tau is None else [f"Kendall's tau of the two orders: {tau:.2f} (1: the same)."]
    told.append(f"Taking the first by screening costs {order.regret:.4g} in {metric} (regret).")
    pairs = list(zip(order.screening, order.finetuned, strict=True))
    return {"pairs": pairs, "sentence": " ".join(told)}
