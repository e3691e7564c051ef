"""Several labels per image: every way to write them is read, or refused in one sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hubretrain.data import targets
from hubretrain.data.dataset import ImageDataset, open_dataset, reopen_dataset
from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError
from tests.samples import write_pixels

PETS = [{"cat"}, {"cat", "dog"}, set(), {"dog", "owl"}]
HEADER = ["path", "label"]
AS_CELLS = ["cat", "dog|cat", "", "owl|dog"]


def opened(tmp_path: Path, rows: list[list[str]], header: list[str], **options: object):
    root = write_pixels(tmp_path / "d", *{row[0] for row in rows})
    pd.DataFrame(rows, columns=header).to_csv(tmp_path / "l.csv", index=False)
    return open_dataset(root, labels=tmp_path / "l.csv", table=TableOptions(**options))


def label_sets(data: ImageDataset) -> list[set[str]]:
    indicators = targets(data.images["label"], data.class_names, data.multi_label)
    assert indicators.dtype == bool
    return [{data.class_names[c] for c in np.flatnonzero(row)} for row in indicators]


def in_cells(write) -> tuple[list[list[str]], list[str]]:
    return [[f"{i}.png", write(sorted(pets))] for i, pets in enumerate(PETS)], HEADER


def in_flags(one: str, zero: str) -> tuple[list[list[str]], list[str]]:
    names = ["cat", "dog", "owl"]
    rows = [
        [f"{i}.png", *(one if name in pets else zero for name in names)]
        for i, pets in enumerate(PETS)
    ]
    return rows, ["image", *names]


WAYS = {
    "bars": (in_cells("|".join), {}),
    "semicolons and blanks": (in_cells(" ; ".join), {}),
    "commas": (in_cells(",".join), {}),
    "a named separator": (in_cells(" / ".join), {"label_separator": "/"}),
    "words": (in_cells(" ".join), {"label_separator": " "}),
    "JSON": (in_cells(json.dumps), {}),
    "lists of Python": (in_cells(str), {}),
    "lists of NumPy": (in_cells(lambda pets: str(np.array(pets, object))), {}),
    "lists without quotes": (in_cells(lambda pets: f"[{', '.join(pets)}]"), {}),
    "a row per label": (
        ([[f"{i}.png", pet] for i, pets in enumerate(PETS) for pet in pets or [""]], HEADER),
        {},
    ),
    "ones and zeros": (in_flags("1", "0"), {}),
    "ISIC's ones": (in_flags("1.0", "0.0"), {}),
    "named flags": (in_flags("true", ""), {"label_column": ("dog", "owl", "cat")}),
}


@pytest.mark.parametrize("way", WAYS)
def test_however_labels_are_written_images_have_the_same(tmp_path: Path, way: str) -> None:
    (rows, header), options = WAYS[way]
    data = opened(tmp_path, rows, header, multi_label=True, **options)
    assert data.multi_label
    assert data.class_names == ("cat", "dog", "owl")
    assert label_sets(data) == PETS
    assert data.images["label"].tolist() == ["cat", "cat|dog", "", "dog|owl"]
    again = reopen_dataset(data.root, json.loads(json.dumps(data.opened_with)))
    assert again.multi_label
    pd.testing.assert_frame_equal(again.images, data.images)
    assert again.opened_with == data.opened_with


def test_a_separator_or_several_columns_decide_without_being_asked(tmp_path: Path) -> None:
    rows, header = in_cells("|".join)
    assert opened(tmp_path, rows, header, label_separator="|").multi_label
    rows, header = in_flags("1", "0")
    assert opened(tmp_path, rows, header, label_column=["cat", "dog"]).multi_label


def test_labels_of_several_columns_are_named_after_them_and_never_collide(tmp_path: Path) -> None:
    rows = [["0", "nv", "unknown", "0"], ["1", "mel", "back", "1"], ["2", "unknown", "", "1"]]
    data = opened(
        tmp_path,
        [[f"{row[0]}.png", *row[1:]] for row in rows],
        ["path", "dx", "site", "smoker"],
        label_column=("dx", "site", "smoker"),
    )
    assert data.images["label"].tolist() == [
        "dx:nv|site:unknown",
        "dx:mel|site:back|smoker",
        "dx:unknown|smoker",
    ]


@pytest.mark.parametrize("way", ["bars", "JSON", "a row per label", "ones and zeros", "commas"])
def test_who_has_not_decided_is_asked_and_one_class_per_cell_is_an_answer(
    tmp_path: Path, way: str
) -> None:
    (rows, header), options = WAYS[way]
    rows = [row for row in rows if any(row[1:]) and set(row[1:]) != {"0"} and row[1] != "[]"]
    with pytest.raises(DataError, match="`multi_label`") as caught:
        opened(tmp_path, rows, header, **options)
    assert "\n" not in str(caught.value)
    if way == "a row per label":
        return
    single = opened(tmp_path, rows, header, multi_label=False)
    assert not single.multi_label
    assert len(single.class_names) == 3
    again = reopen_dataset(single.root, single.opened_with)
    pd.testing.assert_frame_equal(again.images, single.images)


def test_nothing_is_recorded_of_a_data_set_with_one_label_per_image(tmp_path: Path) -> None:
    data = opened(tmp_path, [["0.png", "a"], ["1.png", "b"]], HEADER, label_column="label")
    assert not data.multi_label
    assert data.opened_with["label_column"] == "label"
    assert "multi_label" not in data.opened_with
    assert targets(data.images["label"], data.class_names, False).tolist() == [0, 1]


def test_images_without_a_label_stay_unless_they_are_to_be_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, header = in_cells("|".join)
    with caplog.at_level(logging.INFO, "hubretrain"):
        kept = opened(tmp_path, rows, header, multi_label=True)
    assert "1 rows without a label are images without a label" in caplog.text
    assert "'|' separates labels, as in 'cat|dog'" in caplog.text
    options = {"skip_unlabelled": True, "skip_unmatched": True}
    skipped = opened(tmp_path, rows, header, multi_label=True, **options)
    assert (len(kept.images), len(skipped.images)) == (4, 3)


def test_excluded_merged_and_small_labels_leave_their_images(tmp_path: Path) -> None:
    rows, header = in_cells("|".join)
    data = opened(tmp_path, rows, header, multi_label=True, exclude_class=("dog",))
    assert data.images["label"].tolist() == ["cat", "cat", "", "owl"]
    data = opened(tmp_path, rows, header, multi_label=True, merge=("cat,dog=mammal",))
    assert data.images["label"].tolist() == ["mammal", "mammal", "", "mammal|owl"]
    data = opened(tmp_path, rows, header, multi_label=True, drop_small_classes=2)
    assert data.images["label"].tolist() == ["cat", "cat|dog", "", "dog"]
    with pytest.raises(DataError, match="leave 1 of 3 classes; expected at least two"):
        opened(tmp_path, rows, header, multi_label=True, exclude_class=("dog", "owl"))


def test_two_rows_of_an_image_must_agree_on_its_group(tmp_path: Path) -> None:
    rows = [["0.png", "a", "p"], ["0.png", "b", "q"], ["1.png", "b", "q"]]
    with pytest.raises(DataError, match=r"0\.png has two groups \('p' and 'q'\)"):
        opened(tmp_path, rows, [*HEADER, "group"], multi_label=True)


BAD = {
    "a bar within a name": (
        [["0.png", '["a|b"]'], ["1.png", '["c"]']],
        {"multi_label": True},
        r"The label 'a\|b' holds '\|', which joins the labels of an image; rename it, or if it",
    ),
    "a bar within the name of a column's value": (
        [["0.png", "a|b;c"], ["1.png", "c"]],
        {"label_separator": ";"},
        r"l\.csv: The label 'a\|b' holds '\|'",
    ),
    "an escaped bar": (
        [["0.png", r"new\|york"], ["1.png", "cat|dog"]],
        {"multi_label": True},
        r"l\.csv: 'new\\\\\|york' in 'label' holds an escaped or quoted '\|'.*; rename the label",
    ),
    "a quoted comma": (
        [["0.png", '"york, new",cat'], ["1.png", "cat,dog"]],
        {"label_separator": ","},
        r"holds an escaped or quoted ',', which separates labels; write the labels as a JSON list",
    ),
    "a separator that nobody named": (
        [["0.png", "a/b"], ["1.png", "a"], ["2.png", "b"]],
        {"multi_label": True},
        r"'a/b' in 'label' may be several labels; name what separates labels: `label_separator`",
    ),
    "one label only": (
        [["0.png", "a"], ["1.png", ""]],
        {"multi_label": True},
        r"'a' is the only label; expected at least two labels where images may have several",
    ),
    "no label at all": (
        [["0.png", ""], ["1.png", ""]],
        {"multi_label": True},
        r"no image has a label; expected at least two labels",
    ),
    "all labels on every image": (
        [["0.png", "a|b"], ["1.png", "b|a"]],
        {"multi_label": True},
        r"all 2 images have the same 2 labels, such as 'a'; expected labels that some images have",
    ),
    "one class and a separator": (
        [["0.png", "a|b"], ["1.png", "b|a"]],
        {"multi_label": False, "label_separator": "|"},
        r"`multi_label` is False and `label_separator` is '\|', which makes several labels",
    ),
    "one class and two columns": (
        [["0.png", "a"], ["1.png", "b"]],
        {"multi_label": False, "label_column": ("path", "label")},
        r"`multi_label` is False and several `label_column`, which makes several labels",
    ),
    "an empty separator": (
        [["0.png", "a"], ["1.png", "b"]],
        {"label_separator": ""},
        r"`label_separator` is empty; expected a text, such as \|, or none",
    ),
    "a column that there is not": (
        [["0.png", "a"], ["1.png", "b"]],
        {"label_column": ("label", "kind")},
        r"l\.csv has no column 'kind'; its columns are: path, label",
    ),
    "measurements": (
        [[f"{i}.png", f"{i / 64};{i / 64 + 2}"] for i in range(40)],
        {"multi_label": True},
        r"column 'label' has 80 different values for 40 images \(such as '0\.0'\), so it does not",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_labels_that_make_no_sense_get_one_sentence(tmp_path: Path, case: str) -> None:
    rows, options, sentence = BAD[case]
    with pytest.raises(DataError, match=sentence) as caught:
        opened(tmp_path, rows, HEADER, **options)
    assert "\n" not in str(caught.value)


def test_names_with_a_separator_are_kept_in_lists_and_where_none_separates(tmp_path: Path) -> None:
    rows = [["0.png", '["a, b", "c"]'], ["1.png", '["c"]']]
    assert opened(tmp_path, rows, HEADER, multi_label=True).class_names == ("a, b", "c")
    rows = [["0.png", "a, b"], ["1.png", "c"]]
    options = {"multi_label": True, "label_separator": "none"}
    assert opened(tmp_path, rows, HEADER, **options).class_names == ("a, b", "c")


def test_class_folders_may_be_a_multi_label_data_set_with_one_label_each(tmp_path: Path) -> None:
    root = write_pixels(tmp_path / "d", "a/0.png", "b/1.png")
    data = open_dataset(root, table=TableOptions(multi_label=True))
    assert data.multi_label
    assert label_sets(data) == [{"a"}, {"b"}]
    with pytest.raises(DataError, match=r"Images may have several labels; expected `targets`"):
        assert len(data.labels)
    write_pixels(root, "a|b/2.png")
    with pytest.raises(DataError, match=r"The label 'a\|b' holds '\|'"):
        open_dataset(root, table=TableOptions(multi_label=True))


def test_a_label_of_another_data_set_is_named() -> None:
    with pytest.raises(DataError, match=r"'c' is none of the 2 classes, such as 'a'"):
        targets(pd.Series(["a", "b|c"]), ("a", "b"), True)
