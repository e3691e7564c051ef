"""Bytes become pixels: decode, one augmented view at a module's size. No TensorFlow.

All is done in fixed point on 8-bit pixels, so a view is the same bytes on every machine, and
`predict` can show a model the very pixels that it was trained on without importing TensorFlow.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from hubretrain.data.images.augmentation import Draw
from hubretrain.data.images.resize import resized
from hubretrain.errors import DataError

MAX_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs: 256 MiB of RGB
MOST_PIXELS = 2 * MAX_PIXELS  # of these Pillow refuses to read even the header
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
)  # of what `decode` reads
# Pillow knows more, among them some that run another program on what they are given (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
Pixels = npt.NDArray[np.uint8]

_QUARTER_TURNS = (
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)


class TooManyPixelsError(DataError):
    """An image that is larger than may be decoded."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes one image file to 8-bit RGB, upright by its EXIF orientation.

    Reads JPEG, PNG, BMP, GIF (first frame), WebP and TIFF; alpha is dropped, 16-bit channels
    keep their high byte, as TensorFlow's decoders do.

    Args:
        data: The file's bytes.
        max_pixels: The largest image, width times height; above `MOST_PIXELS` it is those.

    Raises:
        TooManyPixelsError: It is larger; nothing was decoded.
        DataError: The bytes are no such image, or are cut short.
    """
    try:
        with warnings.catch_warnings():
            # The bound below is an error, so Pillow need not also warn of it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
            form = image.format
            if image.width * image.height > max_pixels:
                raise TooManyPixelsError(
                    f"{image.width} x {image.height} pixels; at most {max_pixels} are read"
                )
            image.load()
            image = ImageOps.exif_transpose(image)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise TooManyPixelsError(
            f"more than {MOST_PIXELS} pixels; at most {min(max_pixels, MOST_PIXELS)} are read"
        ) from None
    except UnidentifiedImageError:
        what = "an empty file" if not data else "no image of a known type"
        raise DataError(what) from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise DataError(f"a damaged image ({error})") from error
    if image.mode == "F" or (image.mode == "I" and form != "PNG"):
        raise DataError(
            f"pixels of 32 bits (mode {image.mode}), whose range nothing tells; save it with 8 or "
            "16 bits a channel"
        )
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def view(image: Image.Image, size: int, draw: Draw | None = None) -> Pixels:
    """One view of an image, at a module's size; the aspect ratio is not kept, as in retrain.py.

    Args:
        image: 8-bit RGB.
        size: Height and width of the result, pixels.
        draw: What happens to the view; None for the image as it is.

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
