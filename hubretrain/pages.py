"""Pages of HTML that need nothing but themselves: no network, no script. The one door to Jinja.

Every value is escaped, and a content security policy keeps the browser from loading or running
anything, whatever a class or a file is called.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from hubretrain.files import whole_file

THUMBNAIL = 160  # pixels, the longer side
JPEG_QUALITY = 72


def write_page(file: Path, template: str, values: Mapping[str, Any]) -> None:
    """Renders a template of ``hubretrain/templates`` to a file, whole or not at all.

    Raises:
        RunError: The file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hubretrain"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": readable_bytes, "number": "{:,}".format, "percent": _percent}
    page = environment.get_template(template).render(values)
    with whole_file(file) as aside:
        aside.write_text(page, encoding="utf-8")


def thumbnail(image: Image.Image) -> str:
    """A small JPEG of an image as a data URI, at most ``THUMBNAIL`` pixels at the longer side."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def readable_bytes(n: int) -> str:
    """A number of bytes for people: 999 B, 35.4 MB."""
    size, unit = float(n), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
