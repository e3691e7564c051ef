"""Files that would keep a decoder busy for minutes, and honest ones that look like them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.images.decoding import decode
from hubretrain.data.images.opening import TooCostlyError, TooManyPixelsError
from hubretrain.data.near_duplicates.sketches import open_image
from tests.samples import encoded

PHOTO = load_sample_images().images[0]
N_BYTES = 2_000_000


def saved(form, **options):
    buffer = io.BytesIO()
    Image.fromarray(PHOTO[:64, :64]).save(buffer, form, **options)
    return buffer.getvalue()


def with_scans(data, n_scans):
    """A progressive JPEG whose last scan is repeated."""
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:last] + data[last:end] * n_scans + data[end:]


def with_segments(segment):
    data = saved("JPEG")
    return data[:2] + segment * (N_BYTES // len(segment)) + data[2:]


def chunk(name, content=b""):
    digest = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + digest


def with_chunks(name, content=b"", before=b"IDAT"):
    data, part = saved("PNG"), chunk(name, content)
    place = data.index(before) - 4
    return data[:place] + part * (N_BYTES // len(part)) + data[place:]


def with_comment(block):
    data = saved("GIF")
    place = data.index(b"\x2c\0\0\0\0")
    part = bytes([len(block)]) + block
    return data[:place] + b"\x21\xfe" + part * (N_BYTES // len(part)) + b"\0" + data[place:]


def run_length_encoded():
    body = b"\x00\x02\x00\x00" * 500_000  # steps by nothing
    offset = 14 + 40 + 1024
    head = struct.pack("<IiiHHIIiiII", 40, 6300, 6300, 1, 8, 1, len(body), 0, 0, 256, 0)
    return (
        b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + head + bytes(1024) + body
    )


def tiled(width, height, tile):
    """A grey TIFF, all of whose tiles are one."""
    n_tiles = -(-width // tile) * -(-height // tile)
    pixels = zlib.compress(bytes(tile * tile), 9)
    pixels += b"\0" * (len(pixels) % 2)
    lists = struct.pack("<I", 8) * n_tiles + struct.pack("<I", len(pixels)) * n_tiles
    at = 8 + len(pixels)
    long, short = 4, 3
    fields = [
        *((256, long, 1, width), (257, long, 1, height), (258, short, 1, 8), (259, short, 1, 8)),
        *((262, short, 1, 1), (277, short, 1, 1), (322, long, 1, tile), (323, long, 1, tile)),
        *((324, long, n_tiles, at), (325, long, n_tiles, at + 4 * n_tiles)),
    ]
    directory = b"".join(struct.pack("<HHII", *field) for field in fields)
    head = b"II*\0" + struct.pack("<I", at + len(lists))
    return head + pixels + lists + struct.pack("<H", len(fields)) + directory + bytes(4)


COSTLY = {
    "scans": lambda: with_scans(saved("JPEG", progressive=True), 200),
    "scans after a preview's": lambda: with_scans(
        saved("JPEG", progressive=True, exif=b"Exif\0\0" + b"\xff\xda\xff\xd9"), 200
    ),
    "empty tables": lambda: with_segments(b"\xff\xdb\0\2"),
    "empty comments": lambda: with_segments(b"\xff\xfe\0\2"),
    "fill bytes": lambda: with_segments(b"\xff"),
    "parts of EXIF": lambda: with_segments(b"\xff\xe1\0\x44Exif\0\0" + bytes(60)),
    "empty pixels": lambda: with_chunks(b"IDAT"),
    "unknown chunks": lambda: with_chunks(b"abCd"),
    "unknown chunks at the end": lambda: with_chunks(b"abCd", before=b"IEND"),
    "texts": lambda: with_chunks(b"tEXt", b"a\0b"),
    "colour profiles": lambda: with_chunks(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000), 9)),
    "a comment of single letters": lambda: with_comment(b"a"),
    "steps by nothing": run_length_encoded,
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_file_that_costs_far_more_than_its_size_explains_is_refused(kind):
    data = COSTLY[kind]()
    with pytest.raises(TooCostlyError, match=r"could take minutes to decode; save the image anew$"):
        decode(data)


def test_the_search_for_copies_has_the_same_bounds():
    with pytest.raises(TooCostlyError):
        open_image(COSTLY["scans"]())


def test_tiles_far_larger_than_the_image_count_as_pixels():
    assert decode(tiled(100, 300, 64)).size == (100, 300)
    with pytest.raises(TooManyPixelsError, match=r"^tiles of 16391340032 pixels together; at most"):
        decode(tiled(1, 4_000_000, 4096))


def test_segments_between_the_scans_are_bounded_too():
    data = saved("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    between = b"\xff\xfe\0\2" * 10_000 + b"\xff\xfe\0\xca" + b"\xff\xda" * 100
    with pytest.raises(TooCostlyError, match=r"^a JPEG of more than 10000 segments, "):
        decode(data[:last] + between + data[last:])


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_an_honest_photograph_is_not_costly(form):
    assert decode(encoded(PHOTO, form)).size == PHOTO.shape[1::-1]


def test_what_looks_like_scans_in_previews_profiles_and_after_the_end_is_none():
    data = saved("JPEG", progressive=True, icc_profile=b"\xff\xda" * 5000, quality=95)
    assert decode(data + b"\xff\xda" * 5000).size == (64, 64)


def test_a_png_in_small_pieces_and_a_long_animation_are_read():
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    data = encoded(noise)
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    pixels = b"".join(
        data[i + 8 : i + 8 + n] for i, n in chunks_of(data) if data[i + 4 : i + 8] == b"IDAT"
    )
    pieces = b"".join(chunk(b"IDAT", pixels[i : i + 1024]) for i in range(0, len(pixels), 1024))
    assert np.array_equal(decode(data[:start] + pieces + data[end:]), noise)
    gif = saved("GIF")
    frame = gif[gif.index(b"\x2c\0\0\0\0") : -1]
    assert decode(gif[:-1] + frame * 5000 + b";").size == (64, 64)


def chunks_of(data):
    """Position and length of each chunk of a PNG."""
    i = 8
    while i < len(data):
        n = int.from_bytes(data[i : i + 4], "big")
        yield i, n
        i += 12 + n
