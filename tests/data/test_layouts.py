from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from hubretrain.data.dataset import open_dataset, reopen_dataset
from hubretrain.data.layouts import default_folder, find_images
from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError
from tests.samples import PIXEL, write_digits, write_pixels


def test_hugging_face_splits_with_a_table_each_are_read_with_their_splits(tmp_path: Path) -> None:
    write_pixels(tmp_path, "train/a.png", "train/b.png", "test/a.png", "validation/x/c.png")
    for split, rows in {
        "train": [("a.png", "cat"), ("b.png", "dog")],
        "test": [("a.png", "dog")],
        "validation": [("x/c.png", "cat")],
    }.items():
        table = pd.DataFrame(rows, columns=["file_name", "label"])
        table.to_json(tmp_path / split / "metadata.jsonl", orient="records", lines=True)
    data = open_dataset(tmp_path)
    rows = data.images[["path", "label", "split"]].to_numpy().tolist()
    assert rows == [
        ["test/a.png", "dog", "test"],
        ["train/a.png", "cat", "train"],
        ["train/b.png", "dog", "train"],
        ["validation/x/c.png", "cat", "validation"],
    ]


def test_a_metadata_table_that_names_no_files_leaves_the_class_folders_alone(
    tmp_path: Path,
) -> None:
    write_pixels(tmp_path, "mel/1.png", "nv/2.png")
    (tmp_path / "metadata.csv").write_text("isic_id,age\nISIC_1,50\n")
    assert open_dataset(tmp_path).class_names == ("mel", "nv")
    (tmp_path / "metadata.csv").write_text("file_name,age\nmel/1.png,50\nnv/2.png,51\n")
    with pytest.raises(DataError, match=r"metadata.csv has no label column \(looked for label, cl"):
        open_dataset(tmp_path)


def test_the_split_that_folders_give_can_be_declined(tmp_path: Path) -> None:
    write_pixels(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png")
    assert set(open_dataset(tmp_path).images["split"]) == {"train", "test"}
    declined = open_dataset(tmp_path, table=TableOptions(split_column="none"))
    assert set(declined.images["split"]) == {""}
    assert declined.class_names == ("cat", "dog")
    again = reopen_dataset(tmp_path, declined.opened_with)
    pd.testing.assert_frame_equal(again.images, declined.images)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_hugging_face_tables_of_every_kind_are_recognised(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    write_pixels(tmp_path, "a.png", "b.png")
    table = pd.DataFrame({"file_name": ["a.png", "b.png"], "label": [7, 8]})
    if suffix == "csv":
        table.to_csv(tmp_path / "metadata.csv", index=False)
    elif suffix == "jsonl":
        table.to_json(tmp_path / "metadata.jsonl", orient="records", lines=True)
    else:
        table.to_parquet(tmp_path / "metadata.parquet")
    assert open_dataset(tmp_path).images["label"].tolist() == ["7", "8"]


def test_several_folders_become_one_data_set_named_after_the_first(tmp_path: Path) -> None:
    write_pixels(tmp_path / "ham", "images/i1.jpg", "images/i2.jpg")
    (tmp_path / "ham" / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx\nl1,i1,nv\nl1,i2,nv\n"
    )
    write_pixels(tmp_path / "more" / "deep", "mel/i1.jpg", "nv/9.jpg")
    data = open_dataset(tmp_path / "ham", more_roots=[tmp_path / "more" / "deep"])
    assert data.name == "ham"
    assert data.images["path"].tolist() == [
        "../more/deep/mel/i1.jpg",
        "../more/deep/nv/9.jpg",
        "images/i1.jpg",
        "images/i2.jpg",
    ]
    assert data.images["label"].tolist() == ["mel", "nv", "nv", "nv"]
    assert data.images["group"].tolist()[2:] == ["l1", "l1"]
    assert all((data.root / path).read_bytes() == PIXEL for path in data.images["path"])
    again = reopen_dataset(data.root, data.opened_with)
    pd.testing.assert_frame_equal(again.images, data.images)


def test_paths_of_more_folders_lead_there_through_links_too(tmp_path: Path) -> None:
    write_pixels(tmp_path / "real" / "deep" / "one", "a/1.png", "b/2.png")
    write_pixels(tmp_path / "other", "a/3.png")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep" / "one")
    data = open_dataset(tmp_path / "link", more_roots=[tmp_path / "other"])
    assert len(data.images) == 3
    assert all((data.root / path).is_file() for path in data.images["path"])


def test_one_table_may_label_images_of_several_folders(tmp_path: Path) -> None:
    one, two = (
        write_pixels(tmp_path / "one", "x/a.png", "same.png"),
        write_pixels(tmp_path / "two", "x/b.png"),
    )
    labels = tmp_path / "l.csv"
    labels.write_text("path,label\nx/a.png,p\nsame.png,q\nx/b.png,q\n")
    data = open_dataset(one, labels=labels, more_roots=[two])
    assert data.images["path"].tolist() == ["../two/x/b.png", "same.png", "x/a.png"]
    write_pixels(two, "same.png")
    with pytest.raises(DataError, match=r"'same.png' could be same.png or ../two/same.png; write"):
        open_dataset(one, labels=labels, more_roots=[two])
    labels.write_text("path,label\nx/a.png,p\n../two/same.png,q\nx/b.png,q\n")
    data = open_dataset(
        one, labels=labels, more_roots=[two], table=TableOptions(skip_unmatched=True)
    )
    assert data.images["path"].tolist() == ["../two/same.png", "../two/x/b.png", "x/a.png"]


def test_folders_that_overlap_are_refused(tmp_path: Path) -> None:
    write_pixels(tmp_path, "d/a/1.png", "d/b/2.png")
    for more in ("d", "d/a", "."):
        with pytest.raises(DataError, match="overlap; name each folder of images once"):
            open_dataset(tmp_path / "d", more_roots=[tmp_path / more])


def test_a_class_may_be_called_train_but_a_split_beside_a_class_is_refused(tmp_path: Path) -> None:
    rails = write_pixels(tmp_path / "rails", "train/1.png", "car/2.png", "test/3.png")
    assert open_dataset(rails).class_names == ("car", "test", "train")
    mixed = write_pixels(tmp_path / "mixed", "train/cat/1.png", "train/dog/2.png", "extra/3.png")
    with pytest.raises(DataError, match=r"train/ holds class folders, .* beside it is extra/"):
        open_dataset(mixed)


def test_a_folder_around_the_class_folders_is_named_in_the_error(tmp_path: Path) -> None:
    write_pixels(tmp_path, "flowers/daisy/1.png", "flowers/rose/2.png")
    with pytest.raises(DataError, match=r"at least two classes; or name .*flowers, which holds"):
        open_dataset(tmp_path)


def test_links_that_loop_or_lead_nowhere_do_no_harm(tmp_path: Path) -> None:
    write_pixels(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "b" / "gone").symlink_to(tmp_path / "nowhere")
    assert find_images(tmp_path) == ["a/1.png", "b/2.png"]


def test_an_image_link_that_loops_or_leads_nowhere_is_named(tmp_path: Path) -> None:
    write_pixels(tmp_path, "a/1.png", "b/2.png")
    data = open_dataset(tmp_path)
    for target, why in (("loop.png", "Too many levels of symbolic links"), ("no", "No such file")):
        (tmp_path / "a" / "loop.png").unlink(missing_ok=True)
        (tmp_path / "a" / "loop.png").symlink_to(target)
        data = open_dataset(tmp_path)
        with pytest.raises(DataError, match=rf"a/loop.png cannot be read: {why}"):
            data.split(cache=tmp_path / "cache")


def test_a_folder_whose_name_is_not_utf_8_is_named_in_the_error(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        write_pixels(folder, "a/1.png", "b/2.png")
    except OSError:
        pytest.skip("this file system keeps UTF-8 names only")
    with pytest.raises(
        DataError, match=r"The name of .*caf\\udce9 is not UTF-8; rename the folder"
    ):
        open_dataset(folder)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_pixels(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a").chmod(0)
    try:
        if os.access(tmp_path / "a", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(
            DataError, match="a cannot be read: Permission denied; check its permissions"
        ):
            open_dataset(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)


def test_the_default_is_the_one_data_set_in_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data" / "digits", 9)
    (tmp_path / "data" / "README.md").write_text("about")
    assert open_dataset().name == "digits"
    write_pixels(tmp_path, "data/pets/cat/1.png")
    with pytest.raises(DataError, match=r"data/ holds 2 data sets \(digits, pets\); name one"):
        open_dataset()


def test_data_itself_may_be_the_data_set(tmp_path: Path) -> None:
    write_digits(tmp_path / "data", 9)
    assert default_folder(tmp_path / "data") == tmp_path / "data"


def test_tiny_imagenet_is_recognised_and_its_unlabelled_test_images_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pixels(tmp_path, "train/n01/images/n01_0.png", "train/n02/images/n02_0.png")
    write_pixels(tmp_path, "val/images/val_0.png", "val/images/val_1.png", "test/images/test_0.png")
    (tmp_path / "train/n01/n01_boxes.txt").write_text("n01_0.png\t0\t0\t62\t62\n")
    (tmp_path / "val/val_annotations.txt").write_text(
        "val_0.png\tn02\t0\t32\t44\t62\nval_1.png\tn01\t52\t55\t57\t59\n"
    )
    with caplog.at_level("INFO", "hubretrain"):
        data = open_dataset(tmp_path)
    assert data.images[["path", "label", "split"]].to_numpy().tolist() == [
        ["train/n01/images/n01_0.png", "n01", "train"],
        ["train/n02/images/n02_0.png", "n02", "train"],
        ["val/images/val_0.png", "n02", "validation"],
        ["val/images/val_1.png", "n01", "validation"],
    ]
    assert "The test split is left out: its 1 images lie in one folder, images/, which is no" in (
        caplog.text
    )
    assert open_dataset(tmp_path / "val").class_names == ("n01", "n02")


@pytest.mark.parametrize(
    "paths", [("nv/p1/1.png", "mel/p2/2.png"), ("1.png", "2.png"), ("images/1.png", "images/2.png")]
)
def test_the_default_may_be_folders_of_patients_or_images_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pixels(tmp_path / "data" / "skin", *paths)
    if "nv" not in paths[0]:
        (tmp_path / "data" / "skin" / "labels.csv").write_text("id,label\n1,nv\n2,mel\n")
    data = open_dataset()
    assert data.name == "skin"
    assert data.class_names == ("mel", "nv")
