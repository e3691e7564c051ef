"""The page that `data check` writes: its facts, with thumbnails of what is worth a look."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.data import Facts, Finding
from hubretrain.data.images import read_image
from hubretrain.errors import DataError
from hubretrain.report.html import thumbnail, write_page

MAX_PAIRS = 24
MAX_GROUPS = 8
MAX_OF_A_GROUP = 6
MAX_LISTED = 50
MAX_CLASSES_SHOWN = 40  # with examples
N_EXAMPLES = 6


def write_check_page(
    file: Path, facts: Facts, findings: Iterable[Finding], images: pd.DataFrame, root: Path
) -> None:
    """Writes `data_check.html`.

    Args:
        file: Where to.
        facts: As `check.check_dataset` gives them.
        findings: What they mean.
        images: The image table.
        root: The folder that its paths are relative to.

    Raises:
        WriteError: The file cannot be written.
    """
    thumbnails = _Thumbnails(root)
    duplicates = facts["duplicates"]
    shown = [*duplicates["conflicting"]]
    shown += [one for one in duplicates["near"] if one not in shown and not one["one_group"]]
    shown += [one for one in duplicates["near"] if one not in shown]
    shown += [one for one in duplicates["exact"] if one not in shown]
    usable = images[images["unreadable"] == ""]
    values: dict[str, Any] = {
        "facts": facts,
        "findings": list(findings),
        "largest_class": max(one["n_images"] for one in facts["classes"]),
        "copies": [
            {**one, "pictures": thumbnails.of(one["paths"], one["labels"], 2)}
            for one in shown[:MAX_PAIRS]
        ],
        "n_copies": len(shown),
        "mixed": [
            {**one, "pictures": thumbnails.of_rows(usable[usable["group"] == one["group"]])}
            for one in facts["groups"]["mixed_classes"][:MAX_GROUPS]
        ],
        "examples": {
            one["name"]: thumbnails.of_rows(
                usable[usable["label"] == one["name"]].drop_duplicates("cluster"), N_EXAMPLES
            )
            for one in facts["classes"][:MAX_CLASSES_SHOWN]
        },
        "listed": MAX_LISTED,
    }
    write_page(file, "data_check.html", values)


class _Thumbnails:
    """Thumbnails of images, each with its path and label."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, paths: list[str], labels: list[str], at_most: int) -> list[dict[str, str]]:
        """Of some images; where labels differ, of some with different ones."""
        order = sorted(range(len(paths)), key=lambda i: labels[:i].count(labels[i]))
        found = []
        for i in sorted(order[:at_most]):
            try:
                picture = thumbnail(read_image(self.root, paths[i]))
            except DataError:  # gone since it was looked at
                picture = ""
            found.append({"path": paths[i], "label": labels[i], "picture": picture})
        return found

    def of_rows(self, rows: pd.DataFrame, at_most: int = MAX_OF_A_GROUP) -> list[dict[str, str]]:
        """Of some images of the table, evenly spread over them."""
        rows = rows.iloc[:: max(1, len(rows) // at_most)].head(at_most)
        return self.of(rows["path"].tolist(), rows["label"].tolist(), at_most)
