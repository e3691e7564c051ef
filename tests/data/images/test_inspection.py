"""Pictures that decode and are damaged all the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.data.images.decoding import decode
from hubretrain.data.images.inspection import highest_level, inspect_image
from tests.samples import encoded

PHOTOS = load_sample_images().images
KINDS = {
    "plain": {},
    "progressive": {"progressive": True},
    "whole chroma": {"subsampling": 0},
    "own tables": {"optimize": True},
    "restarts": {"restart_marker_blocks": 4},
}


def jpeg(mode: str, kind: str, photo: np.ndarray = PHOTOS[0]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).convert(mode).save(buffer, "JPEG", quality=90, **KINDS[kind])
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_is_cut_and_decodes_is_found_and_a_whole_one_is_not(kind, mode):
    whole = jpeg(mode, kind)
    assert inspect_image(whole).damage == ""
    for share in (0.3, 0.5):
        n = int(len(whole) * share)
        n_lost = len(whole) - n
        for end in (b"\xff\xd9", bytes(n_lost) + b"\xff\xd9", b"\xff" * n_lost + b"\xff\xd9"):
            cut = whole[:n] + end
            decode(cut)
            assert inspect_image(cut).damage, (share, end[:2])


def test_how_much_is_missing_is_said():
    whole = jpeg("RGB", "plain")
    cut = whole[: len(whole) // 2] + b"\xff\xd9"
    assert inspect_image(cut).damage == "its lower 33% are one grey"


@pytest.mark.parametrize("colour", [(128, 128, 128), (0, 135, 0), (0, 154, 0)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_half_a_picture_is_found_in_any_format_and_however_it_is_turned(form, turns, colour):
    pixels = PHOTOS[1][:400, :400].copy()
    pixels[200:] = colour
    damage = inspect_image(encoded(np.rot90(pixels, turns).copy(), form)).damage
    side = ("lower", "right", "upper", "left")[turns]
    assert damage.startswith(f"its {side} ")
    assert damage.endswith("are one grey" if colour[0] else "are one green")


def test_frames_margins_and_dark_or_light_grounds_are_no_damage():
    for colour in ((0, 0, 0), (255, 255, 255), (114, 114, 114), (240, 240, 240)):
        pixels = PHOTOS[0].copy()
        pixels[250:] = colour
        assert inspect_image(encoded(pixels, "JPEG")).damage == ""
    pixels = PHOTOS[0].copy()
    pixels[:60] = pixels[-60:] = 128  # a frame above and below
    assert inspect_image(encoded(pixels, "JPEG")).damage == ""


def test_the_highest_level_is_of_images_with_16_bits_alone(tmp_path):
    levels = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    for form in ("PNG", "TIFF"):
        assert inspect_image(encoded(levels, form)).highest == 4080
        (tmp_path / "x.img").write_bytes(encoded(levels, form))
        assert highest_level(tmp_path, "x.img") == 4080
    assert inspect_image(encoded(PHOTOS[0])).highest == -1
    (tmp_path / "x.img").write_bytes(encoded(PHOTOS[0]))
    assert highest_level(tmp_path, "x.img") == -1
