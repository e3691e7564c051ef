from __future__ import annotations

import json
import os
from dataclasses import fields
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hubretrain.data import SplitOptions
from hubretrain.data.check import DataCheck, check_dataset, refuse_small_classes
from hubretrain.data.dataset import open_dataset
from hubretrain.data.findings import Finding
from hubretrain.data.quarantine import Quarantine
from hubretrain.data.summary import Spread
from hubretrain.errors import SplitError
from tests.messy import SCRIPT, photograph, recompressed, sentences
from tests.samples import web_server, write_digits


def test_counts_are_what_pandas_counts(messy: tuple[DataCheck, Path]) -> None:
    checked, place = messy
    table = pd.read_csv(place / "labels.csv")
    table["n_bytes"] = [os.stat(place / "data" / path).st_size for path in table["path"]]
    summary = checked.summary
    assert summary.n_images == len(table)
    assert summary.n_bytes == table["n_bytes"].sum()
    of = {of_class.name: of_class for of_class in summary.classes}
    for name, rows in table.groupby("label"):
        assert of[name].n_images == len(rows)
        assert of[name].n_bytes == rows["n_bytes"].sum()
        assert of[name].share == pytest.approx(len(rows) / len(table), abs=1e-6)
    assert of["temple"].n_unreadable == 2
    assert summary.sizes.formats == {"JPEG": 26, "PNG": 3}
    assert summary.sizes.modes == {"RGB": 28, "L": 1}
    assert summary.sizes.width == Spread(9, 240, 240)
    assert summary.sizes.small == ("tiny.png",)
    assert summary.sizes.other_format_than_named == ("named.jpg",)
    split = pd.crosstab(table["split"], table["label"])
    assert summary.given_splits is not None
    counts = summary.given_splits.counts
    assert counts["test"][SCRIPT] == split.loc["test", SCRIPT]
    assert counts["train"]["temple"] == split.loc["train", "temple"] - 2  # two cannot be decoded


def test_unreadable_images_are_listed_with_the_reason_that_cache_gives(
    messy: tuple[DataCheck, Path],
) -> None:
    reasons = {image.path: image.reason for image in messy[0].summary.unreadable}
    assert reasons["empty.jpg"] == "an empty file"
    assert reasons["cut.jpg"].startswith("a damaged image (image file is truncated")
    assert set(reasons) == {"empty.jpg", "cut.jpg"}


def test_copies_and_copies_under_different_classes_are_found(messy: tuple[DataCheck, Path]) -> None:
    duplicates = messy[0].summary.duplicates
    (exact,) = duplicates.exact
    assert exact.paths == ("same.jpg", "temple0.jpg")
    assert exact.labels == (SCRIPT, "temple")
    assert not exact.one_group
    assert duplicates.conflicting == (exact,)
    near = {frozenset(pair.paths) for pair in duplicates.near}
    assert frozenset(("near.jpg", "flower2.jpg")) in near


def test_the_json_holds_the_findings_and_the_summary(
    messy: tuple[DataCheck, Path], tmp_path: Path
) -> None:
    checked, _ = messy
    checked.write(tmp_path / "data_check.json")
    record = json.loads((tmp_path / "data_check.json").read_text(encoding="utf-8"))
    assert [Finding(**finding) for finding in record.pop("findings")] == list(checked.findings)
    assert record == json.loads(json.dumps(checked.summary.to_json()))
    assert set(record) == {field.name for field in fields(checked.summary)} - {"labels"}
    assert set(record["folds"]) == {"n_folds", "test_fraction", "error"}


def test_a_second_check_seeks_nothing_again_and_says_the_same(
    messy: tuple[DataCheck, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checked, place = messy
    dataset = open_dataset(place / "data", labels=place / "labels.csv")
    again = check_dataset(dataset, SplitOptions(n_folds=2), cache=place / "cache")
    assert again.summary == checked.summary
    assert "looking at images" not in capsys.readouterr().err


def test_a_class_without_a_readable_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "void"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(6):
            data = b"broken %d" % i if name == "void" else rng.bytes(10)
            (tmp_path / "d" / name / f"{i}.png").write_bytes(data)
    checked = check_dataset(open_dataset(tmp_path / "d"), cache=tmp_path / "cache")
    assert sentences(checked, "error") == ["Class 'a' has no image that can be decoded."]
    assert checked.summary.imbalance.ratio is None


def empty_files(place: Path, n: int) -> DataCheck:
    for name in ("a", "b"):
        (place / "d" / name).mkdir(parents=True)
    for i in range(n):
        os.close(os.open(place / "d" / "ab"[i % 2] / f"{i}.jpg", os.O_CREAT | os.O_WRONLY))
    return check_dataset(open_dataset(place / "d"), cache=place / "cache")


def test_thousands_of_empty_files_are_one_finding(tmp_path: Path) -> None:
    checked = empty_files(tmp_path, 3000)
    assert sentences(checked, "wrong") == [
        "3,000 images cannot be decoded (first: a/0.jpg: an empty file)."
    ]
    assert checked.summary.duplicates.conflicting == ()


@pytest.mark.slow
def test_100_000_empty_files_are_one_finding(tmp_path: Path) -> None:
    checked = empty_files(tmp_path, 100_000)
    assert len(sentences(checked, "wrong")) == 1
    assert checked.summary.classes[0].n_unreadable == 50_000


def test_ham10000_is_found_as_published(real_data: Path, tmp_path: Path) -> None:
    """The traps of a few of its lesions: lesions with several images, and its exact duplicates."""
    from hubretrain.data.summarizing import summarize_classes, summarize_groups

    dataset = open_dataset(real_data / "ham10000")
    table = dataset.images.assign(n_bytes=1, unreadable="", cluster=dataset.images["group"])
    metadata = pd.read_csv(real_data / "ham10000" / "HAM10000_metadata.csv")
    of = {of_class.name: of_class for of_class in summarize_classes(table, dataset.class_names)}
    lesions = metadata.groupby("dx")["lesion_id"].nunique()
    for name, n in metadata["dx"].value_counts().items():
        assert (of[name].n_images, of[name].n_groups) == (n, lesions[name])
    assert of["mel"].random_split_leak > 0.6
    groups = summarize_groups(table, grouped=True)
    sizes = metadata["lesion_id"].value_counts()
    assert groups.n_groups == len(sizes)
    assert groups.n_with_several_images == (sizes > 1).sum()
    assert groups.largest[0].n_images == sizes.max()
    assert groups.mixed_classes == ()


def test_images_at_urls_that_a_table_names_are_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("HUBRETRAIN_PRIVATE_ADDRESSES", "127.0.0.1")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(16):
        data = photograph(i % 2, 40 * (i // 2)) if i < 15 else b"broken"
        (images / f"{i}.jpg").write_bytes(data)
    (images / "again.jpg").write_bytes(recompressed(photograph(0, 0)))
    (tmp_path / "d").mkdir()
    with web_server(images, SimpleHTTPRequestHandler) as url:
        rows = [(f"{url}/{i}.jpg", "ab"[i % 2]) for i in range(16)] + [(f"{url}/again.jpg", "a")]
        pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "l.csv", index=False)
        dataset = open_dataset(tmp_path / "d", labels=tmp_path / "l.csv")
        checked = check_dataset(dataset, cache=tmp_path / "cache")
    assert checked.summary.n_images == 17
    assert [image.path for image in checked.summary.unreadable] == [f"{url}/15.jpg"]
    near = [set(pair.paths) for pair in checked.summary.duplicates.near]
    assert {f"{url}/0.jpg", f"{url}/again.jpg"} in near


def test_classes_are_counted_again_after_an_image_was_quarantined(tmp_path: Path) -> None:
    """As a second `hubretrain cache` of a small data set does."""
    write_digits(tmp_path / "digits", 60)
    (tmp_path / "digits" / "0" / "broken.png").write_bytes(b"no image")
    dataset, cache = open_dataset(tmp_path / "digits"), tmp_path / "cache"
    quarantine = Quarantine(dataset.cache_folder(cache))
    (broken,) = dataset.images.index[dataset.images["path"] == "0/broken.png"]
    quarantine.add(dataset.digests(cache)[broken], "0/broken.png", "no image")
    quarantine.save()
    refuse_small_classes(dataset, 5, cache)
    with pytest.raises(SplitError, match="20"):
        refuse_small_classes(dataset, 20, cache)
