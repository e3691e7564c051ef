"""Thumbnails of thousands of images in a few sheets, so that a page of them stays small."""

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

from hubretrain.data.images import read_image
from hubretrain.errors import DataError
from hubretrain.parallel import ahead
from hubretrain.progress import Bar

BUDGET = 22_000_000  # pixels of all thumbnails together, some 4 MB of WebP
LONGEST, SHORTEST = 96, 28  # pixels, the longer side of a thumbnail
SHEET = 1536  # pixels, at most, the side of a sheet
QUALITY = 55
N_PROBED = 40  # images that say what shape a thumbnail has


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small pictures in sheets.

    Attributes:
        width: Of a thumbnail, pixels.
        height: Of a thumbnail, pixels.
        columns: Thumbnails side by side in a sheet.
        rows: Thumbnails one below the other in a sheet.
        sheets: WebP pictures as data URIs.
        place: int64 (n_images,), the number of each image's thumbnail; -1 where there is none.
        sizes: int64 (n_images, 2), width and height of each image, pixels; 0 where unknown.
        missing: Why an image has none, by its row.
    """

    width: int
    height: int
    columns: int
    rows: int
    sheets: tuple[str, ...]
    place: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    missing: dict[int, str]


def make_thumbnails(
    root: Path,
    paths: Sequence[str],
    sha256s: Sequence[str],
    first: Sequence[int] = (),
    *,
    budget: int = BUDGET,
    longest: int = LONGEST,
) -> Thumbnails:
    """Makes a thumbnail of each image that can be read and still is what the run saw.

    Args:
        root: The folder that paths are relative to.
        paths: The image files.
        sha256s: Their contents when the run was fitted; blank where not known.
        first: Rows to begin with, where there are too many images for all.
        budget: Pixels of all thumbnails together.
        longest: Pixels, at most, the longer side of one.
    """
    n_most = budget // SHORTEST**2
    wanted = list(dict.fromkeys([*map(int, first), *range(len(paths))]))[:n_most]
    wanted.sort()
    width, height = _shape(root, [paths[i] for i in wanted], budget, longest)
    columns, rows = SHEET // width, SHEET // height
    place = np.full(len(paths), -1, np.int64)
    sizes = np.zeros((len(paths), 2), np.int64)
    missing: dict[int, str] = {}
    sheets: list[str] = []
    sheet, n = Image.new("RGB", (columns * width, rows * height)), 0

    def small(row: int) -> tuple[Image.Image | None, tuple[int, int], str]:
        try:
            image = read_image(root, paths[row], sha256s[row])
        except DataError as error:
            return None, (0, 0), str(error)
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BOX)
        return fitted, image.size, ""

    with Bar("thumbnails", len(wanted)) as bar:
        for row, (picture, size, why) in ahead(small, wanted):
            bar.advance()
            if picture is None:
                missing[row] = why
                continue
            sizes[row], place[row] = size, n
            at = n % (columns * rows)
            sheet.paste(picture, (at % columns * width, at // columns * height))
            n += 1
            if n % (columns * rows) == 0:
                sheets.append(as_uri(sheet))
                sheet = Image.new("RGB", sheet.size)
    if n % (columns * rows):
        used = math.ceil((n % (columns * rows)) / columns)
        sheets.append(as_uri(sheet.crop((0, 0, sheet.width, used * height))))
    left_out = set(range(len(paths))) - set(wanted)
    missing |= dict.fromkeys(sorted(left_out), "there are too many images for a page")
    return Thumbnails(width, height, columns, rows, tuple(sheets), place, sizes, missing)


def as_uri(picture: Image.Image, quality: int = QUALITY) -> str:
    """A picture as the data URI of a WebP file."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shape(root: Path, paths: Sequence[str], budget: int, longest: int) -> tuple[int, int]:
    """Width and height of a thumbnail: the shape most images have, as large as the page bears."""
    ratios = []
    for path in paths[:: max(1, len(paths) // N_PROBED)]:
        try:
            image = read_image(root, path)
        except DataError:
            continue
        ratios.append(image.width / image.height)
    ratio = min(2.0, max(0.5, float(np.median(ratios)))) if ratios else 1.0
    fits = math.sqrt(budget / max(1, len(paths)) * max(ratio, 1 / ratio))
    side = int(max(SHORTEST, min(longest, fits)))
    if ratio >= 1:
        return side, max(1, round(side / ratio))
    return max(1, round(side * ratio)), side
