"""The report stage: `report.html`, one self-contained page of a run.

The run is read (`run_data`), each section is computed from it, and the page is rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain._version import __version__
from hubretrain.csv_tables import write_table
from hubretrain.data import reading_as
from hubretrain.data.images import Reading
from hubretrain.export import EvaluatedExport
from hubretrain.files import StrPath
from hubretrain.progress import progress_shown
from hubretrain.report import charts, figures, label_errors, payload, provenance, sections
from hubretrain.report.data_section import data_section
from hubretrain.report.depth import depth_section
from hubretrain.report.html import write_page
from hubretrain.report.run_data import (
    EXPORT,
    OTHER_IMAGES,
    OUT_OF_FOLD,
    EvaluatedModel,
    PredictedImages,
    RunData,
    gather,
)
from hubretrain.report.saliency import saliency_section
from hubretrain.report.thumbnails import Thumbnails, make_thumbnails
from hubretrain.runs import ENSEMBLE, Run

SCRIPTS = ("charts.js", "report.js", "map.js")
LABEL_SCRIPT = "labels.js"  # of pages on images that may have several labels
MAX_LARGE = 160  # images with a larger thumbnail
MAX_LARGE_PIXELS, LARGE_SIDE = 3_000_000, 144  # of all; the longer side of one
N_SALIENCY = 8


@dataclass(frozen=True)
class Report:
    """The files of a report.

    Attributes:
        page: The page.
        label_errors: The CSV of labels to review.
        n_doubtful: Number of labels to review.
        missing: What the page cannot show, one sentence each.
        pictures: The PNG files.
    """

    page: Path
    label_errors: Path
    n_doubtful: int
    missing: tuple[str, ...]
    pictures: tuple[Path, ...] = ()


def write_report(
    run: Run | StrPath,
    *,
    data: StrPath | None = None,
    output: StrPath | None = None,
    png: StrPath | None = None,
    map_method: str = "tsne",
    n_saliency: int = N_SALIENCY,
) -> Report:
    """Write the report of a run: `report.html` and `label_errors.csv`.

    Args:
        run: A fitted run, or its folder.
        data: Folder of the images; by default the one that the run was fitted on.
        output: The page; by default `report.html` in the run folder.
        png: A folder for the charts as PNG files, or None.
        map_method: Layout of the feature map, `tsne` or `umap`.
        n_saliency: Number of images with saliency maps.

    Raises:
        RunError: The run is not fitted, or is damaged.
        WriteError: A file cannot be written.
        DataError: The map method is unknown or not installed, or matplotlib is not installed.

    Examples:
        >>> from hubretrain import write_report
        >>> report = write_report("runs/digits", n_saliency=0)
        >>> report.page.as_posix()
        'runs/digits/report.html'
    """
    if png is not None:
        figures.require_matplotlib()
    run = Run.of(run)
    run_data = gather(run)
    root = Path(data or run_data.fit.data)
    hints = label_errors.hints_of(run_data)
    doubtful = _doubtful_labels(run_data, hints)
    csv = run.folder / "label_errors.csv"
    write_table(csv, doubtful[list(label_errors.COLUMNS)])

    large_rows = _most_confident_errors(
        run_data, doubtful["row"].head(sections.MAX_DOUBTFUL).tolist()
    )
    thumbnails, large = _thumbnails(
        run_data.images, root, large_rows, reading_as(run_data.fit.data_options)
    )
    missing = (*run_data.missing, *sections.missing_thumbnails(thumbnails, root))
    board, cost_charts = charts.board_rows(run_data), charts.cost_charts(run_data)
    training_charts = charts.training_charts(run_data)
    depth, depth_chart = depth_section(run_data)
    fixed_charts = cost_charts | depth_chart
    for of_module in training_charts.values():
        fixed_charts |= of_module
    map_section, points = sections.features(run_data, map_method)
    wrong = _misclassified_rows(run_data)
    values = {
        "name": run.name,
        "run_folder": run.folder.as_posix(),
        "data_folder": str(run_data.fit.data),
        "version": __version__,
        "sheets": {"sheet": thumbnails.sheets, "large": large.sheets},
        "missing": missing,
        "n_models": len(run_data.models),
        "multi_label": run_data.multi_label,
        **sections.summary(run_data, board),
        **sections.leaderboard(run_data, board, cost_charts),
        **depth,
        **map_section,
        **saliency_section(run_data, root, n_saliency),
        **sections.label_errors(doubtful, csv, multi_label=run_data.multi_label),
        **sections.training(run_data, training_charts),
        **data_section(run_data, thumbnails, root),
        **provenance.section(run_data),
        "data": payload.page_payload(
            run_data,
            thumbnails,
            large,
            large_rows,
            {row: hint for row, hint in hints.items() if row in wrong},
            points,
            fixed_charts,
        ),
    }
    page = Path(output or run.folder / "report.html")
    scripts = (*SCRIPTS[:1], LABEL_SCRIPT, *SCRIPTS[1:]) if run_data.multi_label else SCRIPTS
    write_page(page, "report.html", values, scripts)
    pictures: tuple[Path, ...] = ()
    if png is not None:
        pictures = figures.write_figures(run_data, fixed_charts, points, Path(png))
    return Report(page, csv, len(doubtful), missing, pictures)


def write_evaluation(evaluated: EvaluatedExport, root: Path, page: Path) -> None:
    """Write the page of an export that was evaluated on another data set.

    Args:
        evaluated: Result of `hubretrain.export.evaluate_export`.
        root: Folder of the images.
        page: The file to write.

    Raises:
        WriteError: The page cannot be written.
    """
    images, names = evaluated.images, evaluated.class_names
    rows = np.arange(len(images))
    model = EvaluatedModel(
        evaluated.name,
        EXPORT,
        OTHER_IMAGES,
        rows,
        evaluated.probabilities,
        evaluated.decisions,
        evaluated.adjust,
        evaluated.temperature,
        evaluated.figures,
        evaluated.per_class,
        evaluated.thresholds,
    )
    predicted = PredictedImages(names, images, (model,), evaluated.multi_label)
    large_rows = _most_confident_errors(predicted, [])
    thumbnails, large = _thumbnails(images, root, large_rows)
    n_failed = len(evaluated.failed)
    values = {
        "name": evaluated.name,
        "data_folder": str(root),
        "version": __version__,
        "multi_label": predicted.multi_label,
        "sheets": {"sheet": thumbnails.sheets, "large": large.sheets},
        "missing": sections.missing_thumbnails(thumbnails, root),
        "summary": [
            ("images", f"{len(images):,}"),
            ("clusters", f"{images['cluster'].nunique():,}"),
            ("left out: seen by the model", f"{evaluated.n_known:,}"),
            ("left out: unreadable", f"{n_failed:,}"),
        ],
        "data": payload.page_payload(predicted, thumbnails, large, large_rows, {}, None, {}),
    }
    scripts = (SCRIPTS[0], LABEL_SCRIPT, SCRIPTS[1]) if predicted.multi_label else SCRIPTS[:2]
    write_page(page, "evaluation.html", values, scripts)


def _doubtful_labels(run_data: RunData, hints: dict[int, str]) -> pd.DataFrame:
    """Return the labels to review, by the ensemble or else the first module out of fold."""
    out_of_fold = [model for model in run_data.models if model.part == OUT_OF_FOLD]
    ensembles = [model for model in out_of_fold if model.kind == ENSEMBLE]
    for model in (*ensembles, *out_of_fold):
        return label_errors.label_errors(run_data, model, hints)
    return pd.DataFrame(columns=[*label_errors.COLUMNS, "row"])


def _thumbnails(
    images: pd.DataFrame, root: Path, large_rows: Sequence[int], reading: Reading = Reading()
) -> tuple[Thumbnails, Thumbnails]:
    """Return thumbnails of all images, and larger ones of some."""
    paths, sha256s = images["path"].tolist(), images["sha256"].tolist()
    thumbnails = make_thumbnails(root, paths, sha256s, large_rows, reading=reading)
    with progress_shown(False):  # a fraction of a second
        large = make_thumbnails(
            root,
            [paths[row] for row in large_rows],
            [sha256s[row] for row in large_rows],
            reading=reading,
            max_pixels=MAX_LARGE_PIXELS,
            max_side=LARGE_SIDE,
        )
    return thumbnails, large


def _misclassified_rows(run_data: RunData) -> set[int]:
    """Return the rows that some model misclassifies, adjusted or not."""
    labels = run_data.labels
    rows: set[int] = set()
    for model in run_data.models:
        truth, top_1 = labels[model.rows], model.probabilities.argmax(axis=1)
        if run_data.multi_label:
            rows |= set(model.rows[(model.decisions != truth).any(axis=1)].tolist())
            continue
        rows |= set(model.rows[(model.decisions != truth) | (top_1 != truth)].tolist())
    return rows


def _most_confident_errors(predicted: PredictedImages, others: list[int]) -> list[int]:
    """Return the rows with a larger thumbnail: the most confident errors of each model in turn.

    Args:
        predicted: The images and the models.
        others: Rows that take turns with those of the models.
    """
    labels = predicted.labels
    lists = []
    for model in predicted.models:
        if predicted.multi_label:
            is_wrong = model.decisions != labels[model.rows]
            wrong = np.flatnonzero(is_wrong.any(axis=1))
            of_decision = np.where(model.decisions, model.probabilities, 1 - model.probabilities)
            confidence = np.where(is_wrong, of_decision, 0.0).max(axis=1)[wrong]
        else:
            wrong = np.flatnonzero(model.decisions != labels[model.rows])
            confidence = model.probabilities[wrong, model.decisions[wrong]]
        lists.append(model.rows[wrong[np.argsort(-confidence, kind="stable")]].tolist())
    lists.append(others)
    chosen: dict[int, None] = {}
    for i in range(max(map(len, lists), default=0)):
        chosen |= dict.fromkeys(int(rows[i]) for rows in lists if i < len(rows))
        if len(chosen) >= MAX_LARGE:
            break
    return sorted(list(chosen)[:MAX_LARGE])
