"""The report's section on the data: splits, sizes, duplicates, quarantine, augmented views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.data import Quarantine, labels_of, reading_as
from hubretrain.data.images import draw_contact_sheet
from hubretrain.data.splitting import leaked_images, part_table
from hubretrain.errors import DataError
from hubretrain.option_fields import flags_of
from hubretrain.report import provenance
from hubretrain.report.run_data import RunData, near_pairs
from hubretrain.report.thumbnails import Thumbnails, as_uri

N_SHEET_IMAGES, N_SHEET_VIEWS, SHEET_VIEW_SIDE = 5, 6, 112
SHEET_QUALITY = 70
MAX_QUARANTINED = 50
MAX_PATHS = 6  # in a sentence


def data_section(run_data: RunData, thumbnails: Thumbnails, root: Path) -> dict[str, Any]:
    """Return the template values of the section.

    Args:
        run_data: The run.
        thumbnails: Thumbnails of all images, which know the images' sizes.
        root: The folder that image paths are relative to.
    """
    images = run_data.images
    of_image = labels_of(images["label"], run_data.multi_label)
    repeats = [len(labels) for labels in of_image]
    labels = pd.Series([name for labels in of_image for name in labels], dtype=object)
    parts = part_table(images["fold"].repeat(repeats).reset_index(drop=True), labels)
    no_images = [0] * len(parts)
    quarantine = Quarantine(run_data.fit.cache_folder)
    sheet, note = _contact_sheet(run_data, root)
    return {
        "parts": list(parts.index),
        "class_counts": [
            (
                name,
                parts[name].astype(int).tolist() if name in parts else no_images,
                int((labels == name).sum()),
            )
            for name in run_data.class_names
        ],
        "data_notes": list(_notes(run_data, thumbnails, len(quarantine.reasons))),
        "quarantined": quarantine.listed()[:MAX_QUARANTINED],
        "views": sheet,
        "views_note": note,
    }


def _notes(run_data: RunData, thumbnails: Thumbnails, n_quarantined: int) -> Iterator[str]:
    """Describe the data, one sentence each."""
    yield from _size_note(thumbnails)
    yield from _duplicate_notes(run_data)
    images, cache_folder = run_data.images, run_data.fit.cache_folder
    group_sizes = images.groupby("group").size()
    n_leaked = leaked_images(images["fold"], images["group"])
    yield (
        f"{len(group_sizes):,} groups, {int((group_sizes > 1).sum()):,} with several images; "
        f"images whose group is on both sides of a split: {n_leaked:,}."
    )
    if cache_folder.exists():
        yield f"{n_quarantined:,} distinct files cannot be decoded and are left out."
    else:
        yield f"How many files cannot be decoded is unknown: {cache_folder} does not exist."
    if (run_data.run.folder / "data_check.html").exists():
        yield "See data_check.html beside this page for more."


def _size_note(thumbnails: Thumbnails) -> Iterator[str]:
    sizes = pd.DataFrame(thumbnails.sizes, columns=["width", "height"])
    counts = sizes[sizes["width"] > 0].value_counts().reset_index()
    if len(counts):
        most = counts.head(3).to_numpy().tolist()
        common = ", ".join(f"{width} x {height} ({n:,})" for width, height, n in most)
        n_sizes = "1 image size" if len(counts) == 1 else f"{len(counts):,} image sizes"
        yield f"{n_sizes} in pixels, most often {common}."


def _duplicate_notes(run_data: RunData) -> Iterator[str]:
    images, pairs = run_data.images, near_pairs(run_data)
    near = "near duplicates are unknown, because the cache records no search for them"
    if pairs is not None:
        present = set(images["sha256"])
        n_near = int((pairs["a"].isin(present) & pairs["b"].isin(present)).sum())
        near = f"{n_near:,} pairs of near duplicates"
    yield f"{int(images['sha256'].duplicated().sum()):,} exact duplicates; {near}."
    is_conflict = images.groupby("sha256")["label"].transform("nunique") > 1
    if is_conflict.any():
        n_conflicts, paths = int(is_conflict.sum()), images.loc[is_conflict, "path"]
        shown = ", ".join(paths.head(MAX_PATHS))
        yield f"{n_conflicts:,} files are exact duplicates with different labels: {shown}."


def _contact_sheet(run_data: RunData, root: Path) -> tuple[str, str]:
    """Return a picture of augmented views of a few images, and a note; blank without views."""
    cached = next(iter(run_data.fit.modules.values()))
    attributes: Mapping[str, Any] = cached.attributes
    what, n_views = "augmented views as cached", N_SHEET_VIEWS
    if run_data.finetune.modules:
        module, record = next(iter(run_data.finetune.modules.items()))
        attributes = record.identity["augmentation"]
        what = f"augmented views as in the fine-tuning of {module}"
    else:
        n_views = min(n_views, max(cached.n_views or n_views, cached.minority_views or 1))
    if n_views < 2:
        return "", ""  # nothing is augmented
    try:
        sheet, _ = draw_contact_sheet(
            root,
            run_data.images,
            n_views,
            provenance.augmentation_of(attributes),
            int(attributes.get("seed", 0)),
            n_images=N_SHEET_IMAGES,
            size=SHEET_VIEW_SIDE,
            reading=reading_as(run_data.fit.data_options),
        )
    except (DataError, ValueError, TypeError):  # attributes of another version
        return "", ""
    if sheet is None:
        return "", ""
    options = " ".join(flags_of(provenance.augmentation_of(attributes))) or "default augmentation"
    return as_uri(sheet, SHEET_QUALITY), f"Left: the image itself, then {what}: {options}."
