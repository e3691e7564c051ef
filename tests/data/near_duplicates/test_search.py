from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits, load_sample_images

from hubretrain.data.images import UnreadableImageError
from hubretrain.data.near_duplicates.search import Duplicates, _opened, find_duplicates


def saved(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def resized(image: Image.Image, factor: float) -> Image.Image:
    width, height = image.size
    size = (round(width * factor), round(height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def cropped(
    image: Image.Image, left: float, top: float, right: float, bottom: float
) -> Image.Image:
    width, height = image.size
    return image.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )


def brightened(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "recompressed": lambda image: saved(image, quality=60),
    "halved": lambda image: saved(resized(image, 0.5), quality=90),
    "enlarged": lambda image: saved(resized(image, 1.5), quality=90),
    "cropped": lambda image: saved(cropped(image, 0.05, 0.05, 0.05, 0.05), quality=90),
    "cropped unevenly": lambda image: saved(cropped(image, 0.02, 0.08, 0.05, 0), quality=90),
    "mirrored": lambda image: saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=90),
    "turned": lambda image: saved(image.transpose(Image.Transpose.ROTATE_90), "PNG"),
    "darkened": lambda image: saved(brightened(image, 0.8), quality=90),
    "brightened": lambda image: saved(brightened(image, 1.2), quality=90),
    "all at once": lambda image: saved(
        brightened(
            resized(cropped(image, 0.04, 0.05, 0.03, 0.02), 0.7).transpose(
                Image.Transpose.TRANSVERSE
            ),
            0.9,
        ),
        quality=80,
    ),
}


def sha256s_of(images: list[bytes]) -> list[str]:
    return [hashlib.sha256(image).hexdigest() for image in images]


def found_in(images: list[bytes], **options: object) -> Duplicates:
    return find_duplicates(images, sha256s_of(images), **options)


def pairs_of(found: Duplicates) -> set[tuple[int, int]]:
    return set(zip(found.pairs.a.tolist(), found.pairs.b.tolist(), strict=True))


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Overlapping windows of scikit-learn's two photographs: different pictures, much alike."""
    photographs = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels)
        for left in range(0, 401, 80):
            for top in (100, 160, 220):
                window = image.crop((left, top, left + 240, top + 200))
                photographs.append(saved(window, quality=90))
    return photographs


# These photographs are white in many places already: brightening wipes out what is to be compared.
@pytest.mark.parametrize("kind", sorted(set(COPIES) - {"brightened"}))
def test_copies_of_photographs_are_found_and_other_photographs_are_not(
    photographs: list[bytes], kind: str
) -> None:
    rows = range(0, len(photographs), 3)
    copies = [COPIES[kind](Image.open(io.BytesIO(photographs[row]))) for row in rows]
    found = found_in(photographs + copies)
    planted = {(row, len(photographs) + i) for i, row in enumerate(rows)}
    assert pairs_of(found) == planted
    assert set(found.pairs.kind) == {"near"}
    assert found.pairs.similarity.between(0.92, 1).all()
    assert found.unreadable == {}


@pytest.fixture(scope="module")
def lesions(real_data: Path) -> tuple[list[bytes], list[str]]:
    """All real photographs of 150 lesions that were taken several times, and their lesions."""
    table = real_data / "ham10000" / "HAM10000_metadata.csv"
    if not table.is_file():
        pytest.skip("no HAM10000")
    rows = pd.read_csv(table).sort_values("image_id")
    several = rows[rows.groupby("lesion_id")["image_id"].transform("size") > 1]
    chosen = several["lesion_id"].drop_duplicates().sample(150, random_state=0)
    rows = several[several["lesion_id"].isin(chosen)]
    images = [(table.parent / "images" / f"{name}.jpg").read_bytes() for name in rows.image_id]
    return images, list(rows.lesion_id)


def test_copies_of_lesions_are_found_and_other_photographs_of_one_lesion_are_not(
    lesions: tuple[list[bytes], list[str]],
) -> None:
    photographs, lesion_ids = lesions
    originals = np.random.default_rng(0).choice(len(photographs), 10 * len(COPIES), replace=False)
    makers = list(COPIES.values()) * 10
    copies = [
        make(Image.open(io.BytesIO(photographs[row])))
        for make, row in zip(makers, originals, strict=True)
    ]
    origin = np.concatenate([np.arange(len(photographs)), originals])
    near = found_in(photographs + copies).pairs.query("kind == 'near'")
    planted = {(row, len(photographs) + i) for i, row in enumerate(originals.tolist())}
    pairs = set(zip(near.a.tolist(), near.b.tolist(), strict=True))
    assert len(planted & pairs) >= 0.95 * len(planted)
    others = near[origin[near.a] != origin[near.b]]
    # The few that are left are one picture cropped by HAM10000's own makers.
    assert len(others) <= 0.02 * len(photographs)
    assert all(
        lesion_ids[origin[a]] == lesion_ids[origin[b]]
        for a, b in zip(others.a, others.b, strict=True)
    )


def test_the_daisy_that_was_published_twice_is_found_and_no_other(real_data: Path) -> None:
    paths = sorted((real_data / "flowers" / "daisy").glob("*.jpg"))
    if not paths:
        pytest.skip("no flowers")
    names = [path.stem for path in paths]
    found = find_duplicates(paths, [""] * len(paths)).pairs
    named = {(names[a], names[b]) for a, b in zip(found.a, found.b, strict=True)}
    assert named == {("10466290366_cc72e33532", "10994032453_ac7f8d9e2e")}


def test_no_two_of_scikit_learns_digits_are_called_copies_unless_their_files_are_the_same() -> None:
    pixels = (load_digits().images[:200] * 15).astype(np.uint8)
    images = [saved(Image.fromarray(digit), "PNG") for digit in pixels]
    assert pairs_of(found_in(images)) == set()
    assert pairs_of(found_in([*images, images[7]])) == {(7, 200)}


def test_exact_duplicates_are_tied_to_the_first_of_them_and_unknown_digests_to_none() -> None:
    grey = saved(Image.new("RGB", (40, 30), "grey"))
    found = find_duplicates([grey] * 6, ["x", "y", "x", "", "", "x"])
    expected = pd.DataFrame({"a": [0, 0], "b": [2, 5], "kind": "exact", "similarity": 1.0})
    pd.testing.assert_frame_equal(found.pairs, expected)


def test_a_near_copy_of_exact_duplicates_is_tied_to_the_first(photographs: list[bytes]) -> None:
    copy = COPIES["recompressed"](Image.open(io.BytesIO(photographs[0])))
    found = found_in([photographs[0], photographs[1], photographs[0], copy])
    assert pairs_of(found) == {(0, 2), (0, 3)}
    assert list(found.pairs.kind) == ["exact", "near"]


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path, photographs: list[bytes]) -> None:
    whole = tmp_path / "whole.jpg"
    whole.write_bytes(photographs[0])
    images = [
        whole,
        b"no image",
        str(tmp_path / "missing.jpg"),
        photographs[0][: len(photographs[0]) // 2],
        COPIES["halved"](Image.open(whole)),
        b"",
    ]
    found = find_duplicates(images, [""] * len(images))
    assert pairs_of(found) == {(0, 4)}
    assert sorted(found.unreadable) == [1, 2, 3, 5]
    assert found.unreadable[1].startswith("UnidentifiedImageError: cannot identify image file")
    assert "No such file or directory" in found.unreadable[2]
    assert "truncated" in found.unreadable[3]


def test_images_without_texture_are_no_near_duplicates() -> None:
    images = [saved(Image.new("RGB", (64, 48), (n, n, n)), "PNG") for n in range(0, 250, 10)]
    assert len(found_in(images).pairs) == 0


def test_grey_palette_and_transparent_images_are_compared_too(photographs: list[bytes]) -> None:
    image = Image.open(io.BytesIO(photographs[0]))
    images = [photographs[0], saved(image.convert("RGBA"), "PNG"), saved(image, "BMP")]
    images += [saved(image.convert("L"), "PNG"), saved(image.convert("L"), quality=70)]
    assert pairs_of(found_in(images)) == {(0, 1), (0, 2), (1, 2), (3, 4)}


def test_threads_and_runs_change_nothing(photographs: list[bytes]) -> None:
    copies = [COPIES["cropped"](Image.open(io.BytesIO(image))) for image in photographs[:9]]
    one, two, again = (found_in(photographs[:18] + copies, workers=n) for n in (1, 3, 3))
    pd.testing.assert_frame_equal(one.pairs, two.pairs)
    pd.testing.assert_frame_equal(two.pairs, again.pairs)
    assert len(one.pairs) == 9


def test_progress_counts_every_image_once_and_then_the_pairs(photographs: list[bytes]) -> None:
    steps: list[tuple[str, int, int]] = []
    copy = COPIES["darkened"](Image.open(io.BytesIO(photographs[4])))
    found_in([*photographs, copy], progress=lambda *step: steps.append(step))
    n = len(photographs) + 1
    assert steps[0] == ("looking at images", n, n)
    assert steps[-1][0] == "comparing pairs"
    assert steps[-1][1] == steps[-1][2] >= 1


def test_pairs_of_known_images_are_left_out_and_all_others_are_found(
    photographs: list[bytes],
) -> None:
    copies = [COPIES["cropped"](Image.open(io.BytesIO(image))) for image in photographs[:9]]
    images = photographs + copies
    all_pairs = pairs_of(found_in(images))
    known = np.ones(len(images), bool)
    known[[2, len(photographs) + 5]] = False
    new = {(a, b) for a, b in all_pairs if not (known[a] and known[b])}
    assert pairs_of(found_in(images, known=known)) == new
    assert len(new) == 2


def test_features_propose_pairs_and_their_cosine_is_told(photographs: list[bytes]) -> None:
    copy = COPIES["darkened"](Image.open(io.BytesIO(photographs[4])))
    features = np.random.default_rng(0).normal(size=(len(photographs) + 1, 16))
    features[-1] = 2 * features[4]
    pairs = found_in([*photographs, copy], features=features).pairs
    assert list(pairs.cosine) == pytest.approx([1.0])
    assert pairs.loc[0, ["a", "b"]].tolist() == [4, len(photographs)]


def test_none_or_one_image_has_no_duplicates(photographs: list[bytes]) -> None:
    assert list(found_in([]).pairs.columns) == ["a", "b", "kind", "similarity"]
    assert len(found_in(photographs[:1]).pairs) == 0
    assert len(found_in(photographs[:2]).pairs) == 0


def test_an_image_that_vanished_since_it_was_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(UnreadableImageError) as raised:
        _opened(path, "")
    assert str(raised.value) == (
        f"{path}: cannot be read (No such file or directory); run the same command again."
    )
