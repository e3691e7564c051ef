"""What is wrong with a picture that decodes all the same: a file that was cut, values near black.

A decoder fills what is missing of a JPEG with grey, or repeats what came last; other decoders fill
with zeros, which are green in YCbCr. No error tells of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from hubretrain.arrays import AnyArray
from hubretrain.data.images.decoding import bits_of, read_image_bytes
from hubretrain.data.images.opening import open_bounded, open_header
from hubretrain.data.images.reading import MAX_PIXELS
from hubretrain.storage import located, open_bytes

_SIDE = 64  # pixels: an image is shrunk to about twice as many before it is looked at
_LEAST = 0.03  # share of the height that is missing
_TOLERANCE = 3  # levels
_GREY = (128, 128, 128)
_GREY_OF_CMYK = (64, 64, 64)
# YCbCr of zeros, by the matrices of JPEG (ITU-R BT.601, full range), video, and high definition.
_GREENS = ((0, 135, 0), (0, 136, 0), (0, 154, 0), (0, 77, 0))
_N_ZEROS = 256  # bytes: coded pixels have no such run, whatever they show
_SCAN_HEADER = re.compile(rb"\xff\xda..(.)", re.DOTALL)


@dataclass(frozen=True)
class Inspection:
    """What one image shows.

    Attributes:
        damage: Why it looks cut; blank if it does not.
        highest: Highest level of channels of 16 bits, as stored, 0 to 65535; -1 if it has none.
    """

    damage: str = ""
    highest: int = -1


def inspect_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Inspection:
    """Look at one image that can be decoded.

    Args:
        data: The file's bytes.
        max_pixels: The largest image, width times height.

    Raises:
        Exception: Pillow's decoders raise nearly every type on damaged files.
    """
    image = open_bounded(data, max_pixels)
    bits = bits_of(image)
    if bits in (12, 32):
        return Inspection()
    if bits == 16:
        return Inspection(highest=_highest(image))
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg and (reason := _missing_in_jpeg(data, image)):
        return Inspection(reason)
    is_cmyk = image.mode == "CMYK"
    image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # JPEG: decodes fewer frequencies
    small: Image.Image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if (shrink := min(small.size) // (2 * _SIDE)) > 1:
        small = small.reduce(shrink)
    fills = (_GREY_OF_CMYK,) if is_cmyk else (_GREY, *_GREENS)
    return Inspection(_one_colour(np.asarray(small.convert("RGB")).astype(np.int16), fills))


def highest_level(root: Path, path: str, max_pixels: int = MAX_PIXELS) -> int:
    """Return the highest level of a file's channels of 16 bits, 0 to 65535; -1 if it has none.

    Only an image with 16 bits is decoded.

    Raises:
        Exception: Pillow's parsers raise nearly every type on damaged files.
    """
    with open_bytes(located(root, path)) as file:
        if bits_of(open_header(file)) != 16:
            return -1
    return inspect_image(read_image_bytes(root, path), max_pixels).highest


def _highest(image: ImageFile.ImageFile) -> int:
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    # Pillow keeps the high bytes of coloured pixels.
    return int(np.asarray(image.convert("RGB")).max()) * 256 + 255


def _missing_in_jpeg(data: bytes, image: ImageFile.ImageFile) -> str:
    """Return what the file itself tells: zeros instead of pixels, or scans that are missing."""
    end = data.rfind(b"\xff\xd9")
    coded = data[data.find(b"\xff\xda") : end if end > 0 else None]
    if bytes(_N_ZEROS) in coded:
        return "zeros stand where pixels should be"
    if image.info.get("progressive") and not _has_all_scans(data):
        return "its last scans are missing"
    return ""


def _has_all_scans(data: bytes) -> bool:
    """Return whether each component of a progressive JPEG has some scan of its last bits.

    A scan's header ends with the first and last frequency, and the bit that it reaches
    (ITU-T T.81, B.2.3). The last scans of usual encoders bring bit 0 of the frequencies.
    """
    reached: dict[int, int] = {}
    components: set[int] = set()
    for match in _SCAN_HEADER.finditer(data):
        n, start = match[1][0], match.end()
        header = data[start : start + 2 * n + 3]
        if not 1 <= n <= 4 or len(header) < 2 * n + 3:
            continue
        of_scan = set(header[0 : 2 * n : 2])
        components |= of_scan
        first_frequency, _, bits = header[2 * n :]
        if first_frequency:
            for component in of_scan:
                reached[component] = min(bits & 15, reached.get(component, 15))
    return all(reached.get(component, 15) == 0 for component in components)


def _one_colour(pixels: AnyArray, fills: Sequence[tuple[int, int, int]]) -> str:
    """Return which side of an image is one grey or green, and the opposite is not.

    Args:
        pixels: RGB of shape (height, width, 3).
        fills: The greys and greens that decoders fill with.
    """
    for name, turned in (
        ("lower", pixels[::-1]),
        ("right", pixels.swapaxes(0, 1)[::-1]),
        ("upper", pixels),
        ("left", pixels.swapaxes(0, 1)),
    ):
        colour = turned[0].mean(axis=0)
        if not any(np.abs(colour - fill).max() <= _TOLERANCE for fill in fills):
            continue
        is_flat = np.abs(turned - colour).max(axis=(1, 2)) <= _TOLERANCE
        share = 1.0 if is_flat.all() else float(np.argmin(is_flat)) / len(is_flat)
        if share >= _LEAST and not (is_flat[-1] and share < 1):
            what = "grey" if abs(colour[0] - colour[1]) < 2 * _TOLERANCE else "green"
            return f"its {name} {share:.0%} are one {what}"
    return ""
