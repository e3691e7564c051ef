"""What image files say of themselves before they are decoded: format, colours, width, height."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from hubretrain.parallel import ahead
from hubretrain.storage import is_remote, located, read_bytes, stamp_of

COLUMNS = ("n_bytes", "format", "mode", "width", "height")
SUFFIXES_OF = {
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "JPEG": {".jpg", ".jpeg"},
    "MPO": {".jpg", ".jpeg"},  # a JPEG with a second picture, as some cameras write
    "PNG": {".png"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
}


def read_headers(
    root: Path, paths: Sequence[str], progress: Callable[[int], object] | None = None
) -> pd.DataFrame:
    """The headers of image files.

    Args:
        root: The folder that `paths` are relative to.
        paths: The image files.
        progress: Called with the number of files just read.

    Returns:
        One row a file: `n_bytes` (int64), `format` and `mode` (as Pillow names them; blank
        where it knows no such image), `width` and `height` (int64, pixels, as stored: EXIF
        may turn them; 0 where unknown).
    """
    rows = []
    for _, row in ahead(lambda path: _header(located(root, path)), paths):
        rows.append(row)
        if progress is not None:
            progress(1)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"n_bytes": "int64", "width": "int64", "height": "int64"})


def _header(place: str) -> tuple[int, str, str, int, int]:
    n_bytes = 0
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        n_bytes = stamp_of(place)[0]
        with Image.open(io.BytesIO(read_bytes(place)) if is_remote(place) else place) as image:
            return n_bytes, image.format or "", image.mode, *image.size
    return n_bytes, "", "", 0, 0
