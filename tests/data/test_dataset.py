from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hubretrain.data import SplitOptions
from hubretrain.data.classes import sorted_classes
from hubretrain.data.dataset import open_dataset
from hubretrain.data.options import TableOptions
from hubretrain.data.remembered import open_as_before
from hubretrain.data.splitting.folds import write_folds
from hubretrain.errors import DataError
from tests.samples import PIXEL, encoded, write_digits, write_pixels


def write(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PIXEL)


def table(path, /, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_class_folders_become_a_table_in_order_of_path(tmp_path):
    write(tmp_path, "b/2.png", "a/1.JPG", "a/deep/er/3.jpeg", "a/notes.txt", ".hidden/x.png")
    (tmp_path / "a/notes.txt").write_text("not an image")
    data = open_dataset(tmp_path)
    assert data.class_names == ("a", "b")
    assert data.images["path"].tolist() == ["a/1.JPG", "a/deep/er/3.jpeg", "b/2.png"]
    assert data.labels.tolist() == [0, 0, 1]
    assert not data.grouped


def test_class_folders_below_train_and_test_keep_the_given_split(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/2.png", "valid/cat/3.png", "test/dog/4.png")
    data = open_dataset(tmp_path)
    assert data.class_names == ("cat", "dog")
    splits = dict(zip(data.images["path"], data.images["split"], strict=True))
    assert splits["valid/cat/3.png"] == "validation"
    assert splits["test/dog/4.png"] == "test"


def test_class_names_that_differ_only_in_case_or_punctuation_stay_two_classes(tmp_path):
    write(tmp_path, "A-1/x.png", "a_1/x.png", "ä ö/x.png", "<b>/x.png")
    assert open_dataset(tmp_path).class_names == ("<b>", "A-1", "a_1", "ä ö")


def test_ham10000_is_recognised_with_lesions_as_groups(tmp_path):
    write(
        tmp_path,
        "HAM10000_images_part_1/i1.jpg",
        "HAM10000_images_part_2/i2.jpg",
        "HAM10000_images_part_2/i3.jpg",
    )
    table(
        tmp_path / "HAM10000_metadata.csv",
        lesion_id=["l1", "l1", "l2"],
        image_id=["i1", "i2", "i3"],
        dx=["nv", "nv", "mel"],
    )
    data = open_dataset(tmp_path)
    assert data.grouped
    assert data.images["group"].tolist() == ["l1", "l1", "l2"]
    assert data.class_names == ("mel", "nv")


def test_hugging_face_metadata_is_recognised(tmp_path):
    write(tmp_path, "x/1.png", "x/2.png")
    table(tmp_path / "metadata.csv", file_name=["x/1.png", "x/2.png"], label=["p", "q"])
    assert open_dataset(tmp_path).images["label"].tolist() == ["p", "q"]


@pytest.mark.parametrize("cell", ["x/one.png", "one.png", "one", "./x/one.png"])
def test_an_image_is_named_by_path_file_name_or_stem(tmp_path, cell):
    write(tmp_path, "x/one.png", "x/two.png")
    labels = table(tmp_path / "l.csv", pic=[cell, "two"], kind=["p", "q"])
    data = open_dataset(
        tmp_path, labels=labels, table=TableOptions(image_column="pic", label_column="kind")
    )
    assert data.images["path"].tolist() == ["x/one.png", "x/two.png"]


def test_labels_that_are_numbers_are_classes_in_numeric_order():
    assert sorted_classes(["10", "9", "2", "9"]) == ("2", "9", "10")
    assert sorted_classes(["10", "9", "b"]) == ("10", "9", "b")


def test_an_empty_group_cell_makes_the_image_its_own_group(tmp_path):
    write(tmp_path, "1.png", "2.png", "3.png")
    labels = table(
        tmp_path / "l.csv",
        path=["1.png", "2.png", "3.png"],
        label=["p", "q", "q"],
        who=["", "", "g"],
    )
    data = open_dataset(tmp_path, labels=labels, table=TableOptions(group_column="who"))
    assert data.images["group"].tolist() == ["1.png", "2.png", "g"]


def test_a_byte_order_mark_spaces_and_repeated_rows_do_no_harm(tmp_path):
    write(tmp_path, "1.png", "2.png")
    labels = tmp_path / "l.csv"
    labels.write_bytes("﻿path,label\n1.png, p\n2.png,q \n1.png,p\n".encode())
    data = open_dataset(tmp_path, labels=labels)
    assert data.images["label"].tolist() == ["p", "q"]


def test_a_link_that_loops_ends(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    assert len(open_dataset(tmp_path).images) == 2


def bad(tmp_path, case):
    write(tmp_path, "d/a/1.png", "d/b/2.png")
    root, options = tmp_path / "d", {}
    if case == "missing folder":
        root = tmp_path / "nowhere"
    elif case == "empty folder":
        root = tmp_path / "empty"
        root.mkdir()
    elif case == "one class":
        root = tmp_path / "one"
        write(root, "a/1.png", "a/2.png")
    elif case == "no class folders":
        root = tmp_path / "flat"
        write(root, "1.png", "2.png")
    elif case == "image outside class folders":
        write(root, "3.png")
    elif case == "column without a table":
        options = {"table": TableOptions(label_column="x")}
    elif case == "missing table":
        options = {"labels": tmp_path / "none.csv"}
    else:
        columns = {"path": ["a/1.png", "b/2.png"], "label": ["p", "q"]}
        if case == "row without a file":
            columns = {"path": ["a/1.png", "b/2.png", "c.png"], "label": ["p", "q", "q"]}
        elif case == "file without a row":
            write(root, "c/3.png")
        elif case == "no row matches":
            columns["path"] = ["x/b2.png", "y.png"]
        elif case == "missing column":
            options["table"] = TableOptions(label_column="dx")
        elif case == "no image column":
            columns = {"pix": ["x.png", "y.png"], "label": ["p", "q"]}
        elif case == "two labels":
            columns = {"path": ["a/1.png", "a/1.png", "b/2.png"], "label": ["p", "q", "q"]}
        elif case == "empty label":
            columns["label"] = ["p", ""]
        elif case == "path outside":
            columns["path"] = ["../../etc/passwd.png", "b/2.png"]
        elif case == "ambiguous name":
            write(root, "a/same.png", "b/same.png")
            columns = {"path": ["same.png", "a/1.png"], "label": ["p", "q"]}
        elif case == "unknown split":
            columns["fold"] = ["train", "holdout"]
            options["table"] = TableOptions(split_column="fold")
        options["labels"] = table(tmp_path / "l.csv", **columns)
    return root, options


def test_a_table_of_labels_is_sought_beside_the_images_too(tmp_path, monkeypatch, caplog):
    root = write_pixels(tmp_path / "far" / "photos", "1.png", "2.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DataError, match=r"^l.csv does not exist, neither here nor in .*far/photos"):
        open_dataset(root, labels="l.csv")
    beside = table(tmp_path / "far" / "l.csv", path=["1.png", "2.png"], label=["p", "q"])
    with caplog.at_level(logging.INFO, "hubretrain"):
        opened = open_dataset(root, labels="l.csv")
    assert opened.opened_with["labels"] == str(beside)
    assert f"`labels` is {beside}: l.csv does not exist here." in caplog.text
    assert open_as_before(root, tmp_path / "cache", labels=Path("l.csv")).class_names == ("p", "q")
    shutil.copy(beside, root / "l.csv")
    with pytest.raises(DataError, match=r"does not exist here, but .*photos/l.csv and .*far/l.csv"):
        open_dataset(root, labels="l.csv")
    shutil.copy(beside, tmp_path / "here")
    assert open_dataset(root, labels="l.csv").opened_with["labels"].endswith("here/l.csv")


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("missing folder", r"nowhere does not exist; expected a folder of images"),
        ("empty folder", r"empty holds no images; expected class folders or a table"),
        ("one class", r"all 2 images have the same label, 'a'; expected at least two"),
        ("no class folders", r"2 images but no class folders and no table of labels"),
        ("image outside class folders", r"1 images lie outside every class folder \(first: 3.png"),
        ("column without a table", r"`label_column` is 'x', but there is no table; name it"),
        ("missing table", r"none.csv does not exist; expected a table of labels"),
        (
            "row without a file",
            r"1 of 3 rows have no file below .*'c.png', nearest file: b/2.png\); fix",
        ),
        ("file without a row", r"1 of 3 images have no row in .*c/3.png\); fix the table"),
        (
            "no row matches",
            r"none of its 2 rows names an image below .* \(first: 'x/b2.png', nearest file: b/2",
        ),
        ("missing column", r"has no column 'dx'; its columns are: path, label"),
        ("no image column", r"has no image column \(looked for path, .*name one: `image_column`"),
        ("two labels", r"a/1.png has two labels \('p' and 'q'\); keep one row"),
        ("empty label", r"1 rows have an empty 'label' \(first: b/2.png\); .*`skip_unlabelled`"),
        ("path outside", r"'../../etc/passwd.png' lies outside the data set's folder"),
        ("ambiguous name", r"'same.png' could be a/same.png or b/same.png; write the path"),
        ("unknown split", r"'holdout' is no split; expected train, validation or test"),
    ],
)
def test_bad_input_gets_one_clear_sentence(tmp_path, case, sentence):
    root, options = bad(tmp_path, case)
    with pytest.raises(DataError, match=sentence) as caught:
        open_dataset(root, **options)
    assert "\n" not in str(caught.value)


def test_unmatched_rows_and_files_can_be_skipped(tmp_path):
    write(tmp_path, "1.png", "2.png", "extra.png")
    labels = table(tmp_path / "l.csv", path=["1.png", "2.png", "gone.png"], label=["p", "q", "q"])
    data = open_dataset(tmp_path, labels=labels, table=TableOptions(skip_unmatched=True))
    assert data.images["path"].tolist() == ["1.png", "2.png"]


def test_a_file_name_that_is_not_utf_8_is_named_in_the_error(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    try:
        (tmp_path / "a").joinpath(os.fsdecode(b"caf\xe9.png")).write_bytes(PIXEL)
    except OSError:
        pytest.skip("this file system keeps UTF-8 names only")
    with pytest.raises(DataError, match=r"the name of a/caf.*\.png is not UTF-8; rename"):
        open_dataset(tmp_path)


def test_the_published_ham10000_layout_opens_whole(real_data):
    data = open_dataset(real_data / "ham10000")
    metadata = pd.read_csv(real_data / "ham10000" / "HAM10000_metadata.csv")
    assert len(data.images) == len(metadata)
    assert data.images["label"].value_counts().to_dict() == metadata["dx"].value_counts().to_dict()
    assert data.images["group"].nunique() == metadata["lesion_id"].nunique()


def test_split_gives_a_table_that_is_the_same_every_time_and_extends_an_earlier_one(tmp_path):
    data = open_dataset(write_digits(tmp_path / "digits", 180))
    cache = tmp_path / "cache"
    images = data.split(SplitOptions(3, seed=1), cache=cache)
    assert {"path", "label", "group", "split", "sha256", "class_index", "cluster"} < set(images)
    assert set(images["fold"]) == {-1, 0, 1, 2}
    pd.testing.assert_frame_equal(data.split(SplitOptions(3, seed=1), cache=cache), images)
    assert (data.split(SplitOptions(3, seed=2), cache=cache)["fold"] != images["fold"]).any()
    share = images["label"].value_counts(normalize=True)
    for _, part in images.groupby("fold"):
        assert (part["label"].value_counts(normalize=True) - share).abs().max() < 0.05

    write_folds(tmp_path / "folds.csv", images.assign(group=images["cluster"]))
    pixels = np.random.default_rng(0).integers(0, 255, (30, 8, 8)).astype(np.uint8)
    for i, picture in enumerate(pixels):
        (tmp_path / "digits" / str(i % 3) / f"new{i}.png").write_bytes(encoded(picture))
    more = open_dataset(tmp_path / "digits")
    extended = more.split(SplitOptions(3, seed=9), folds_file=tmp_path / "folds.csv", cache=cache)
    old = extended.set_index("path")["fold"][images["path"]]
    assert len(extended) == 210
    assert old.tolist() == images["fold"].tolist()


def test_split_honours_groups_and_splits_of_a_table(tmp_path):
    write_digits(tmp_path / "d", 90)
    paths = open_dataset(tmp_path / "d").images["path"].tolist()
    labels = table(
        tmp_path / "l.csv",
        path=paths,
        label=[path[0] for path in paths],
        who=[f"{path[0]} {i // 2}" for i, path in enumerate(paths)],
        split=["test" if i % 10 < 2 else "" for i in range(len(paths))],
    )
    data = open_dataset(tmp_path / "d", labels=labels, table=TableOptions(group_column="who"))
    images = data.split(SplitOptions(n_folds=2), cache=tmp_path / "cache")
    assert ((images["fold"] == -1) == (images["split"] == "test")).all()
    assert images.groupby("cluster")["fold"].nunique().max() == 1
