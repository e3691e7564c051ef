from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hubretrain.data.check import DataCheck, check_dataset, write_facts
from hubretrain.data.dataset import open_dataset
from hubretrain.data.findings import alike_names
from tests.messy import SCRIPT, photograph, recompressed, write_messy


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataCheck, Path]:
    place = tmp_path_factory.mktemp("messy")
    root = write_messy(place / "data")
    dataset = open_dataset(root, labels=place / "labels.csv")
    checked = check_dataset(dataset, cache=place / "cache", n_folds=2)
    return checked, place


def said(checked: DataCheck, level: str) -> list[str]:
    return [one.what for one in checked.findings if one.level == level]


def test_counts_are_what_pandas_counts(messy: tuple[DataCheck, Path]) -> None:
    checked, place = messy
    table = pd.read_csv(place / "labels.csv")
    table["n_bytes"] = [os.stat(place / "data" / path).st_size for path in table["path"]]
    facts = checked.facts
    assert facts["n_images"] == len(table)
    assert facts["n_bytes"] == table["n_bytes"].sum()
    of = {one["name"]: one for one in facts["classes"]}
    for name, rows in table.groupby("label"):
        assert of[name]["n_images"] == len(rows)
        assert of[name]["n_bytes"] == rows["n_bytes"].sum()
        assert of[name]["share"] == pytest.approx(len(rows) / len(table), abs=1e-6)
    assert of["temple"]["n_unreadable"] == 2
    assert facts["sizes"]["formats"] == {"JPEG": 26, "PNG": 3}
    assert facts["sizes"]["modes"] == {"RGB": 28, "L": 1}
    assert facts["sizes"]["width"] == {"least": 9, "median": 240, "most": 240}
    assert facts["sizes"]["small"] == ["tiny.png"]
    assert facts["sizes"]["other_format_than_named"] == ["named.jpg"]
    split = pd.crosstab(table["split"], table["label"])
    counts = facts["given_splits"]["counts"]
    assert counts["test"][SCRIPT] == split.loc["test", SCRIPT]
    assert counts["train"]["temple"] == split.loc["train", "temple"] - 2  # two cannot be decoded


def test_unreadable_images_are_listed_with_the_reason_that_cache_gives(
    messy: tuple[DataCheck, Path],
) -> None:
    reasons = {one["path"]: one["reason"] for one in messy[0].facts["unreadable"]}
    assert reasons["empty.jpg"] == "an empty file"
    assert reasons["cut.jpg"].startswith("a damaged image (image file is truncated")
    assert set(reasons) == {"empty.jpg", "cut.jpg"}


def test_copies_and_copies_under_different_classes_are_found(messy: tuple[DataCheck, Path]) -> None:
    duplicates = messy[0].facts["duplicates"]
    (exact,) = duplicates["exact"]
    assert exact["paths"] == ["same.jpg", "temple0.jpg"]
    assert exact["labels"] == [SCRIPT, "temple"]
    assert not exact["one_group"]
    assert duplicates["conflicting"] == [exact]
    near = {frozenset(one["paths"]) for one in duplicates["near"]}
    assert frozenset(("near.jpg", "flower2.jpg")) in near


def test_everything_that_is_wrong_is_said(messy: tuple[DataCheck, Path]) -> None:
    checked, _ = messy
    (error,) = said(checked, "error")
    assert error == "Class 'Temple!' has 1 group of images, too few for 2 folds."
    wrong = "\n".join(said(checked, "wrong"))
    assert "2 images cannot be decoded (first: cut.jpg: a damaged image" in wrong
    assert f"under different classes: 1 (first: same.jpg ({SCRIPT}) and temple0.jpg (temp" in wrong
    assert "The given split leaks 1 image of validation and test: 0 by group, 0 by copies" in wrong
    assert "(first: flower2.jpg (test), near.jpg (train))" in wrong.replace(
        "near.jpg (train), flower2.jpg (test)", "flower2.jpg (test), near.jpg (train)"
    )
    assert "The given test split has no image of class 'Temple!'." in wrong
    assert "Classes 'Temple!' and 'temple' differ only in case, punctuation or spaces." in wrong
    notes = "\n".join(said(checked, "note"))
    assert "less than 32 pixels wide or high: 1 (first: tiny.png)" in notes
    assert "another format than their names say: 1 (first: named.jpg)" in notes
    assert "not RGB: 1 (1 L)" in notes
    assert "A random 80/20 split would leak" in notes
    assert "Groups that hold several classes: 0" not in notes


def test_the_json_holds_the_same_facts(messy: tuple[DataCheck, Path], tmp_path: Path) -> None:
    checked, _ = messy
    write_facts(checked, tmp_path / "data_check.json")
    again = json.loads((tmp_path / "data_check.json").read_text(encoding="utf-8"))
    assert [one["what"] for one in again.pop("findings")] == [o.what for o in checked.findings]
    assert again == checked.facts


def test_a_second_check_seeks_nothing_again_and_says_the_same(
    messy: tuple[DataCheck, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checked, place = messy
    dataset = open_dataset(place / "data", labels=place / "labels.csv")
    again = check_dataset(dataset, cache=place / "cache", n_folds=2)
    assert again.facts == checked.facts
    assert "looking at images" not in capsys.readouterr().err


def test_a_class_without_a_readable_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "void"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(6):
            data = b"broken %d" % i if name == "void" else rng.bytes(10)
            (tmp_path / "d" / name / f"{i}.png").write_bytes(data)
    checked = check_dataset(open_dataset(tmp_path / "d"), cache=tmp_path / "cache")
    assert said(checked, "error") == ["Class 'a' has no image that can be decoded."]
    assert checked.facts["imbalance"]["ratio"] is None


@pytest.mark.parametrize(
    "names", [["A-1", "a_1"], ["cat", "Cat", "CAT "], ["caf\u00e9", "cafe\u0301"], ["x y", "xy"]]
)
def test_names_that_only_look_different_are_alike(names: list[str]) -> None:
    assert alike_names([*names, "dog", "-", "+"]) == [names]


def test_names_with_different_letters_accents_or_digits_are_not_alike() -> None:
    assert alike_names(["cat", "cats", "cafe", "caf\u00e9", "1", "11", "-", "+", "??"]) == []


def empty_files(place: Path, n: int) -> DataCheck:
    for name in ("a", "b"):
        (place / "d" / name).mkdir(parents=True)
    for i in range(n):
        os.close(os.open(place / "d" / "ab"[i % 2] / f"{i}.jpg", os.O_CREAT | os.O_WRONLY))
    return check_dataset(open_dataset(place / "d"), cache=place / "cache")


def test_thousands_of_empty_files_are_one_finding(tmp_path: Path) -> None:
    checked = empty_files(tmp_path, 3000)
    assert said(checked, "wrong") == [
        "3,000 images cannot be decoded (first: a/0.jpg: an empty file)."
    ]
    assert checked.facts["duplicates"]["conflicting"] == []


@pytest.mark.slow
def test_100_000_empty_files_are_one_finding(tmp_path: Path) -> None:
    checked = empty_files(tmp_path, 100_000)
    assert len(said(checked, "wrong")) == 1
    assert checked.facts["classes"][0]["n_unreadable"] == 50_000


def test_ham10000_is_found_as_published(real_data: Path, tmp_path: Path) -> None:
    """The traps of a few of its lesions: lesions with several images, and its exact duplicates."""
    from hubretrain.data.summary import class_facts, group_facts

    dataset = open_dataset(real_data / "ham10000")
    table = dataset.images.assign(n_bytes=1, unreadable="", cluster=dataset.images["group"])
    metadata = pd.read_csv(real_data / "ham10000" / "HAM10000_metadata.csv")
    of = {one["name"]: one for one in class_facts(table, dataset.class_names)}
    lesions = metadata.groupby("dx")["lesion_id"].nunique()
    for name, n in metadata["dx"].value_counts().items():
        assert (of[name]["n_images"], of[name]["n_groups"]) == (n, lesions[name])
    assert of["mel"]["random_split_leak"] > 0.6
    groups = group_facts(table, grouped=True)
    sizes = metadata["lesion_id"].value_counts()
    assert groups["n_groups"] == len(sizes)
    assert groups["n_with_several_images"] == (sizes > 1).sum()
    assert groups["largest"][0]["n_images"] == sizes.max()
    assert groups["mixed_classes"] == []


def test_images_at_urls_that_a_table_names_are_checked_too(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    rows = []
    for i in range(16):
        name = f"memory://check/{i}.jpg"
        data = photograph(i % 2, 40 * (i // 2)) if i < 15 else b"broken"
        files.pipe_file(f"/check/{i}.jpg", data)
        rows.append((name, "ab"[i % 2]))
    files.pipe_file("/check/again.jpg", recompressed(photograph(0, 0)))
    rows.append(("memory://check/again.jpg", "a"))
    (tmp_path / "d").mkdir()
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "l.csv", index=False)
    dataset = open_dataset(tmp_path / "d", labels=tmp_path / "l.csv")
    checked = check_dataset(dataset, cache=tmp_path / "cache")
    assert checked.facts["n_images"] == 17
    assert [one["path"] for one in checked.facts["unreadable"]] == ["memory://check/15.jpg"]
    near = [set(one["paths"]) for one in checked.facts["duplicates"]["near"]]
    assert {"memory://check/0.jpg", "memory://check/again.jpg"} in near
