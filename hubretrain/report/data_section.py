"""The page's section on the data: parts, sizes, copies, quarantine, views."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.data import Quarantine
from hubretrain.data.images import draw_contact_sheet
from hubretrain.data.splitting import leaked_images, part_table
from hubretrain.errors import DataError
from hubretrain.report import provenance
from hubretrain.report.run_data import RunData, near_pairs
from hubretrain.report.thumbnails import Thumbnails, as_uri

N_SHEET_IMAGES, N_SHEET_VIEWS, SHEET_VIEW = 5, 6, 112


def data_values_of(gathered: RunData, thumbnails: Thumbnails, root: Path) -> dict[str, Any]:
    """What the page's section on the data shows.

    Args:
        gathered: The run.
        thumbnails: Of all images, for their sizes.
        root: The folder that image paths are relative to.
    """
    images = gathered.images
    parts = part_table(images["fold"], images["label"])
    counts = [
        (name, [int(n) for n in parts[name]] if name in parts else [0] * len(parts),
         int((images["label"] == name).sum()))
        for name in gathered.class_names
    ]  # fmt: skip
    facts = []
    sizes = pd.DataFrame(thumbnails.sizes, columns=["w", "h"])
    sizes = sizes[sizes["w"] > 0].value_counts().reset_index()
    if len(sizes):
        most = sizes.head(3).to_numpy().tolist()
        shown = ", ".join(f"{width} x {height} ({n:,})" for width, height, n in most)
        n = "1 size" if len(sizes) == 1 else f"{len(sizes):,} sizes"
        facts.append(f"{n}, pixels; most often {shown}.")
    n_copies = int(images["sha256"].duplicated().sum())
    pairs = near_pairs(gathered)
    here = set(images["sha256"])
    near = "near duplicates are not known, for no search for them is in the cache"
    if pairs is not None:
        n_near = int((pairs["a"].isin(here) & pairs["b"].isin(here)).sum())
        near = f"{n_near:,} pairs of near duplicates"
    facts.append(f"{n_copies:,} exact copies; {near}.")
    conflicting = images.groupby("sha256")["label"].transform("nunique") > 1
    if int(conflicting.sum()):
        shown = ", ".join(images.loc[conflicting, "path"].head(6))
        facts.append(
            f"{int(conflicting.sum()):,} files are copies under different classes: {shown}."
        )
    sizes_of = images.groupby("group").size()
    n_leaked = leaked_images(images["fold"], images["group"])
    facts.append(
        f"{len(sizes_of):,} groups, {int((sizes_of > 1).sum()):,} with several images; images "
        f"whose group stands on both sides of a split: {n_leaked:,}."
    )
    quarantine = Quarantine(gathered.fit.cache_folder / "quarantine.csv")
    if gathered.fit.cache_folder.exists():
        facts.append(f"{len(quarantine.reasons):,} contents cannot be decoded and are left out.")
    else:
        facts.append(f"What cannot be decoded is not known: {gathered.fit.cache_folder} is gone.")
    if (gathered.run.folder / "data_check.html").exists():
        facts.append("More is in data_check.html beside this page.")
    sheet, note = _views(gathered, root)
    return {
        "parts": list(parts.index),
        "class_counts": counts,
        "data_facts": facts,
        "quarantined": quarantine.listed()[:50],
        "views": sheet,
        "views_note": note,
    }


def _views(gathered: RunData, root: Path) -> tuple[str, str]:
    """The contact sheet: how augmentation changes a few images."""
    cached = next(iter(gathered.fit.modules.values()))
    facts: Mapping[str, Any] = cached.attributes
    what, n_views = "augmented views as they are cached", N_SHEET_VIEWS
    if gathered.finetune.modules:
        module, record = next(iter(gathered.finetune.modules.items()))
        facts, what = record.identity["augmentation"], f"views as {module} was fine-tuned on"
    else:
        n_views = min(n_views, max(cached.n_views or n_views, cached.minority_views or 1))
    if n_views < 2:
        return "", ""  # nothing is augmented
    try:
        augmentation = provenance.augmentation_of(facts)
        seed = int(facts.get("seed", 0))
        sheet, _ = draw_contact_sheet(
            root, gathered.images, n_views, augmentation, seed, n_images=N_SHEET_IMAGES,
            size=SHEET_VIEW,
        )  # fmt: skip
    except (DataError, ValueError, TypeError):  # facts of another version
        return "", ""
    if sheet is None:
        return "", ""
    changed = " ".join(provenance.augmentation_words(facts)) or "the usual augmentation"
    return as_uri(sheet, 70), f"On the left the image as it is, then {what}: {changed}."
