"""Pages of HTML that need nothing but themselves: no network. The one door to Jinja.

Every value is escaped, and a content security policy keeps the browser from loading or running
anything, whatever a class or a file is called: anything but the page's own script, which the policy
names by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from hubretrain.files import whole_file

THUMBNAIL = 160  # pixels, the longer side
JPEG_QUALITY = 72


def write_page(
    file: Path, template: str, values: Mapping[str, Any], scripts: Sequence[str] = ()
) -> None:
    """Renders a template of `hubretrain/report/templates` to a file, whole or not at all.

    Args:
        file: Where to.
        template: Its name.
        values: What it shows; JSON values go through the filter `tojson`, which escapes them.
        scripts: Names of templates that become one `script`, run as `script_digest` allows.

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
    environment.filters |= {"bytes": readable_bytes, "number": "{:,}".format, "percent": _percent}
    page = environment.get_template(template).render(values)
    with whole_file(file) as aside:
        aside.write_text(page, encoding="utf-8")


def source(name: str) -> str:
    """The text of a style sheet or script among the templates."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def thumbnail(image: Image.Image) -> str:
    """A small JPEG of an image as a data URI, at most `THUMBNAIL` pixels at the longer side."""
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
