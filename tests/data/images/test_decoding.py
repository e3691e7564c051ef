from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.images.augmentation import Augmentation, Draw
from hubretrain.data.images.decoding import (
    HEADER_COLUMNS,
    UnreadableImageError,
    decode,
    read_headers,
    read_image,
    to_unit,
    view,
)
from hubretrain.data.images.formats import FORMATS
from hubretrain.data.images.opening import MAX_PIXELS, TooManyPixelsError, pixels_refused
from hubretrain.data.images.reading import Reading
from hubretrain.errors import DataError
from tests.samples import REPOSITORY, encoded, threads_take_turns

PHOTOS = load_sample_images().images


def test_view_0_is_the_whole_image_resized_by_the_area_that_each_pixel_covers():
    # A triangle filter of twice the pixel's width, by hand, on one row that shrinks by four.
    row = np.arange(16, dtype=np.float64) * 10
    image = Image.fromarray(np.repeat(row.astype(np.uint8)[None, :, None], 16, 0).repeat(3, 2))
    centres, pixels = (np.arange(4) + 0.5) * 4, np.arange(16) + 0.5
    weights = np.clip(1 - np.abs(pixels[None] - centres[:, None]) / 4, 0, None)
    expected = (weights / weights.sum(1, keepdims=True)) @ row
    assert np.abs(view(image, 4)[0, :, 0] - expected).max() <= 0.5 + 1e-9


def test_a_fine_checkerboard_shrinks_to_grey_so_nothing_aliases():
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    small = view(Image.fromarray(board).convert("RGB"), 32)
    assert np.abs(small.astype(int) - 127.5).max() < 3


def test_without_any_augmentation_a_view_is_view_0():
    nothing = Augmentation(horizontal_flip=False, crop=1, crop_ratio=1, brightness=0, contrast=0)
    image = Image.fromarray(PHOTOS[0])
    draw = nothing.draw("ab" * 32, 3, 7)
    assert draw.colour_matrix() is None
    assert np.array_equal(view(image, 64, draw), view(image, 64))


def test_geometry_is_that_of_numpy():
    image = Image.fromarray(PHOTOS[0][:400, :400])
    whole = (0.0, 0.0, 1.0, 1.0)
    plain = view(image, 400)
    assert np.array_equal(view(image, 400, Draw(whole, mirror=True)), plain[:, ::-1])
    assert np.array_equal(view(image, 400, Draw(whole, flip=True)), plain[::-1])
    for turns in (1, 2, 3):
        turned = view(image, 400, Draw(whole, quarter_turns=turns))
        assert np.array_equal(turned, np.rot90(plain, turns))
    half = view(image, 200, Draw((0.0, 0.5, 0.5, 1.0)))
    assert np.array_equal(half, plain[200:, :200])


def test_colour_follows_its_formula_to_one_level():
    image = Image.fromarray(PHOTOS[1])
    plain = view(image, 128).astype(float)
    whole = (0.0, 0.0, 1.0, 1.0)
    brighter = np.clip(plain + 0.1 * 255, 0, 255)
    assert np.abs(view(image, 128, Draw(whole, brightness=0.1)) - brighter).max() <= 1
    flatter = 127.5 + 0.5 * (plain - 127.5)
    assert np.abs(view(image, 128, Draw(whole, contrast=0.5)) - flatter).max() <= 1
    grey = (plain @ [0.299, 0.587, 0.114])[..., None].repeat(3, 2)
    assert np.abs(view(image, 128, Draw(whole, saturation=0.0)) - grey).max() <= 1.5
    full_circle = view(image, 128, Draw(whole, hue=1.0))
    assert np.abs(full_circle - plain).max() <= 1


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
    ],
)
def test_every_format_decodes_to_the_picture(form, options):
    pixels = PHOTOS[0][:200, :300]
    decoded = np.asarray(decode(encoded(pixels, form, **options)))
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < (3 if form == "JPEG" else 0.01)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP"])
def test_tensorflow_decodes_the_same_pixels(form):
    from hubretrain.tensorflow import tf

    data = encoded(PHOTOS[1], form)
    decoder = {"dct_method": "INTEGER_ACCURATE"}
    theirs = (
        tf.io.decode_jpeg(data, 3, **decoder) if form == "JPEG" else tf.io.decode_image(data, 3)
    )
    assert np.array_equal(np.asarray(decode(data)), theirs.numpy())


def test_grey_palette_alpha_cmyk_and_16_bits_become_8_bit_rgb():
    photo = Image.fromarray(PHOTOS[0][:100, :100])
    grey16 = (np.arange(10000, dtype=np.uint32) * 6).astype(np.uint16).reshape(100, 100)
    buffer = io.BytesIO()
    Image.fromarray(grey16).save(buffer, "PNG")
    assert np.array_equal(np.asarray(decode(buffer.getvalue()))[..., 0], grey16 >> 8)
    for mode, form in (
        ("L", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("1", "PNG"),
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("P", "GIF"),
    ):
        buffer = io.BytesIO()
        photo.convert(mode).save(buffer, form)
        image = decode(buffer.getvalue())
        assert (image.mode, image.size) == ("RGB", (100, 100)), (mode, form)
    buffer = io.BytesIO()
    photo.convert("CMYK").save(buffer, "JPEG", quality=95)
    assert np.abs(np.asarray(decode(buffer.getvalue())).astype(int) - photo).mean() < 6


def test_an_image_stands_upright_by_its_exif_orientation():
    photo = Image.fromarray(PHOTOS[0][:40, :80])
    for orientation, turn in ((1, 0), (3, 2), (6, 3), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        photo.save(buffer, "PNG", exif=exif)
        expected = np.rot90(np.asarray(photo), turn)
        assert np.array_equal(np.asarray(decode(buffer.getvalue())), expected)


def test_what_is_no_whole_image_is_refused_with_the_reason():
    jpeg = encoded(PHOTOS[0], "JPEG")
    for data, reason in (
        (b"", "an empty file"),
        (b"hello, I am text", "no image of a known type"),
        (jpeg[: len(jpeg) // 2], "truncated"),
    ):
        with pytest.raises(DataError, match=reason):
            decode(data)


def test_pixels_of_32_bits_are_refused_for_nothing_tells_their_range():
    for pixels in (np.random.default_rng(0).random((8, 8), np.float32), np.eye(8, dtype=np.int32)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "TIFF")
        with pytest.raises(DataError, match=r"pixels of 32 bits \(mode [FI]\) in an unknown range"):
            decode(buffer.getvalue())


def test_a_decompression_bomb_is_refused_before_its_pixels_are_made():
    side = int(MAX_PIXELS**0.5) + 10
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(DataError, match=r"pixels; at most 178956970 are read"):
        decode(buffer.getvalue())


def test_a_larger_bomb_has_too_many_pixels_too():
    buffer = io.BytesIO()
    Image.new("1", (19_000, 19_000)).save(buffer, "PNG")
    for max_pixels in (1000, 178_956_970, 19_000**2 - 1):
        sentence = f"^19000 x 19000 pixels; at most {max_pixels} are read$"
        with pytest.raises(TooManyPixelsError, match=sentence) as error:
            decode(buffer.getvalue(), Reading(max_pixels=max_pixels))
        assert pixels_refused(str(error.value)) == 19_000**2


def test_an_image_that_cannot_be_read_is_told_from_one_that_cannot_be_decoded(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(
        UnreadableImageError, match=r"^cannot be read \(No such file or directory\)$"
    ):
        read_image(tmp_path, "gone.png")
    with pytest.raises(DataError, match=r"^no image of a known type$") as error:
        read_image(tmp_path, "broken.png")
    assert not isinstance(error.value, UnreadableImageError)


def test_an_image_is_read_only_while_its_bytes_are_those_of_its_digest(tmp_path):
    data = encoded(PHOTOS[0])
    (tmp_path / "a.png").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    assert np.array_equal(read_image(tmp_path, "a.png", sha256), PHOTOS[0])
    (tmp_path / "a.png").write_bytes(encoded(PHOTOS[1]))
    with pytest.raises(UnreadableImageError, match=r"^its bytes have changed$"):
        read_image(tmp_path, "a.png", sha256)


def test_numpy_and_tensorflow_scale_pixels_to_the_same_bits():
    from hubretrain.data.images.batched import to_unit_tensor

    levels = np.arange(256, dtype=np.uint8)
    unit = to_unit(levels)
    assert unit.dtype == np.float32
    assert (unit[0], unit[-1]) == (0, 1)
    assert unit.tobytes() == to_unit_tensor(levels).numpy().tobytes()


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_headers_are_what_pillow_reads(tmp_path: Path, file_format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    (tmp_path / "x.img").write_bytes(encoded(pixels, file_format))
    (row,) = read_headers(tmp_path, ["x.img"]).to_dict("records")
    with Image.open(tmp_path / "x.img") as image:
        assert (row["format"], row["mode"]) == (file_format, image.mode)
    assert (row["width"], row["height"]) == (30, 20)
    assert row["n_bytes"] == (tmp_path / "x.img").stat().st_size


def test_what_is_no_image_has_blank_headers_and_its_size(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"not an image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    counts: list[int] = []
    table = read_headers(tmp_path, ["text.jpg", "empty.jpg", "gone.jpg"], counts.append)
    assert list(table.columns) == list(HEADER_COLUMNS)
    assert table["n_bytes"].tolist() == [12, 0, 0]
    assert table["format"].tolist() == ["", "", ""]
    assert sum(counts) == 3
    assert len(read_headers(tmp_path, [])) == 0


def test_images_decoded_in_threads_leave_the_filters_of_warnings_as_they_were():
    data = encoded(np.zeros((4, 4, 3), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with threads_take_turns(), ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: decode(data), range(100)))
        assert warnings.filters == before


def readers(folder: Path, name: str) -> dict[str, bool]:
    """Every reader of image files, and whether it read this one."""
    from hubretrain.data.images import draw_contact_sheet
    from hubretrain.data.near_duplicates.search import find_duplicates

    def reads(read, *arguments) -> bool:
        try:
            return bool(read(*arguments))
        except DataError:
            return False

    images = pd.DataFrame({"path": [name], "label": ["a"]})
    sheet, _ = draw_contact_sheet(folder, images, 1, Augmentation(), 0)
    path = str(folder / name)
    return {
        "decode": reads(decode, (folder / name).read_bytes()),
        "image": reads(read_image, folder, name),
        "headers": read_headers(folder, [name])["format"].tolist() != [""],
        "duplicates": not find_duplicates([path], [""]).unreadable,
        "contact sheet": sheet is not None,
    }


def written_by_pillow() -> dict[str, bytes]:
    """A small image in every format that Pillow writes."""
    Image.init()
    files = {}
    for file_format in sorted(Image.SAVE):
        for mode in ("RGB", "L", "1", "F", "RGBA"):
            buffer = io.BytesIO()
            try:
                Image.new(mode, (32, 32), 1).save(buffer, file_format)
            except Exception:  # it has no such mode, or is written by another program
                continue
            files[file_format] = buffer.getvalue()
            break
    return files


def test_every_reader_reads_its_formats_and_no_other_and_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("gs", "gswin64c", "xv", "display", "djpeg"):
        script = tmp_path / "bin" / program
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    files = written_by_pillow()
    known = {"EPS", "PDF", "ICO", "PCX", "TGA", "JPEG2000", *FORMATS} - {"HEIF"}
    assert known <= set(files)
    for file_format, data in files.items():
        (tmp_path / "x.jpg").write_bytes(data)
        expected = file_format in (*FORMATS, "MPO")  # an MPO begins as a JPEG
        assert set(readers(tmp_path, "x.jpg").values()) == {expected}, file_format
    assert not (tmp_path / "started").exists()


def test_no_other_file_calls_pillows_own_open():
    for path in (REPOSITORY / "hubretrain").rglob("*.py"):
        if path.name != "opening.py":
            assert "Image.open(" not in path.read_text(encoding="utf-8"), path


def test_too_little_memory_tells_nothing_of_the_image(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(buffer, "PNG")
    (tmp_path / "large.png").write_bytes(buffer.getvalue())
    program = (
        "import resource, sys\n"
        "from hubretrain.data.images import UnreadableImageError, decode\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))\n"
        "try:\n    decode(data)\n"
        "except UnreadableImageError as error:\n    print(error)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell how much memory is used")
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "large.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "there is not enough memory to decode it\n"
