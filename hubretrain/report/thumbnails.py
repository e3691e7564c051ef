"""Thumbnails of thousands of images in a few sheets, so that a page with them stays small."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hubretrain.data.images import Reading, read_image
from hubretrain.errors import DataError
from hubretrain.parallel import ahead
from hubretrain.progress import Bar

MAX_PIXELS = 22_000_000  # of all thumbnails together, some 4 MB of WebP
MAX_SIDE, MIN_SIDE = 96, 28  # pixels, the longer side of a thumbnail
SHEET_SIDE = 1536  # pixels, at most
WEBP_QUALITY = 55
N_SAMPLED = 40  # images whose median shape is the shape of the thumbnails


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small pictures in sheets.

    Attributes:
        width: Width of a thumbnail, pixels.
        height: Height of a thumbnail, pixels.
        columns: Number of thumbnails per row of a sheet.
        rows: Number of rows per sheet.
        sheets: The sheets, WebP pictures as data URIs.
        index: int64 (n_images,), number of each image's thumbnail, counted through the sheets;
            -1 where there is none.
        sizes: int64 (n_images, 2), width and height of each image, pixels; 0 where unknown.
        missing: Why an image has no thumbnail, by its row.
    """

    width: int
    height: int
    columns: int
    rows: int
    sheets: tuple[str, ...]
    index: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    missing: dict[int, str]


def make_thumbnails(
    root: Path,
    paths: Sequence[str],
    sha256s: Sequence[str],
    first: Sequence[int] = (),
    *,
    reading: Reading = Reading(),
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
) -> Thumbnails:
    """Make a thumbnail of each image that can be read and has not changed since the fit.

    Args:
        root: The folder that paths are relative to.
        paths: The image files.
        sha256s: Digests of the files when the run was fitted; blank where unknown.
        first: Rows of the images that come first, if there are too many images for all.
        reading: How image files are read.
        max_pixels: Largest number of pixels of all thumbnails together.
        max_side: Largest longer side of a thumbnail, pixels.
    """
    n_max = max_pixels // MIN_SIDE**2
    chosen = sorted(list(dict.fromkeys([*map(int, first), *range(len(paths))]))[:n_max])
    width, height = _shape(root, [paths[i] for i in chosen], max_pixels, max_side)
    sheets = _Sheets(width, height)
    index = np.full(len(paths), -1, np.int64)
    sizes = np.zeros((len(paths), 2), np.int64)
    missing: dict[int, str] = {}

    def shrink(row: int) -> tuple[Image.Image, tuple[int, int]] | str:
        try:
            image = read_image(root, paths[row], sha256s[row], reading)
        except DataError as error:
            return str(error)
        return ImageOps.fit(image, (width, height), Image.Resampling.BOX), image.size

    with Bar("thumbnails", len(chosen)) as bar:
        for row, result in ahead(shrink, chosen):
            bar.advance()
            if isinstance(result, str):
                missing[row] = result
            else:
                picture, sizes[row] = result
                index[row] = sheets.add(picture)
    left_out = sorted(set(range(len(paths))) - set(chosen))
    missing |= dict.fromkeys(left_out, "there are too many images for a page")
    uris = sheets.uris()
    return Thumbnails(width, height, sheets.columns, sheets.rows, uris, index, sizes, missing)


class _Sheets:
    """Sheets that are filled with thumbnails row by row, and encoded as soon as they are full."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self.columns, self.rows = SHEET_SIDE // width, SHEET_SIDE // height
        self._n = 0
        self._full: list[str] = []
        self._sheet = self._new()

    def _new(self) -> Image.Image:
        return Image.new("RGB", (self.columns * self._width, self.rows * self._height))

    def add(self, picture: Image.Image) -> int:
        """Add a thumbnail; return its number."""
        number = self._n
        row, column = divmod(number % (self.columns * self.rows), self.columns)
        self._sheet.paste(picture, (column * self._width, row * self._height))
        self._n += 1
        if self._n % (self.columns * self.rows) == 0:
            self._full.append(as_uri(self._sheet))
            self._sheet = self._new()
        return number

    def uris(self) -> tuple[str, ...]:
        """Return all sheets, the last one cut below its last thumbnail."""
        n_last = self._n % (self.columns * self.rows)
        if not n_last:
            return tuple(self._full)
        height = math.ceil(n_last / self.columns) * self._height
        return (*self._full, as_uri(self._sheet.crop((0, 0, self._sheet.width, height))))


def as_uri(picture: Image.Image, quality: int = WEBP_QUALITY) -> str:
    """Encode a picture as the data URI of a WebP file."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shape(root: Path, paths: Sequence[str], max_pixels: int, max_side: int) -> tuple[int, int]:
    """Return width and height of the thumbnails: the median shape, as large as `max_pixels` allows.

    The shape is of some of the images, at most 2 to 1.
    """
    ratios = []
    for path in paths[:: max(1, len(paths) // N_SAMPLED)]:
        try:
            image = read_image(root, path)
        except DataError:
            continue
        ratios.append(image.width / image.height)
    ratio = min(2.0, max(0.5, float(np.median(ratios)))) if ratios else 1.0
    side_that_fits = math.sqrt(max_pixels / max(1, len(paths)) * max(ratio, 1 / ratio))
    side = int(max(MIN_SIDE, min(max_side, side_that_fits)))
    if ratio >= 1:
        return side, max(1, round(side / ratio))
    return max(1, round(side * ratio)), side
