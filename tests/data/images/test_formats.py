"""Endings and formats of the images that are read, and what their channels hold."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.images.decoding import bits_of, decode
from hubretrain.data.images.formats import IMAGE_SUFFIXES, SUFFIXES_OF, advice_on
from hubretrain.data.images.opening import TooCostlyError, TooManyPixelsError, open_bounded
from hubretrain.data.images.reading import Reading
from hubretrain.errors import DataError
from tests.samples import encoded

PHOTO = load_sample_images().images[0][:120, :160]


def portable(magic: bytes, maximum: int, values: bytes, size: bytes = b"4 2") -> bytes:
    return b"%s %s %d\n" % (magic, size, maximum) + values


def test_the_endings_of_phones_browsers_and_cameras_are_those_of_images():
    assert {".jfif", ".jpe", ".avif", ".mpo", ".apng", ".pgm", ".ppm"} <= IMAGE_SUFFIXES
    assert not {".eps", ".ps", ".pdf", ".svg"} & IMAGE_SUFFIXES


@pytest.mark.parametrize("quality", [90, 100])
def test_an_avif_decodes_to_the_picture(quality):
    decoded = np.asarray(decode(encoded(PHOTO, "AVIF", quality=quality))).astype(int)
    assert np.abs(decoded - PHOTO).mean() < 6


def test_an_avif_that_is_turned_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "AVIF", quality=95, exif=exif)
    turned = np.asarray(decode(buffer.getvalue())).astype(int)
    assert np.abs(turned - np.rot90(PHOTO, 3)).mean() < 6


def test_of_an_animation_the_first_picture_is_read():
    first, second = Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {})):
        buffer = io.BytesIO()
        first.save(buffer, form, save_all=True, append_images=[second], **options)
        assert np.abs(np.asarray(decode(buffer.getvalue())).astype(int) - PHOTO).mean() < 6, form


def test_heic_without_its_extra_names_the_extra():
    if "HEIF" in SUFFIXES_OF:
        pytest.skip("pillow-heif is installed")
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    with pytest.raises(DataError, match=r"a HEIC image; pip install 'hubretrain\[heic\]' reads it"):
        decode(data)
    assert "install hubretrain[heic]" in advice_on({".heic", ".png"})
    assert advice_on({".png", ".txt"}) == ""


def test_heic_with_its_extra_decodes_to_the_picture():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(PHOTO)).save(buffer, quality=95)
    assert ".heic" in IMAGE_SUFFIXES
    assert np.abs(np.asarray(decode(buffer.getvalue())).astype(int) - PHOTO).mean() < 6


def test_levels_of_12_bits_in_16_are_scaled_so_that_the_highest_is_white():
    levels = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    for form in ("PNG", "TIFF"):
        data = encoded(levels, form)
        assert np.asarray(decode(data)).max() == 15  # near black
        scaled = np.asarray(decode(data, Reading(bits=12)))[..., 0]
        assert np.array_equal(scaled, levels >> 4)
    above = encoded(np.full((2, 2), 5000, np.uint16))
    assert np.asarray(decode(above, Reading(bits=12))).min() == 255


def test_images_of_8_bits_are_the_same_whatever_the_bits_of_deeper_ones():
    data = encoded(PHOTO)
    assert np.array_equal(decode(data, Reading(bits=12)), decode(data))


def tiff_of_12_bits(levels: np.ndarray) -> bytes:
    """Grey, 12 bits per value, two in three bytes."""
    first, second = levels.reshape(-1, 2).T.astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    pixels = packed.astype(np.uint8).tobytes()
    short, long = 3, 4
    height, width = levels.shape
    fields = [
        *((256, short, 1, width), (257, short, 1, height), (258, short, 1, 12)),
        *((259, short, 1, 1), (262, short, 1, 1), (273, long, 1, 8), (277, short, 1, 1)),
        *((278, short, 1, height), (279, long, 1, len(pixels))),
    ]
    directory = b"".join(struct.pack("<HHII", *field) for field in fields)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(fields)) + directory + bytes(4)


def test_a_file_that_says_12_bits_needs_no_option():
    levels = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    data = tiff_of_12_bits(levels)
    assert bits_of(open_bounded(data)) == 12
    assert np.array_equal(np.asarray(decode(data))[..., 0], levels >> 4)


def test_a_portable_map_is_scaled_by_the_maximum_that_it_says():
    values = np.array([0, 1000, 2000, 4095] * 2, ">u2")
    image = np.asarray(decode(portable(b"P5", 4095, values.tobytes())))[0, :, 0]
    assert np.abs(image - values[:4] / 4095 * 255).max() <= 1
    colours = np.asarray(decode(portable(b"P6", 255, bytes(range(24)))))
    assert colours.ravel().tolist() == list(range(24))


def test_a_large_portable_map_that_is_read_number_by_number_is_refused():
    data = portable(b"P2", 255, b"1 " * 10, b"9000 9000")
    with pytest.raises(TooCostlyError, match="numbers that are to be scaled"):
        decode(data)


def test_a_photograph_of_108_megapixels_is_read_and_no_warning_is_raised():
    buffer = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(buffer, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_bounded(buffer.getvalue()).size == (12_000, 9_000)
        with pytest.raises(TooManyPixelsError, match=r"^12000 x 9000 pixels; at most 1000 "):
            decode(buffer.getvalue(), Reading(max_pixels=1000))
