"""The formats that are read: their endings, and the plugin of Pillow for each.

Pillow knows more formats, among them some that run another program on the file (EPS). This is the
one door to [pillow-heif](https://pillow-heif.readthedocs.io), an extra: `hubretrain[heic]`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import struct
from collections.abc import Callable
from typing import Any

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from hubretrain.errors import DataError

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif"}
_HEIC = {".heic", ".heif", ".hif"}
_HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None
SUFFIXES_OF = {
    "AVIF": {".avif", ".avifs"},
    "BMP": {".bmp", ".dib"},
    "GIF": {".gif"},
    **({"HEIF": _HEIC} if _HAS_HEIC else {}),
    "JPEG": _JPEG,
    "MPO": {*_JPEG, ".mpo"},  # a JPEG with a second picture, as some cameras write
    "PNG": {".png", ".apng"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
}
"""File name suffixes of each format, lower case."""
FORMATS = tuple(sorted(SUFFIXES_OF))
IMAGE_SUFFIXES = frozenset(suffix for names in SUFFIXES_OF.values() for suffix in names)
VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
)
# Pictures of other kinds, for messages.
_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".raf", ".raw", ".rw2", ".srw"}
_MEDICAL = {".czi", ".dcm", ".dicom", ".mha", ".mrxs", ".ndpi", ".nii", ".nrrd", ".svs", ".vsi"}
_DRAWN = {".ai", ".emf", ".eps", ".pdf", ".ps", ".psd", ".svg", ".wmf", ".xcf"}
_OTHERS = {".exr", ".hdr", ".icns", ".ico", ".j2c", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr"}
_RARE = {".npy", ".pcx", ".pfm", ".pic", ".qoi", ".sgi", ".tga", ".wdp", ".xbm", ".xpm"}
PICTURE_SUFFIXES = IMAGE_SUFFIXES | _HEIC | _RAW | _MEDICAL | _DRAWN | _OTHERS | _RARE

_BRANDS_OF_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_Opener = Callable[..., ImageFile.ImageFile]
_Accepts = Callable[[bytes], Any]


def advice_on(suffixes: set[str]) -> str:
    """Return how files with these endings could be read, a sentence; blank for those that are."""
    advice = []
    if not _HAS_HEIC and suffixes & _HEIC:
        advice.append("install hubretrain[heic] to read HEIC")
    if suffixes & VIDEO_SUFFIXES:
        advice.append("save the frames of videos that you need as images")
    if suffixes & (PICTURE_SUFFIXES - IMAGE_SUFFIXES - _HEIC):
        advice.append("convert pictures of other formats to PNG or JPEG")
    return "; ".join(advice)


def open_format(file: io.BufferedReader) -> ImageFile.ImageFile:
    """Open an image file by its first bytes, without a bound on its pixels.

    As `PIL.Image.open`, but that knows these formats alone, and that it is for the caller to
    refuse a large image: Pillow's own bound belongs to the process, and warns.

    Raises:
        UnidentifiedImageError: It is of no such format.
        DataError: It is HEIC, and pillow-heif is not installed.
        Exception: Pillow's parsers raise nearly every type on damaged files.
    """
    first = file.read(16)
    for accepts, opener in _PLUGINS:
        if accepts(first) is True:
            file.seek(0)
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return opener(file, "")
    raise UnidentifiedImageError("cannot identify image file")


def _accepts_heic(first: bytes) -> bool:
    return first[4:8] == b"ftyp" and first[8:12] in _BRANDS_OF_HEIC


def _open_heic(file: io.BufferedReader, name: str) -> ImageFile.ImageFile:
    if not _HAS_HEIC:
        raise DataError("a HEIC image; pip install 'hubretrain[heic]' reads it")
    import pillow_heif

    image: ImageFile.ImageFile = pillow_heif.HeifImageFile(file, name)
    return image


_PLUGINS: tuple[tuple[_Accepts, _Opener], ...] = (
    (JpegImagePlugin._accept, JpegImagePlugin.jpeg_factory),
    (PngImagePlugin._accept, PngImagePlugin.PngImageFile),
    (BmpImagePlugin._accept, BmpImagePlugin.BmpImageFile),
    (GifImagePlugin._accept, GifImagePlugin.GifImageFile),
    (TiffImagePlugin._accept, TiffImagePlugin.TiffImageFile),
    (WebPImagePlugin._accept, WebPImagePlugin.WebPImageFile),
    (PpmImagePlugin._accept, PpmImagePlugin.PpmImageFile),
    (AvifImagePlugin._accept, AvifImagePlugin.AvifImageFile),
    (_accepts_heic, _open_heic),
)
