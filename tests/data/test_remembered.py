from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from hubretrain.data import digests
from hubretrain.data.check import check_dataset
from hubretrain.data.dataset import open_dataset, reopen_dataset
from hubretrain.data.options import TableOptions
from hubretrain.data.remembered import forget_options, open_as_before, remembered_options
from hubretrain.errors import DataError
from hubretrain.files import read_record, write_record
from tests.samples import PIXEL, encoded, write_digits


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("d/a/1.png", "d/b/2.png", "d/c/3.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(PIXEL)
    (tmp_path / "l.csv").write_text("file,kind,who\n1.png,p,x\n2.png,q,x\n3.png,r,y\n")
    return tmp_path


def test_options_are_given_once_and_another_value_later_is_told(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, cache = place / "d", place / "cache"
    options = TableOptions(label_column="kind", group_column="who", exclude_class=("r",))
    first = open_as_before(root, cache, labels=place / "l.csv", table=options)
    assert read_record(cache / "d" / "dataset.json") == {
        "folder": str(root),
        "labels": str(place / "l.csv"),
        "label_column": "kind",
        "group_column": "who",
        "exclude_class": ["r"],
    }
    with caplog.at_level(logging.INFO, "hubretrain"):
        again = open_as_before(root, cache)
    assert again.opened_with == first.opened_with
    assert again.images.equals(first.images)
    assert "`label_column=kind` `group_column=who` `exclude_class=r`" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "hubretrain"):
        changed = open_as_before(root, cache, table=TableOptions(group_column="none"))
    assert not changed.grouped
    assert changed.class_names == ("p", "q")
    assert "`group_column` is none now, which is remembered; it was who." in caplog.text
    assert remembered_options(root, cache)["group_column"] == "none"
    assert forget_options(root, cache)
    assert not forget_options(root, cache)
    assert open_as_before(root, cache).class_names == ("a", "b", "c")


def test_the_folder_alone_is_written_without_options_and_nothing_where_one_is_refused(
    place: Path,
) -> None:
    cache = place / "cache"
    with pytest.raises(DataError):
        open_as_before(place / "d", cache, table=TableOptions(exclude_class=("x",)))
    assert not cache.exists()
    open_as_before(place / "d", cache)
    assert read_record(cache / "d" / "dataset.json") == {"folder": str(place / "d")}
    assert not forget_options(place / "d", cache)


def test_another_data_set_of_the_same_name_is_refused_and_a_moved_or_copied_one_is_not(
    tmp_path: Path,
) -> None:
    cache, (first, second, copy) = tmp_path / "cache", (tmp_path / name / "d" for name in "abc")
    write_digits(first, 12)
    write_digits(second, 12, (3, 4))
    open_as_before(first, cache, table=TableOptions(exclude_class=("2",)))
    assert open_as_before(second, cache).class_names == ("3", "4")  # nothing is kept of the first
    opened = open_as_before(first, cache, table=TableOptions(exclude_class=("2",)))
    paths = opened.images["path"].tolist()
    stamps = digests._stamps([str(first / path) for path in paths])
    later = time.time_ns() + 10**10  # what has just been written is not kept
    digests._write(cache / "d" / "digests.csv", paths, stamps, ["x"] * len(paths), later)
    with pytest.raises(DataError) as refused:
        open_as_before(second, cache)
    assert str(refused.value) == (
        f"{cache / 'd'}/ holds the data set of {first}, and {second} is another one of the same "
        "name; choose another `cache` for it, and another `run` folder for its results."
    )
    assert not forget_options(second, cache)
    assert remembered_options(first, cache) == {"exclude_class": ["2"]}
    shutil.copytree(first, copy)
    assert open_as_before(copy, cache).class_names == ("0", "1", "2")
    shutil.rmtree(first)
    assert open_as_before(second, cache).class_names == ("3", "4")
    assert read_record(cache / "d" / "dataset.json")["folder"] == str(second)


def test_the_options_of_another_folder_are_not_used(place: Path) -> None:
    (place / "cache" / "d").mkdir(parents=True)
    options = {"folder": "/elsewhere", "exclude_class": ["a"]}
    write_record(place / "cache" / "d" / "dataset.json", options)
    assert open_as_before(place / "d", place / "cache").class_names == ("a", "b", "c")


def test_options_are_not_forgotten_because_their_file_is_damaged(place: Path) -> None:
    file, options = place / "cache" / "d" / "dataset.json", TableOptions(group_column="who")
    open_as_before(place / "d", place / "cache", labels=place / "l.csv", table=options)
    whole = file.read_text()
    for text in ("", "{", "[]", whole.replace("who", "why"), whole[:-20]):
        file.write_text(text)
        with pytest.raises(DataError, match=r"dataset\.json is damaged .*; remove it and give "):
            open_as_before(place / "d", place / "cache")


def test_levels_of_12_bits_in_16_are_noticed_told_and_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    levels = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
    for i in range(8):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(np.roll(levels, i)))
    root, cache = tmp_path / "d", tmp_path / "cache"
    with caplog.at_level(logging.INFO, "hubretrain"):
        dataset = open_as_before(root, cache)
    assert "have levels of 12 bits" in caplog.text
    assert dataset.reading.bits == 12
    assert remembered_options(root, cache) == {"bits": 12}
    assert open_as_before(root, cache).reading.bits == 12
    assert reopen_dataset(root, dataset.opened_with).reading.bits == 12
    given = open_as_before(root, cache, table=TableOptions(bits=16))
    assert given.reading.bits == 16
    assert open_dataset(root).reading.bits == 16  # the library takes its arguments alone
    notes = {f.what: f for f in check_dataset(open_dataset(root), cache=cache).findings}
    (dark,) = (f for what, f in notes.items() if "no level above 4,032" in what)
    assert dark.level == "wrong"
    assert "levels are 15 of 255 at most" in dark.what
    assert "`bits=12`" in dark.advice


def test_a_data_set_stays_multi_label_until_another_answer_is_given(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, cache, labels = place / "d", place / "cache", place / "l.csv"
    labels.write_text("path,kind,site\na/1.png,p|q,x\nb/2.png,q,\nc/3.png,,x\n")
    table = TableOptions(label_column="kind", label_separator="|")
    first = open_as_before(root, cache, labels=labels, table=table)
    assert first.multi_label
    assert read_record(cache / "d" / "dataset.json")["label_separator"] == "|"
    again = open_as_before(root, cache)
    assert again.multi_label
    assert again.images.equals(first.images)
    columns = open_as_before(root, cache, table=TableOptions(label_column=("kind", "site")))
    assert columns.images["label"].tolist() == ["kind:p|kind:q|site:x", "kind:q", "site:x"]
    assert read_record(cache / "d" / "dataset.json")["label_column"] == ["kind", "site"]
    answers = TableOptions(label_column="kind", multi_label=False, skip_unlabelled=True)
    single = open_as_before(root, cache, table=answers)
    assert single.class_names == ("p|q", "q")
    assert "label_separator" not in remembered_options(root, cache)
    with caplog.at_level(logging.INFO, "hubretrain"):
        assert not open_as_before(root, cache).multi_label
    assert "`multi_label=False`" in caplog.text
