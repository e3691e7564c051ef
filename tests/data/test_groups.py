from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest

from hubretrain.data.check import check_dataset
from hubretrain.data.dataset import open_dataset, reopen_dataset
from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError
from tests.samples import write_pixels

PATIENTS = ("nv/p1/1.png", "nv/p1/2.png", "nv/p2/3.png", "mel/p3/4.png", "mel/p1/5.png")


@pytest.mark.parametrize(
    ("paths", "rule", "groups"),
    [
        (PATIENTS, "folder:-1", ["p1", "p3", "p1", "p1", "p2"]),
        (PATIENTS, "folder:1", ["p1", "p3", "p1", "p1", "p2"]),
        (PATIENTS, r"/(p\d)/", ["p1", "p3", "p1", "p1", "p2"]),
        (PATIENTS, r"p\d", ["p1", "p3", "p1", "p1", "p2"]),
        (PATIENTS, r"/p(1)/|zzz", ["1", "mel/p3/4.png", "1", "1", "nv/p2/3.png"]),
        (("train/nv/p1/1.png", "test/mel/p2/2.png"), "folder:-1", ["p2", "p1"]),
        (("nv/1.png", "nv/p/2.png", "mel/p/3.png"), "folder:-1", ["p", "nv/1.png", "p"]),
        (("nv/p1_1.png", "nv/p1_2.png", "mel/p2_1.png"), r"(p\d)_", ["p2", "p1", "p1"]),
        (("nv/p1/s1/1.png", "mel/p2/s1/2.png"), "folder:-2", ["p2", "p1"]),
    ],
)
def test_groups_are_taken_from_paths(
    tmp_path: Path, paths: tuple[str, ...], rule: str, groups: list[str]
) -> None:
    data = open_dataset(write_pixels(tmp_path, *paths), table=TableOptions(group_from=rule))
    assert data.images["group"].tolist() == groups
    assert data.grouped
    again = reopen_dataset(tmp_path, data.opened_with)
    pd.testing.assert_frame_equal(again.images, data.images)


def test_folders_named_after_a_label_are_no_groups_where_images_have_several(
    tmp_path: Path,
) -> None:
    paths = ("cat/p1/1.png", "cat/2.png", "dog/p1/3.png", "dog/4.png", "cat/5.png")
    root = write_pixels(tmp_path / "d", *paths)
    rows = zip(paths, ("cat|dog", "dog", "dog", "", "cat"), strict=True)
    text = "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows)
    (tmp_path / "l.csv").write_text(text)
    table = TableOptions(group_from="folder:-1", label_separator="|")
    data = open_dataset(root, labels=tmp_path / "l.csv", table=table)
    assert data.images["path"].tolist() == sorted(paths)
    assert data.images["group"].tolist() == ["cat/2.png", "cat/5.png", "p1", "dog/4.png", "p1"]
    rows = zip(paths, ("cat,", "dog,", "dog,x", ",x", "cat,x"), strict=True)
    text = "path,kind,site\n" + "".join(f"{path},{cells}\n" for path, cells in rows)
    (tmp_path / "l.csv").write_text(text)
    table = TableOptions(group_from="folder:-1", label_column=("kind", "site"))
    columns = open_dataset(root, labels=tmp_path / "l.csv", table=table)
    assert columns.class_names == ("kind:cat", "kind:dog", "site:x")
    assert columns.images["group"].equals(data.images["group"])


def test_groups_from_paths_go_with_a_table_of_labels_and_with_renamed_classes(
    tmp_path: Path,
) -> None:
    root = write_pixels(tmp_path / "d", "p1/a/1.png", "p1/b/2.png", "p2/a/3.png")
    (tmp_path / "l.csv").write_text("path,label\np1/a/1.png,a\np1/b/2.png,b\np2/a/3.png,a\n")
    data = open_dataset(
        root, labels=tmp_path / "l.csv", table=TableOptions(group_from="folder:0", merge=("a=p1",))
    )
    assert data.images["group"].tolist() == ["p1", "p1", "p2"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"group_from": "folder:7"}, "`group_from` 'folder:7' gives none of the 5 images a group"),
        ({"group_from": "folder:0"}, "`group_from` 'folder:0' gives none of the 5 images a group"),
        ({"group_from": "("}, r"`group_from` is '\(', which is no regular expression"),
        ({"group_from": "folder:1", "group_column": "x"}, "expected one of them"),
    ],
)
def test_a_rule_that_gives_no_groups_is_refused(
    tmp_path: Path, options: dict[str, str], sentence: str
) -> None:
    root = write_pixels(tmp_path, *PATIENTS)
    with pytest.raises(DataError, match=sentence):
        open_dataset(root, table=TableOptions(**options))


def test_folders_below_classes_are_proposed_as_groups_until_that_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_pixels(tmp_path / "d", *PATIENTS)
    with caplog.at_level(logging.INFO, "hubretrain"):
        assert not open_dataset(root).grouped
    assert "Classes hold folders (4, such as mel/p1/), and each image counts as its own group" in (
        caplog.text
    )
    assert "`group_from=folder:-1`, else `group_from=none`" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "hubretrain"):
        open_dataset(root, table=TableOptions(group_from="none"))
        open_dataset(root, table=TableOptions(group_from="folder:-1"))
        open_dataset(write_pixels(tmp_path / "one", "a/images/1.png", "b/images/2.png", "b/3.png"))
    assert not caplog.text


BELOW = ("p1/cat/1.png", "p1/dog/2.png", "p2/cat/3.png", "p2/dog/4.png", "p3/cat/5.png")


@pytest.mark.parametrize("above", ["", "train/"])
@pytest.mark.parametrize("paths", [BELOW, [BELOW[0], *BELOW[3:], "p4/dog/6.png"]])
def test_classes_below_folders_of_patients_are_asked_for_in_one_sentence_and_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, above: str, paths: tuple[str, ...]
) -> None:
    root = write_pixels(tmp_path / "d", *(above + path for path in paths))
    number = 1 if above else 0
    with caplog.at_level(logging.INFO, "hubretrain"):
        patients = open_dataset(root)
    sentence = (
        f"The class of the images in {above}p1/cat/ is 'p1', but the 2 folders below the classes "
        "(cat, dog) repeat from class to class; if those are the classes, and each folder above "
        f"them is a patient or another group, use `group_from=folder:{number}`; if they are "
        "groups, use `group_from=folder:-1`, else `group_from=none`."
    )
    assert [record.getMessage() for record in caplog.records] == [sentence]
    findings = check_dataset(patients, cache=tmp_path / "cache").findings
    assert [f for f in findings if "repeat from class to class" in f.what]
    data = open_dataset(root, table=TableOptions(group_from=f"folder:{number}"))
    parts = [path.split("/") for path in data.images["path"]]
    assert data.images["label"].tolist() == [p[-2] for p in parts]
    assert data.images["group"].tolist() == [p[-3] for p in parts]
    assert data.grouped
    again = reopen_dataset(root, data.opened_with)
    pd.testing.assert_frame_equal(again.images, data.images)
    caplog.clear()
    for answer in ("none", "folder:-1"):
        assert open_dataset(root, table=TableOptions(group_from=answer)).class_names[0] == "p1"


@pytest.mark.parametrize(
    "paths",
    [
        ("a/images/1.png", "b/images/2.png", "c/images/3.png"),  # one name, as in Tiny ImageNet
        ("a/train/1.png", "a/test/2.png", "b/train/3.png", "b/test/3.png", "c/train/4.png"),
        ("a/x/1.png", "b/x/2.png", "c/y/3.png"),  # y stands once
        ("a/x/1.png", "a/y/2.png", "b/x/3.png", "b/y/3.png", "c/4.png"),
    ],
)
def test_other_folders_below_classes_are_not_taken_for_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, paths: tuple[str, ...]
) -> None:
    with caplog.at_level(logging.INFO, "hubretrain"):
        data = open_dataset(write_pixels(tmp_path, *paths))
    assert data.class_names == ("a", "b", "c")
    assert "repeat" not in caplog.text


def test_the_check_proposes_folders_below_classes_as_groups(tmp_path: Path) -> None:
    root = write_pixels(tmp_path / "d", *PATIENTS)
    proposals = {}
    for rule in (None, "none", "folder:-1"):
        data = open_dataset(root, table=TableOptions(group_from=rule))
        findings = check_dataset(data, cache=tmp_path / "cache").findings
        proposals[rule] = [f.what for f in findings if "folders" in f.what]
    assert proposals == {
        None: ["Classes hold 4 folders (such as mel/p1/), but each image counts as its own group."],
        "none": [],
        "folder:-1": [],
    }


FOLDERS = ("nv/1.png", "nv/2.png", "mel/3.png")
BESIDE = {  # table; options; groups; what is logged
    "usual names": (
        "Image,Patient ID\n1.png,a\n3.png,a\n",
        {},
        ["a", "a", "nv/2.png"],
        "groups from column 'Patient ID', for 2 of 3 images; classes are those of the folders",
    ),
    "labels, too": (
        "image_id,dx,lesion_id\n1,nevus,a\n2,nevus,a\n3,mel,b\n",
        {},
        ["b", "a", "a"],
        "groups from column 'lesion_id', for 3 of 3 images",
    ),
    "a named column": (
        "image,who\n1.png,a\n2.png,a\n3.png,b\n",
        {"group_column": "who"},
        ["b", "a", "a"],
        "groups from column 'who'",
    ),
    "no groups": (
        "image,age\n1.png,3\n2.png,4\n3.png,5\n",
        {},
        None,
        "is not used: it has no column with a usual name for groups, such as patient_id; name one",
    ),
    "labels only": (
        "image,label\n1.png,a\n2.png,b\n3.png,b\n",
        {},
        None,
        ".csv`.",  # the table, to be named
    ),
    "labels only, groups declined": (
        "image,label\n1.png,a\n2.png,b\n3.png,b\n",
        {"group_column": "none"},
        None,
        "is not used: if it holds the classes, name it: `labels=",
    ),
    "no images": (
        "file,patient_id\nx.png,3\ny.png,4\n",
        {},
        None,
        "is not used: no column with a usual name names its images",
    ),
    "two groups of one image": (
        "image,patient_id\n1.png,3\n1.png,4\n",
        {},
        None,
        "is not used: nv/1.png has two rows that differ",
    ),
    "declined": ("image,patient_id\n1.png,a\n3.png,a\n", {"group_column": "none"}, None, ""),
}


@pytest.mark.parametrize("file_name", ["patients.csv", "metadata.csv"])
@pytest.mark.parametrize("name", BESIDE)
def test_a_table_beside_class_folders_is_used_or_the_reason_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, file_name: str
) -> None:
    text, options, groups, told = BESIDE[name]
    root = write_pixels(tmp_path, *FOLDERS)
    (root / file_name).write_text(text)
    with caplog.at_level(logging.INFO, "hubretrain"):
        data = open_dataset(root, table=TableOptions(**options))
    assert data.class_names == ("mel", "nv")
    assert data.grouped == (groups is not None)
    if groups is not None:
        assert data.images["group"].tolist() == groups
    assert told in caplog.text
    pd.testing.assert_frame_equal(reopen_dataset(root, data.opened_with).images, data.images)


def test_a_damaged_table_beside_class_folders_is_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_pixels(tmp_path, *FOLDERS)
    (root / "patients.csv").write_text('a,b\n"1')
    with caplog.at_level(logging.INFO, "hubretrain"):
        assert not open_dataset(root).grouped
    assert "patients.csv is not used: cannot be read as a table: unexpected end" in caplog.text


def test_a_split_column_beside_class_folders_is_used_and_can_be_declined(tmp_path: Path) -> None:
    root = write_pixels(tmp_path, *FOLDERS)
    (root / "splits.tsv").write_text("file\tset\n1.png\ttrain\n2.png\ttest\n3.png\tval\n")
    assert open_dataset(root).images["split"].tolist() == ["validation", "train", "test"]
    declined = open_dataset(root, table=TableOptions(split_column="none"))
    assert set(declined.images["split"]) == {""}


@pytest.mark.parametrize("folder", ["", "images/", "train/"])
def test_a_table_beside_images_without_class_folders_labels_them(
    tmp_path: Path, folder: str
) -> None:
    root = write_pixels(tmp_path, *(f"{folder}{i}.png" for i in (1, 2, 3)))
    (root / "train.csv").write_text("id,diagnosis,patient_id\n1,a,x\n2,b,x\n3,b,y\n")
    data = open_dataset(root)
    assert data.images["label"].tolist() == ["a", "b", "b"]
    assert data.images["group"].tolist() == ["x", "x", "y"]
    (root / "other.csv").write_text("id,diagnosis\n1,a\n2,b\n3,b\n")
    with pytest.raises(
        DataError, match=r"no class folders|outside every|all 3 images have the same"
    ):
        open_dataset(root)


def test_a_table_that_was_recognised_opens_no_network_unless_it_may(tmp_path: Path) -> None:
    root = write_pixels(tmp_path, "1.png", "2.png")
    (root / "l.csv").write_text("path,label\nhttps://a.example/1.png,a\n2.png,b\n1.png,a\n")
    with pytest.raises(DataError, match="names images at URLs"):
        open_dataset(root)


def test_published_isic_tables_beside_the_images_label_and_group_them(tmp_path: Path) -> None:
    root = write_pixels(tmp_path, *(f"ISIC_Input/ISIC_000{i}.png" for i in range(3)))
    (root / "GroundTruth.csv").write_text(
        "image,MEL,NV,UNK\nISIC_0000,1.0,0.0,0.0\nISIC_0001,0.0,1.0,0.0\nISIC_0002,0.0,1.0,0.0\n"
    )
    (root / "LesionGroupings.csv").write_text(
        "image,lesion_id,diagnosis confirm type\nISIC_0000,a,x\nISIC_0001,b,x\nISIC_0002,b,x\n"
    )
    data = open_dataset(root)
    assert data.images["label"].tolist() == ["MEL", "NV", "NV"]
    assert data.images["group"].tolist() == ["a", "b", "b"]
    assert not open_dataset(root, table=TableOptions(group_column="none")).grouped
