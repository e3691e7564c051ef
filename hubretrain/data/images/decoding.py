"""Image files become pixels: headers, decoding, and one augmented view at a module's size.

Views are cut in fixed point on 8-bit pixels, so they are the same bytes on every machine, and
`predict` shows a model exactly the pixels that it was trained on without importing TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from hubretrain.arrays import Float32Array, Pixels
from hubretrain.data.images.augmentation import Draw
from hubretrain.data.images.opening import open_bounded, open_header
from hubretrain.data.images.reading import MAX_BITS, MOST_PIXELS, Reading
from hubretrain.data.images.resize import resized
from hubretrain.errors import DataError
from hubretrain.parallel import ahead
from hubretrain.storage import located, open_bytes, read_bytes, stamp_of

if TYPE_CHECKING:
    import pandas as pd

HEADER_COLUMNS = ("n_bytes", "format", "mode", "width", "height")

_QUARTER_TURNS = (
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)


class UnreadableImageError(DataError):
    """An image that cannot be read now: missing, no permission, a server that is down, no memory.

    Nothing is known about its content, so it is no reason to put the image into quarantine.
    """


def read_image(
    root: Path, path: str, sha256: str = "", reading: Reading = Reading(max_pixels=MOST_PIXELS)
) -> Image.Image:
    """Read and decode one image file; see `decode`.

    Args:
        root: The folder that `path` is relative to.
        path: The image file, or its URL.
        sha256: Digest that its bytes must have; blank: any.
        reading: How it is read; by default also if it is larger than the caching allows.

    Raises:
        UnreadableImageError: The file cannot be read, or its bytes have changed.
        DataError: Its bytes cannot be decoded.
    """
    return decode(read_image_bytes(root, path, sha256), reading)


def read_image_bytes(root: Path, path: str, sha256: str = "") -> bytes:
    """Read the bytes of one image file; the arguments are those of `read_image`.

    Raises:
        UnreadableImageError: The file cannot be read, or its bytes have changed.
    """
    try:
        data = read_bytes(located(root, path))
    except OSError as error:
        raise UnreadableImageError(f"cannot be read ({error.strerror or error})") from error
    except DataError as error:  # nothing that is installed reads such a URL
        raise UnreadableImageError(f"cannot be read ({error})") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise UnreadableImageError("its bytes have changed")
    return data


def is_momentary(error: BaseException) -> bool:
    """Return whether an error of decoding tells nothing about the file: memory ran out."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def decode(data: bytes, reading: Reading = Reading()) -> Image.Image:
    """Decode one image file to 8-bit RGB, upright by its EXIF orientation.

    Of an animation the first picture; alpha is dropped. Of 16-bit channels the highest 8 of
    `reading.bits` bits are kept: by default the high byte, as TensorFlow's decoders do.

    Args:
        data: The file's bytes, of one of `formats.SUFFIXES_OF`.
        reading: How it is read.

    Raises:
        TooManyPixelsError: The image is larger; nothing was decoded.
        TooCostlyError: It would take far longer to decode than its size explains.
        UnreadableImageError: There is not enough memory.
        DataError: The bytes are no such image, or are cut short.
    """
    try:
        opened = open_bounded(data, reading.max_pixels)
        bits = bits_of(opened)
        opened.load()
        image = ImageOps.exif_transpose(opened)
    except DataError:
        raise
    except UnidentifiedImageError:
        reason = "an empty file" if not data else "no image of a known type"
        raise DataError(reason) from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        if is_momentary(error):
            raise UnreadableImageError("there is not enough memory to decode it") from error
        raise DataError(f"a damaged image ({error})") from error
    if bits == 32:
        raise DataError(
            f"pixels of 32 bits (mode {image.mode}) in an unknown range; save it with 8 or 16 bits "
            "per channel"
        )
    return to_rgb(image, bits, reading.bits)


def bits_of(image: ImageFile.ImageFile) -> int:
    """Return the bits of a channel of an image that is opened and not loaded: 8, 12, 16 or 32.

    8 also where there are fewer.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return 32
    codings = " ".join(str(tile.args) for tile in image.tile)
    if image.mode.startswith("I"):
        return 12 if "I;12" in codings else 16
    return 16 if ";16" in codings and image.format in ("PNG", "TIFF") else 8


def to_rgb(image: Image.Image, bits: int, used: int) -> Image.Image:
    """Convert what was decoded to 8-bit RGB.

    Args:
        image: Decoded.
        bits: What `bits_of` returns.
        used: Bits that values of 16-bit channels use.
    """
    if image.mode.startswith("I"):
        levels = np.asarray(image) >> (min(bits, used) - 8)
        return Image.fromarray(np.minimum(levels, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    rgb = image.convert("RGB")
    if bits == MAX_BITS > used:  # of coloured pixels Pillow has kept the high byte
        rgb = rgb.point([min(level << (MAX_BITS - used), 255) for level in range(256)] * 3)
    return rgb


def bits_used(image: Image.Image) -> int:
    """Return the bits that levels of one loaded image use; 16 where they are not 16-bit grey."""
    if not image.mode.startswith("I"):
        return MAX_BITS
    return max(8, int(np.asarray(image).max()).bit_length())


def view(image: Image.Image, size: int, draw: Draw | None = None) -> Pixels:
    """Cut one view of an image, at a module's size; the aspect ratio is not kept (as retrain.py).

    Args:
        image: 8-bit RGB.
        size: Height and width of the result, pixels.
        draw: The random changes of the view; None for the image as it is.

    Returns:
        uint8 of shape (size, size, 3), RGB in [0, 255].
    """
    if draw is None:
        return np.asarray(resized(image, size))
    left, top, right, bottom = draw.box
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    result = resized(image, size, box)
    if draw.mirror:
        result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draw.flip:
        result = result.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if draw.quarter_turns:
        result = result.transpose(_QUARTER_TURNS[draw.quarter_turns - 1])
    if draw.is_tone:
        result = result.point(draw.levels() * 3)  # twice as fast as the matrix
    elif (matrix := draw.colour_matrix()) is not None:
        result = result.convert("RGB", matrix)
    return np.asarray(result)


def to_unit(pixels: Pixels) -> Float32Array:
    """Scale uint8 pixels in [0, 255] to float32 in [0, 1], of the same shape."""
    return pixels.astype(np.float32) / np.float32(255)


def read_headers(
    root: Path, paths: Sequence[str], progress: Callable[[int], object] | None = None
) -> pd.DataFrame:
    """Read the headers of image files, without decoding them.

    Args:
        root: The folder that `paths` are relative to.
        paths: The image files.
        progress: Called with the number of files just read.

    Returns:
        One row per file: `n_bytes` (int64), `format` and `mode` (as Pillow names them; blank
        where it knows no such image), `width` and `height` (int64, pixels, as stored: EXIF
        may turn them; 0 where unknown).
    """
    import pandas as pd  # not needed by `predict` and `serve`

    rows = []
    for _, row in ahead(lambda path: _header(located(root, path)), paths):
        rows.append(row)
        if progress is not None:
            progress(1)
    table = pd.DataFrame(rows, columns=list(HEADER_COLUMNS))
    return table.astype({"n_bytes": "int64", "width": "int64", "height": "int64"})


def _header(location: str) -> tuple[int, str, str, int, int]:
    n_bytes = 0
    # Pillow raises nearly every type on damaged files; a file without a header stays blank.
    with contextlib.suppress(Exception):
        n_bytes = stamp_of(location)[0]
        with open_bytes(location) as file:
            image = open_header(file)
            return n_bytes, image.format or "", image.mode, *image.size
    return n_bytes, "", "", 0, 0
