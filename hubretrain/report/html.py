"""Self-contained HTML pages, rendered with Jinja.

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
from PIL import Image
from rich.filesize import decimal

from hubretrain.files import whole_file

THUMBNAIL_SIDE = 160  # pixels, the longer side
JPEG_QUALITY = 72


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
