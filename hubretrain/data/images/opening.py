"""Image files opened so that neither their pixels nor the work to decode them are without bound.

A small file can keep a decoder busy for minutes: a progressive JPEG whose scans repeat, tiles that
are larger than the image, millions of empty segments. All bounds are counts of what is in the
file, not seconds, so that an image is refused on every machine or on none.
"""

from __future__ import annotations

import io
import re

from PIL import Image, ImageFile

from hubretrain.data.images.formats import open_format
from hubretrain.data.images.reading import MAX_PIXELS
from hubretrain.errors import DataError

# Each scan of a JPEG goes over all its pixels; photographs have about 10, and libtiff, too, reads
# at most 100 (LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER).
_MAX_SCANS = 100
_MAX_SEGMENTS = 10_000
# EXIF data, which Pillow joins part by part, and colour profiles, of which it unpacks each one.
_MAX_PROFILES = 100
_TOO_MANY = re.compile(
    r"(?:(?P<width>\d+) x (?P<height>\d+) pixels|tiles of (?P<tiles>\d+) pixels together);.*"
)
_SCAN, _END, _WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)
# The next marker, after fill bytes: neither a stuffed zero nor a restart marker.
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
# Parts that a file is read in, each a step in Python: 64 KiB of pixels, a chunk of a PNG, a field
# of a header. A BMP that is run-length encoded is read by the byte.
_MAX_READS, _BYTES_PER_READ, _MAX_READS_OF_BMP = 20_000, 256, 1_000_000
_MAX_NUMBERS = 20_000_000  # that Pillow scales or reads one by one, each a step in Python
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323  # tags of TIFF


class TooManyPixelsError(DataError):
    """An image that is larger than may be decoded."""


class TooCostlyError(DataError):
    """An image that would take far longer to decode than its size explains."""


def pixels_refused(reason: str) -> int | None:
    """Return the number of pixels that a `TooManyPixelsError` names; None for another reason."""
    match = _TOO_MANY.fullmatch(reason)
    if match is None:
        return None
    return int(match["tiles"] or int(match["width"]) * int(match["height"]))


def open_header(file: io.FileIO | io.BytesIO) -> ImageFile.ImageFile:
    """Open an image file of a known format, of any size, to read its header.

    Raises:
        DataError: It is HEIC, and pillow-heif is not installed.
        TooCostlyError: The header has more parts than its size explains.
        Exception: Pillow's parsers raise nearly every type on damaged files.
    """
    return open_format(_BoundedFile(file))


def open_bounded(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """Open an image file of a known format without decoding it.

    Decoding what is returned takes seconds at most, or raises `TooCostlyError`.

    Args:
        data: The file's bytes.
        max_pixels: The largest image, width times height.

    Raises:
        TooManyPixelsError: The image is larger.
        TooCostlyError: It has parts that cost far more than its size explains.
        Exception: Pillow's parsers raise nearly every type on damaged files.
    """
    image = open_header(io.BytesIO(data))
    if image.width * image.height > max_pixels:
        raise TooManyPixelsError(
            f"{image.width} x {image.height} pixels; at most {max_pixels} are read"
        )
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MAX_SCANS:
        _check_scans(data)
    elif image.format == "TIFF":
        _check_tiles(image, max_pixels)
    elif image.format == "PPM" and image.tile[0].codec_name.startswith("ppm"):
        n_numbers = image.width * image.height * len(image.getbands())
        if n_numbers > _MAX_NUMBERS:
            raise _too_costly(f"a PPM of more than {_MAX_NUMBERS} numbers that are to be scaled")
    return image


class _BoundedFile(io.BufferedReader):
    """A file that is read in a bounded number of parts."""

    def __init__(self, file: io.FileIO | io.BytesIO) -> None:
        super().__init__(file)
        n_bytes = self.seek(0, io.SEEK_END)
        self.seek(0)
        is_bmp = self.peek(2)[:2] == b"BM"
        self._n_left = _MAX_READS_OF_BMP if is_bmp else _MAX_READS + n_bytes // _BYTES_PER_READ
        self._n_profiles_left = _MAX_PROFILES

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._n_left -= 1
        self._n_profiles_left -= data.startswith(b"Exif\0\0") or data[4:8] == b"iCCP"
        if self._n_left < 0:
            raise _too_costly("more, and smaller, parts than its size explains")
        if self._n_profiles_left < 0:
            raise _too_costly(f"more than {_MAX_PROFILES} parts of EXIF data or colour profiles")
        return data


def _check_scans(data: bytes) -> None:
    """Follow the markers of a JPEG to count its scans.

    Their bytes may also stand in previews, in colour profiles, or after the end.
    """
    n_scans = position = 0
    for _ in range(_MAX_SEGMENTS):
        match = _MARKER.search(data, position)
        if match is None or match[1][0] == _END:
            return
        position = match.end()
        if match[1][0] not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
        n_scans += match[1][0] == _SCAN
        if n_scans > _MAX_SCANS:
            raise _too_costly(f"a JPEG of more than {_MAX_SCANS} scans")
    raise _too_costly(f"a JPEG of more than {_MAX_SEGMENTS} segments")


def _check_tiles(image: Image.Image, max_pixels: int) -> None:
    """Bound the pixels of all tiles, which reach beyond the image at its right and bottom."""
    tags = getattr(image, "tag_v2", {})
    n_pixels = 1
    for side, tile_side in ((_WIDTH, _TILE_WIDTH), (_HEIGHT, _TILE_HEIGHT)):
        if not isinstance(tile := tags.get(tile_side), int) or tile < 1:
            return  # strips, which end with the image
        n_pixels *= -(-int(tags[side]) // tile) * tile
    if n_pixels > max_pixels:
        raise TooManyPixelsError(
            f"tiles of {n_pixels} pixels together; at most {max_pixels} are read"
        )


def _too_costly(what: str) -> TooCostlyError:
    return TooCostlyError(f"{what}, which could take minutes to decode; save the image anew")
