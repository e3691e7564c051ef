"""The page of `data check`: the summary of a data set, with thumbnails of notable images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.data import DataCheck, DuplicateSet, DuplicateSummary
from hubretrain.data.images import read_image
from hubretrain.errors import DataError
from hubretrain.report.html import thumbnail, write_page

MAX_PAIRS = 24
MAX_GROUPS = 8
MAX_PER_GROUP = 6
MAX_LISTED = 50
MAX_CLASSES_SHOWN = 40
N_EXAMPLES = 6


def write_check_page(path: Path, check: DataCheck, root: Path) -> None:
    """Write `data_check.html`.

    Args:
        path: The file to write.
        check: Result of `hubretrain.data.check_dataset`.
        root: The folder that image paths are relative to.

    Raises:
        WriteError: The file cannot be written.
    """
    thumbnails = _Thumbnails(root)
    summary = check.summary
    duplicates = _conflicting_first(summary.duplicates)
    usable = check.images[check.images["unreadable"] == ""]
    values: dict[str, Any] = {
        "summary": summary,
        "findings": check.findings,
        "largest_class": max(of_class.n_images for of_class in summary.classes),
        "duplicates": [
            (images, thumbnails.of(images.paths, images.labels, 2))
            for images in duplicates[:MAX_PAIRS]
        ],
        "n_duplicates": len(duplicates),
        "mixed_groups": [
            (mixed, thumbnails.of_rows(usable[usable["group"] == mixed.group]))
            for mixed in summary.groups.mixed_classes[:MAX_GROUPS]
        ],
        "examples": {
            of_class.name: thumbnails.of_rows(
                usable[usable["label"] == of_class.name].drop_duplicates("cluster"), N_EXAMPLES
            )
            for of_class in summary.classes[:MAX_CLASSES_SHOWN]
        },
        "listed": MAX_LISTED,
    }
    write_page(path, "data_check.html", values)


def _conflicting_first(duplicates: DuplicateSummary) -> list[DuplicateSet]:
    """Return different labels first, then near duplicates across groups, then the others."""
    across_groups = [pair for pair in duplicates.near if not pair.one_group]
    in_order = (*duplicates.conflicting, *across_groups, *duplicates.near, *duplicates.exact)
    return list(dict.fromkeys(in_order))


class _Thumbnails:
    """Thumbnails of images, each with its path and label."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, paths: Sequence[str], labels: Sequence[str], n_max: int) -> list[dict[str, str]]:
        """Return thumbnails of some images; where labels differ, of some with different ones."""
        order = sorted(range(len(paths)), key=lambda i: labels[:i].count(labels[i]))
        thumbnails = []
        for i in sorted(order[:n_max]):
            try:
                uri = thumbnail(read_image(self.root, paths[i]))
            except DataError:  # the file has changed since the check
                uri = ""
            thumbnails.append({"path": paths[i], "label": labels[i], "uri": uri})
        return thumbnails

    def of_rows(self, rows: pd.DataFrame, n_max: int = MAX_PER_GROUP) -> list[dict[str, str]]:
        """Return thumbnails of some images of the table, evenly spread over them."""
        rows = rows.iloc[:: max(1, len(rows) // n_max)].head(n_max)
        return self.of(rows["path"].tolist(), rows["label"].tolist(), n_max)
