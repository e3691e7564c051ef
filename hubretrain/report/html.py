"""Self-contained HTML pages, rendered with Jinja, and the one of `data check`.

Every value is escaped, and a content security policy keeps the browser from loading or running
anything but the page's own script, whatever a class or a file is called; the policy names the
script by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image
from rich.filesize import decimal

from hubretrain.data import DataCheck, DuplicateSet, DuplicateSummary
from hubretrain.data.images import Reading, read_image
from hubretrain.errors import DataError
from hubretrain.files import whole_file

THUMBNAIL_SIDE = 160  # pixels, the longer side
JPEG_QUALITY = 72
# Of the page of `data check`:
MAX_PAIRS = 24
MAX_GROUPS = 8
MAX_PER_GROUP = 6
MAX_LISTED = 50
MAX_CLASSES_SHOWN = 40
N_EXAMPLES = 6


def write_page(
    path: Path, template: str, values: Mapping[str, Any], scripts: Sequence[str] = ()
) -> None:
    """Render a template of `hubretrain/report/templates` to a file, whole or not at all.

    Args:
        path: The file to write.
        template: Name of the template.
        values: Values of the template; JSON goes through the filter `tojson`, which escapes it.
        scripts: Names of the files that are joined to the page's script, `script` in the template.

    Raises:
        WriteError: The file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hubretrain.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": True,
        "separators": (",", ":"),
        "allow_nan": False,
    }
    script = "\n".join(source(name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"source": source, "script": script, "script_digest": digest}
    environment.filters |= {"bytes": decimal, "number": "{:,}".format, "percent": percent}
    page = environment.get_template(template).render(values)
    with whole_file(path) as aside:
        aside.write_text(page, encoding="utf-8")


def source(name: str) -> str:
    """Return the text of a style sheet or script among the templates."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def thumbnail(image: Image.Image) -> str:
    """Encode a small JPEG of an image as a data URI, its longer side `THUMBNAIL_SIDE` pixels."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def percent(share: float | None) -> str:
    """Format a share in [0, 1], such as `35.4 %`; blank for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def write_check_page(path: Path, check: DataCheck, root: Path) -> None:
    """Write `data_check.html`.

    Args:
        path: The file to write.
        check: Result of `hubretrain.data.check_dataset`.
        root: The folder that image paths are relative to.

    Raises:
        WriteError: The file cannot be written.
    """
    thumbnails = _Thumbnails(root, check.reading)
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
                check.images_of(of_class.name).drop_duplicates("cluster"), N_EXAMPLES
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

    def __init__(self, root: Path, reading: Reading) -> None:
        self.root, self.reading = root, reading

    def of(self, paths: Sequence[str], labels: Sequence[str], n_max: int) -> list[dict[str, str]]:
        """Return thumbnails of some images; where labels differ, of some with different ones."""
        order = sorted(range(len(paths)), key=lambda i: labels[:i].count(labels[i]))
        thumbnails = []
        for i in sorted(order[:n_max]):
            try:
                uri = thumbnail(read_image(self.root, paths[i], reading=self.reading))
            except DataError:  # the file has changed since the check
                uri = ""
            thumbnails.append({"path": paths[i], "label": labels[i], "uri": uri})
        return thumbnails

    def of_rows(self, rows: pd.DataFrame, n_max: int = MAX_PER_GROUP) -> list[dict[str, str]]:
        """Return thumbnails of some images of the table, evenly spread over them."""
        rows = rows.iloc[:: max(1, len(rows) // n_max)].head(n_max)
        return self.of(rows["path"].tolist(), rows["label"].tolist(), n_max)
