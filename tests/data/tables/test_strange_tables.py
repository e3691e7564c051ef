"""Tables as people have them: each is read, and what was guessed is logged."""

from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from hubretrain.data.dataset import ImageDataset, open_dataset
from hubretrain.data.options import TableOptions
from hubretrain.data.tables.reading import read_table
from hubretrain.errors import DataError
from tests.samples import write_pixels


def opened(root: Path, text: str | bytes, name: str = "l.csv", **options: object) -> ImageDataset:
    file = root.parent / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_dataset(root, labels=file, table=TableOptions(**options))


NFC, NFD = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
NAMES = {  # files; cells; what is logged
    "another machine's prefix": (
        ("cat/1.jpg", "dog/2.jpg"),
        ("/home/ann/pets/cat/1.jpg", "/home/ann/pets/dog/2.jpg"),
        "match without the folders in front (first: '/home/ann/pets/cat/1.jpg' is cat/1.jpg)",
    ),
    "a drive of Windows": (
        ("cat/1.jpg", "dog/2.jpg"),
        (r"C:\pets\cat\1.jpg", r"C:\pets\dog\2.jpg"),
        "without the direction of slashes and the folders in front",
    ),
    "the folder's own name in front": (
        ("cat/1.jpg", "dog/2.jpg"),
        ("d/cat/1.jpg", "d/dog/2.jpg"),
        "",
    ),
    "another folder in front": (
        ("cat/1.jpg", "dog/2.jpg"),
        ("pets/cat/1.jpg", "./pets/dog/2.jpg"),
        "without the folders in front",
    ),
    "the end of the path": (
        ("train/cat/1.jpg", "train/dog/1.jpg"),
        ("cat/1.jpg", "dog/1.jpg"),
        "",
    ),
    "backslashes": (
        ("images/x.jpg", "images/y.jpg"),
        (r"images\x.jpg", r"images\y.jpg"),
        "without the direction of slashes",
    ),
    "case": (("a/X.JPG", "a/y.jpg"), ("A/x.jpg", "A/y.JPG"), "without upper and lower case"),
    "composed accents": ((f"{NFD}1.jpg", "2.jpg"), (f"{NFC}1.jpg", "2.jpg"), "encoding of accents"),
    "decomposed accents": ((f"{NFC}/1.jpg", "2.jpg"), (f"{NFD}/1.jpg", "2"), "encoding of accents"),
    "zeros lost": (("0007.jpg", "0010.jpg"), ("7", "10"), "without zeros in front of numbers"),
    "zeros lost with an ending": (("007.jpg", "010.jpg"), ("7.jpg", "10.jpg"), "without zeros"),
    "numbers of a spreadsheet": (("0007.jpg", "10.jpg"), ("7.0", "10.0"), "without zeros"),
    "zeros lost behind letters": (("a_0012.png", "a_0100.png"), ("a_12", "a_100"), "without zeros"),
    "another ending": (("1.jpg", "2.jpg"), ("1.png", "2.png"), "without the ending"),
    "case and prefix": (
        ("Cat/1.JPG", "Dog/2.JPG"),
        ("/data/cat/1.jpg", "/data/dog/2.jpg"),
        "without the folders in front and upper and lower case",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_images_are_found_by_the_names_that_people_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    files, cells, told = NAMES[name]
    with caplog.at_level(logging.INFO, "hubretrain"):
        root = write_pixels(tmp_path / "d", *files)
        data = opened(root, f"path,label\n{cells[0]},p\n{cells[1]},q\n")
    assert dict(zip(data.images["path"], data.images["label"], strict=True)) == {
        files[0]: "p",
        files[1]: "q",
    }
    assert told in caplog.text
    assert bool(caplog.text) == bool(told)


@pytest.mark.parametrize("link", [False, True])
def test_absolute_paths_and_paths_beside_the_table_are_inside_the_folder(
    tmp_path: Path, link: bool
) -> None:
    root = write_pixels(tmp_path / "real", "cat/1.jpg", "dog/2.jpg")
    if link:
        (tmp_path / "link").symlink_to(root)
    given = tmp_path / "link" if link else root
    for first in (os.path.realpath(root / "cat/1.jpg"), f"{given}/cat/1.jpg", "../real/cat/1.jpg"):
        (tmp_path / "lists").mkdir(exist_ok=True)
        data = opened(root, f"path,label\n{first},p\n{root}/dog/2.jpg,q\n", "lists/l.csv")
        assert data.images["path"].tolist() == ["cat/1.jpg", "dog/2.jpg"]


@pytest.mark.parametrize(
    ("files", "cells", "sentence"),
    [
        (("a/1.jpg", "b/1.jpg"), ("x/1.jpg", "a/1.jpg"), r"'x/1.jpg', nearest file: a/1.jpg"),
        (("a/1.jpg", "b/01.jpg"), ("001", "b/01.jpg"), r"'001' could be a/1.jpg or b/01.jpg"),
        (("A.jpg", "a.jpg"), ("A.JPG", "a.jpg"), r"'A.JPG' could be A.jpg or a.jpg"),
        (
            ("1.jpg", "2.jpg"),
            ("x/1.jpg", "y/1.jpg"),
            r"'x/1.jpg' and 'y/1.jpg' could both be 1.jpg",
        ),
        (("07.jpg", "2.jpg"), ("7", "007"), r"'7' and '007' could both be 07.jpg; write the paths"),
        (("IMG_01.jpg", "2.jpg"), ("IMG-01.jpg", "2"), r"'IMG-01.jpg', nearest file: IMG_01.jpg"),
    ],
)
def test_a_name_that_could_be_several_images_or_none_is_refused(
    tmp_path: Path, files: tuple[str, ...], cells: tuple[str, ...], sentence: str
) -> None:
    root = write_pixels(tmp_path / "d", *files)
    with pytest.raises(DataError, match=sentence):
        opened(root, f"path,label\n{cells[0]},p\n{cells[1]},q\n")


HEADERS = [
    *("Image , Label ", "IMG,lbl", "filename,category", "filepath,target", "File Name,Diagnosis"),
    *("image_name,Class Name", "image-id,species", "ID,breed", "Image Index,Finding Labels"),
    *("foto,Klasse", ",Klasse"),
]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_in_any_case_and_with_usual_names_are_known(tmp_path: Path, header: str) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg", "3.jpg")
    data = opened(root, f"{header}\n1.jpg,p\n2.jpg,q\n3.jpg,q\n")
    assert data.images["label"].tolist() == ["p", "q", "q"]


@pytest.mark.parametrize("header", ["PatientID", "Patient ID", "patient_id", "patient", "SUBJECT"])
def test_usual_names_of_patients_give_groups(tmp_path: Path, header: str) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg")
    data = opened(root, f",image,label,{header}\n0,1.jpg,p,a\n1,2.jpg,q,a\n")
    assert data.images["group"].tolist() == ["a", "a"]
    assert data.grouped


def test_a_named_column_may_differ_in_case_and_blanks(tmp_path: Path) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg")
    text = "Image,Kind of Pet\n1.jpg,p\n2.jpg,q\n"
    assert opened(root, text, label_column="kind_of_pet").class_names == ("p", "q")


ROWS = [("1.jpg", "Käfer"), ("2.jpg", "q"), ("3.jpg", "q")]
TEXT = "path,label\n" + "".join(f"{a},{b}\n" for a, b in ROWS)
FILES = {
    "sep line": ("l.csv", "sep=;\r\n" + TEXT.replace(",", ";")),
    "bars": ("l.csv", TEXT.replace(",", "|")),
    "a comma in the header": ("l.csv", TEXT.replace(",", ";").replace("path", '"path, or so"')),
    "utf-16": ("l.csv", TEXT.encode("utf-16")),
    "utf-16-be with its mark": ("l.csv", ("\ufeff" + TEXT).encode("utf-16-be")),
    "utf-16 without a mark": ("l.csv", TEXT.encode("utf-16-le")),
    "unicode text of a spreadsheet": ("l.txt", TEXT.replace(",", "\t").encode("utf-16")),
    "utf-32": ("l.csv", TEXT.encode("utf-32")),
    "cp1252": ("l.csv", TEXT.encode("cp1252")),
    "old Mac lines": ("l.csv", TEXT.replace("\n", "\r")),
    "blank lines": ("l.csv", TEXT.replace("\n", "\n,\n\n")),
    "empty cells at the end": ("l.csv", TEXT.replace("\n", ",,\n").replace(",,", "", 1)),
    "blanks before quotes": ("l.csv", TEXT.replace(",", ', "').replace("\n", '"\n')),
    "no header": ("l.csv", TEXT.partition("\n")[2]),
    "no header, an index": ("l.csv", "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(ROWS))),
    "no header, blanks": ("l.txt", TEXT.partition("\n")[2].replace(",", " ")),
    "no header, more columns": (
        "val_annotations.txt",
        TEXT.partition("\n")[2].replace(",", "\t").replace("\n", "\t0\t0\t62\t62\n"),
    ),
    "no header, ids": ("l.csv", TEXT.partition("\n")[2].replace(".jpg", "")),
    "an index": ("l.csv", "\n".join(f"{i or ''},{x}" for i, x in enumerate(TEXT.split("\n")[:-1]))),
}


@pytest.mark.parametrize("name", FILES)
def test_tables_in_every_encoding_and_form_give_the_same_labels(tmp_path: Path, name: str) -> None:
    root = write_pixels(tmp_path / "d", *(path for path, _ in ROWS))
    data = opened(root, FILES[name][1], FILES[name][0])
    assert data.images[["path", "label"]].to_numpy().tolist() == [list(row) for row in ROWS]


def test_an_encoding_that_was_guessed_is_logged_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_pixels(tmp_path / "d", *(path for path, _ in ROWS))
    with caplog.at_level(logging.INFO, "hubretrain"):
        opened(root, TEXT.encode("cp1252"))
    assert (
        "is not UTF-8 and was read as Windows-1252 (first word with a special letter: Käfer)"
        in (caplog.text)
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [("l.xlsx", b"PK\x03\x04"), ("l.csv", b"PK\x03\x04"), ("l.xls", b"\xd0\xcf\x11\xe0\xa1\xb1")],
)
def test_a_workbook_is_to_be_saved_as_csv(tmp_path: Path, name: str, data: bytes) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg")
    with pytest.raises(
        DataError, match=rf"{name} is a workbook, not text; save it as CSV and name"
    ):
        opened(root, data, name)


@pytest.mark.parametrize(
    "cells",
    [
        *(("cat|dog", "cat", "dog"), ("cat|dog", "bird", "fish"), ("cat, dog", "cat", "dog")),
        *(("cat,dog", "cat", "bird"), ("cat, dog", "cat, bird", "fish"), ("a; b", "a", "b")),
        *(('["cat", "dog"]', "bird", "fish"), ("['cat', 'dog']", "cat", "dog")),
        *(("[cat, dog]", "bird", "fish"), ("{cat, dog}", "a", "b"), ("('a', 'b')", "x", "y")),
        *(("cat dog", "cat", "dog"), ("cat/dog", "cat", "dog"), ("cat + dog", "cat", "dog")),
        *(("cat & dog", "cat", "dog"), ("cat and dog", "cat", "dog"), ("cat | dog", "x", "y")),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_several_labels_in_a_cell_are_never_a_class_of_their_own(
    tmp_path: Path, cells: tuple[str, ...], suffix: str
) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    table = pd.DataFrame({"path": ["1", "2", "3", "4"], "label": [*cells, cells[-1]]})
    if suffix == "jsonl":
        text = table.to_json(orient="records", lines=True)
    else:
        text = table.to_csv(index=False)
    with pytest.raises(DataError) as caught:
        opened(root, text, f"l.{suffix}")
    assert f"hold several labels in 'label' (first: {cells[0]!r} of 1.jpg), and one per" in str(
        caught.value
    )
    merge = tuple(f"{cell}=both" for cell in cells if cell == cells[0] or ", " in cell)
    renamed = opened(root, text, f"l.{suffix}", merge=merge)
    assert "both" in renamed.class_names


def test_lists_of_json_lines_and_parquet_are_several_labels_or_the_one_they_hold(
    tmp_path: Path,
) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg")
    several = '{"path": "1.jpg", "label": ["cat", "dog"]}\n{"path": "2.jpg", "label": ["dog"]}\n'
    with pytest.raises(DataError, match=r"1 of 2 rows hold several labels in 'label' \(first: "):
        opened(root, several, "l.jsonl")
    one = several.replace('"cat", ', "").replace('["dog"]', '["cat"]', 1)
    assert opened(root, one, "l.jsonl").images["label"].tolist() == ["cat", "dog"]
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"path": ["1.jpg", "2.jpg"], "label": [["cat", "dog"], ["dog"]]})
    table.to_parquet(tmp_path / "l.parquet")
    with pytest.raises(DataError, match="1 of 2 rows hold several labels"):
        open_dataset(root, labels=tmp_path / "l.parquet")


@pytest.mark.parametrize("cell", ["new, old", "ä;ö", 'a "b", c', "golden retriever", "n/a", "A&E"])
def test_a_class_name_of_several_words_stays_one_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cell: str
) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg", "3.jpg")
    text = pd.DataFrame({"path": [1, 2, 3], "label": [cell, "q", cell]}).to_csv(index=False)
    with caplog.at_level(logging.INFO, "hubretrain"):
        assert cell in opened(root, text).class_names
    assert ("is taken for one class, not for several" in caplog.text) == (
        "," in cell or ";" in cell
    )


@pytest.mark.parametrize("cell", ["cat, dog", "cat;dog", "Korea, Republic of"])
def test_a_label_with_a_comma_that_one_row_has_is_asked_about(tmp_path: Path, cell: str) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg", "3.jpg")
    text = pd.DataFrame({"path": [1, 2, 3], "label": ["q", cell, "q"]}).to_csv(index=False)
    with pytest.raises(DataError) as caught:
        opened(root, text)
    assert f"1 of 3 rows hold several labels in 'label' (first: {cell!r} of 2.jpg)" in str(
        caught.value
    )
    assert opened(root, text, merge=(f"{cell}=one",)).class_names == ("one", "q")


FLAGS = "image,MEL,NV,UNK\n1,1.0,0.0,0.0\n2,0.0,1.0,0.0\n3,0.0,1.0,0.0\n"


def test_one_hot_columns_are_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg", "3.jpg")
    with caplog.at_level(logging.INFO, "hubretrain"):
        assert opened(root, FLAGS).images["label"].tolist() == ["MEL", "NV", "NV"]
    assert "the class is the one of these that is 1: MEL, NV, UNK" in caplog.text
    ones = FLAGS.replace("1.0", "1").replace("0.0", "0")
    assert opened(root, ones).images["label"].tolist() == ["MEL", "NV", "NV"]
    assert opened(root, ones, "l.parquet.csv").class_names == ("MEL", "NV")


def test_a_one_hot_row_of_zeros_or_of_two_ones_is_named(tmp_path: Path) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg", "3.jpg")
    zeros = FLAGS.replace("2,0.0,1.0,0.0", "2,0.0,0.0,0.0")
    with pytest.raises(DataError, match=r"1 rows have an empty 'MEL, NV, UNK' \(first: 2.jpg\)"):
        opened(root, zeros)
    assert len(opened(root, zeros, skip_unlabelled=True).images) == 2
    twice = FLAGS.replace("2,0.0,1.0,0.0", "2,1.0,1.0,0.0")
    with pytest.raises(
        DataError, match=r"1 of 3 rows hold several labels in .* \(first: 'MEL \| NV"
    ):
        opened(root, twice)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_that_look_like_something_else_stay_text(tmp_path: Path, suffix: str) -> None:
    root = write_pixels(tmp_path / "d", *(f"{i}.jpg" for i in range(6)))
    labels = ["NA", "1", "True", "null", "None", "1.0"]
    table = pd.DataFrame({"path": range(6), "label": labels}).astype(str)
    text = (
        table.to_csv(index=False)
        if suffix == "csv"
        else table.to_json(orient="records", lines=True)
    )
    assert opened(root, text, f"l.{suffix}").images["label"].tolist() == labels


@pytest.mark.parametrize(
    ("text", "labels", "told"),
    [
        ("image_id,file,label\n3,1.jpg,a\n1,2.jpg,b\n2,3.jpg,c\n", ["a", "b", "c"], ""),
        ("id,datei,label\n93,1.jpg,a\n91,2.jpg,b\n92,3.jpg,c\n", ["a", "b", "c"], "'datei' names"),
        (
            "image,target,diagnosis\n1,0,a\n2,1,b\n3,1,c\n",
            ["a", "b", "c"],
            "column 'diagnosis' is the label, not target",
        ),
        (
            "image,label,lesion_id,Patient\n1,a,x,y\n2,b,x,y\n3,c,x,y\n",
            ["a", "b", "c"],
            "column 'Patient' is the group, not lesion_id",
        ),
    ],
)
def test_of_several_columns_with_usual_names_the_one_that_fits_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, labels: list[str], told: str
) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg", "3.jpg")
    with caplog.at_level(logging.INFO, "hubretrain"):
        assert opened(root, text).images["label"].tolist() == labels
    assert told in caplog.text
    assert bool(caplog.text) == bool(told)


def test_a_json_list_of_records_is_a_table_and_another_json_is_none(tmp_path: Path) -> None:
    root = write_pixels(tmp_path / "d", "1.jpg", "2.jpg")
    text = '[{"image": "1.jpg", "label": 1}, {"image": "2.jpg", "label": true}]'
    assert opened(root, text, "l.json").images["label"].tolist() == ["1", "True"]
    with pytest.raises(DataError, match=r"l.json cannot be read as a table: it is no list of rec"):
        opened(root, '{"1.jpg": "a"}', "l.json")


@pytest.mark.parametrize("name", ["l.csv", "l.jsonl", "l.parquet"])
def test_a_table_that_would_fill_the_memory_is_refused_by_its_size(
    tmp_path: Path, name: str
) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(50 * 2**30)  # a file with a hole: it takes no space
    sentence = r"it has 53,687,091,200 bytes; at most 1,073,741,824 are read; expected a header"
    with pytest.raises(DataError, match=sentence):
        read_table(tmp_path / name)
