"""What is not looked at is told: by ending, by class folder, videos, empty class folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubretrain.data.check import check_dataset
from hubretrain.data.dataset import open_dataset
from hubretrain.data.images.formats import SUFFIXES_OF
from hubretrain.data.left_out import left_out, left_out_sentences
from hubretrain.errors import DataError
from tests.samples import write_digits, write_pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_pixels(tmp_path / "pets", "cat/1.png", "cat/2.JFIF", "dog/1.png")
    for name in ("cat/3.jp2", "cat/4.JP2", "cat/clip.mov", "dog/5.psd", "bird/1.cr2", "cat/x"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "fish").mkdir()
    for name in ("LICENSE.txt", "labels.csv", "Thumbs.db", ".hidden.jp2"):
        (root / name).write_text("a,b\n")
    return root


def test_endings_class_folders_and_empty_folders_are_counted(root: Path) -> None:
    result = left_out([root], class_folders=True)
    assert result.endings == {".jp2": 2, "": 1, ".cr2": 1, ".mov": 1, ".psd": 1, ".txt": 1}
    assert result.folders == {
        "bird": {".cr2": 1},
        "cat": {".jp2": 2, ".mov": 1},
        "dog": {".psd": 1},
    }
    assert [(f.name, f.endings) for f in result.empty_folders] == [
        ("bird", {".cr2": 1}),
        ("fish", {}),
    ]
    assert left_out([root]).empty_folders == ()


def test_what_is_left_out_is_said_with_what_to_do(root: Path) -> None:
    (pictures, advice), (empty, _), (others, nothing) = left_out_sentences(
        left_out([root], class_folders=True)
    )
    assert pictures == (
        "Pictures and videos that are not looked at: 2 .jp2, 1 .cr2, 1 .mov, 1 .psd (bird: 1 .cr2, "
        "cat: 2 .jp2, 1 .mov, dog: 1 .psd)."
    )
    assert "frames of videos" in advice
    assert "to PNG or JPEG" in advice
    assert empty == (
        "Folders without an image that is read, so that they are no class: bird/ (1 .cr2), fish/ "
        "(empty)."
    )
    assert (others, nothing) == (
        "Other files that are not looked at: 1 without an ending, 1 .txt.",
        "",
    )


def test_folders_of_splits_are_no_classes_and_deeper_folders_count_for_theirs(
    tmp_path: Path,
) -> None:
    root = write_pixels(tmp_path, "train/cat/p1/1.png", "train/dog/1.png", "test/cat/1.png")
    (root / "train/cat/p1/2.jp2").write_bytes(b"x")
    (root / "test/dog").mkdir()
    result = left_out([root], class_folders=True)
    assert result.folders == {"train/cat": {".jp2": 1}}
    assert [folder.name for folder in result.empty_folders] == ["test/dog"]


def test_check_reports_it_and_a_whole_class_that_is_missing_is_told_where_one_is_left(
    tmp_path: Path,
) -> None:
    root = write_digits(tmp_path / "digits", 30)
    (root / "3").mkdir()
    (root / "3" / "a.heic").write_bytes(b"x")
    if "HEIF" in SUFFIXES_OF:
        pytest.skip("pillow-heif is installed")
    check = check_dataset(open_dataset(root), cache=tmp_path / "cache")
    what = "\n".join(f"{finding.what} {finding.advice}" for finding in check.findings)
    assert "not looked at: 1 .heic (3: 1 .heic). Install hubretrain[heic] to read HEIC." in what
    assert "they are no class: 3/ (1 .heic)." in what
    for name in ("1", "2"):
        for file in (root / name).iterdir():
            file.rename(file.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"the same label.* no class: 1/ \(\d+ \.heic\), 2/"):
        open_dataset(root)
