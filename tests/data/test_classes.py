from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest

from hubretrain.data.dataset import open_dataset, reopen_dataset
from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError
from tests.samples import PIXEL


def folders(root: Path, **n_images: int) -> Path:
    for name, n in n_images.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            (root / name / f"{i}.png").write_bytes(PIXEL)
    return root


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, {"a": 5, "b": 3, "c": 2, "d": 1}),
        ({"exclude_class": ("a", "d")}, {"b": 3, "c": 2}),
        ({"merge": ("c,d=rare",)}, {"a": 5, "b": 3, "rare": 3}),
        ({"merge": ("a=A", "c, d = b")}, {"A": 5, "b": 6}),
        ({"merge": ("a=b", "b=a")}, {"b": 5, "a": 3, "c": 2, "d": 1}),
        ({"drop_small_classes": 3}, {"a": 5, "b": 3}),
        ({"merge": ("c,d=rare",), "drop_small_classes": 3}, {"a": 5, "b": 3, "rare": 3}),
        ({"exclude_class": ("a",), "merge": ("a,b=b",)}, {"b": 3, "c": 2, "d": 1}),
    ],
)
def test_classes_are_left_out_merged_and_renamed_and_the_record_repeats_it(
    tmp_path: Path, options: dict[str, object], counts: dict[str, int]
) -> None:
    root = folders(tmp_path / "d", a=5, b=3, c=2, d=1)
    data = open_dataset(root, table=TableOptions(**options))
    assert data.images["label"].value_counts().to_dict() == counts
    again = reopen_dataset(root, data.opened_with)
    pd.testing.assert_frame_equal(again.images, data.images)
    assert again.opened_with == data.opened_with


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"exclude_class": ("x",)},
            "`exclude_class` names 'x', which is no class; the classes are: a",
        ),
        ({"merge": ("a,x=b",)}, "`merge` names 'x', which is no class; the classes are: a, b, c"),
        ({"merge": ("a",)}, "`merge` is 'a'; expected old names, = and the new one, as in a,b=c"),
        (
            {"exclude_class": ("a", "b")},
            "`drop_small_classes` leave 1 of 3 classes; expected at lea",
        ),
        ({"drop_small_classes": 2}, "`drop_small_classes` leave 0 of 3 classes; expected at least"),
        ({"merge": ("a=",)}, "`merge` is 'a='; expected old names, = and the new one"),
    ],
)
def test_an_option_that_names_no_class_is_refused(
    tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    root = folders(tmp_path / "d", a=1, b=1, c=1)
    with pytest.raises(DataError, match=sentence):
        open_dataset(root, table=TableOptions(**options))


def test_small_classes_are_counted_in_groups_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folders(tmp_path / "d", a=4, b=4, c=4)
    rows = [(f"{c}/{i}.png", c, f"{c}{i // 2 if c == 'c' else i}") for c in "abc" for i in range(4)]
    table = pd.DataFrame(rows, columns=["path", "label", "group"])
    table.to_csv(tmp_path / "l.csv", index=False)
    with caplog.at_level(logging.INFO, "hubretrain"):
        data = open_dataset(
            root, labels=tmp_path / "l.csv", table=TableOptions(drop_small_classes=3)
        )
    assert data.class_names == ("a", "b")
    assert "Classes with fewer than 3 groups are left out: c (2)." in caplog.text


def test_a_class_with_a_comma_in_its_name_can_be_renamed(tmp_path: Path) -> None:
    root = folders(tmp_path / "d", **{"a, b": 1, "c": 1})
    data = open_dataset(root, table=TableOptions(merge=("a, b=ab",)))
    assert data.class_names == ("ab", "c")


def test_of_many_small_classes_some_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folders(tmp_path / "d", **{f"c{i}": 1 for i in range(30)}, many=3, more=3)
    with caplog.at_level(logging.INFO, "hubretrain"):
        open_dataset(root, table=TableOptions(drop_small_classes=2))
    assert "c0 (1), c1 (1), c10 (1)," in caplog.text
    assert " and 10 more." in caplog.text
