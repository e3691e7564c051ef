"""What the check of a data set says where images have several labels."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from hubretrain.cli import main
from hubretrain.data import SplitOptions
from hubretrain.data.check import DataCheck, check_dataset, refuse_small_classes
from hubretrain.data.dataset import ImageDataset, open_dataset
from hubretrain.data.findings import findings_of
from hubretrain.data.options import TableOptions
from hubretrain.data.summarizing import summarize_labels
from hubretrain.data.summary import LabelPair, Spread
from hubretrain.errors import SplitError
from tests.messy import sentences
from tests.samples import encoded

OPTIONS = SplitOptions(n_folds=2)
N_IMAGES = 40
NAMES = ("a", "one", "part", "rare", "same")


def labels_of(i: int) -> str:
    """`one` and `same` together, `part` within `a`, `rare` on four, one image in eight without."""
    names = {"a": i % 8 < 3, "part": i % 8 < 2, "one": i % 2 and i % 8 < 7, "rare": i < 4}
    names["same"] = names["one"]
    return "|".join(name for name, has in names.items() if has)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Noise with labels of a table; two images are the same, with other labels."""
    place = tmp_path_factory.mktemp("labels")
    random = np.random.default_rng(0)
    (place / "d").mkdir()
    for i in range(N_IMAGES):
        pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
        (place / "d" / f"{i:02d}.png").write_bytes(encoded(pixels))
    (place / "d" / "39.png").write_bytes((place / "d" / "37.png").read_bytes())
    table = pd.DataFrame({"path": [f"{i:02d}.png" for i in range(N_IMAGES)]})
    table["labels"] = [labels_of(i) for i in range(N_IMAGES)]
    table["split"] = ["test" if i >= 32 else "" for i in range(N_IMAGES)]
    table.to_csv(place / "l.csv", index=False)
    return open_dataset(place / "d", labels=place / "l.csv", table=TableOptions(multi_label=True))


@pytest.fixture(scope="module")
def checked(dataset: ImageDataset) -> DataCheck:
    return check_dataset(dataset, OPTIONS, cache=dataset.root.parent / "cache")


def test_labels_are_counted_as_pandas_counts_them(checked: DataCheck) -> None:
    sets = [labels_of(i).split("|") for i in range(N_IMAGES)]
    flags = pd.DataFrame([{name: name in names for name in NAMES} for names in sets])
    summary = checked.summary
    assert summary.n_classes == 5
    for of_class in summary.classes:
        assert of_class.n_images == flags[of_class.name].sum()
        assert of_class.share == pytest.approx(flags[of_class.name].mean())
        assert len(checked.images_of(of_class.name)) == flags[of_class.name].sum()
    assert summary.labels is not None
    assert summary.labels.n_without == (flags.sum(axis=1) == 0).sum() > 0
    assert summary.labels.per_image == Spread(0, 2, 5)
    assert summary.labels.n_sets == len(flags.drop_duplicates())
    for pair in summary.labels.pairs:
        assert pair.n_images == (flags[pair.labels[0]] & flags[pair.labels[1]]).sum() > 0
    assert summary.labels.pairs[0] == LabelPair(("one", "same"), 15)
    assert summary.given_splits is not None
    assert summary.given_splits.counts["test"] == flags[32:].sum().to_dict()
    assert summary.given_splits.missing == (("test", "rare"),)


def test_labels_that_go_together_are_found_where_it_is_hardly_chance(checked: DataCheck) -> None:
    assert checked.summary.labels is not None
    assert checked.summary.labels.equal == (("one", "same"),)
    assert checked.summary.labels.implied == (("part", "a"),)
    table = pd.DataFrame({"label": ["a|b|c|d"] * 12 + ["d"] * 9 + [""] * 60, "unreadable": ""})
    labels = summarize_labels(table, ("a", "b", "c", "d"))
    assert labels.equal == (("a", "b", "c"),)
    assert labels.implied == (("a", "d"), ("b", "d"), ("c", "d"))
    by_chance = pd.DataFrame({"label": ["a|b"] * 2 + ["b"] * 4 + [""] * 4, "unreadable": ""})
    assert summarize_labels(by_chance, ("a", "b")).implied == ()


def test_the_findings_name_what_is_wrong_with_labels(checked: DataCheck) -> None:
    wrong, notes = ("\n".join(sentences(checked, level)) for level in ("wrong", "note"))
    assert "Labels one, same are on the same images." in wrong
    assert "different labels: 1 (first: 37.png (one|same) and 39.png (no label))." in wrong
    assert "The given test split has no image of class 'rare'." in wrong
    assert "Every image with 'part' has 'a', too." in notes
    assert "Images without any label: 1" in notes
    assert "Labels with fewer than 20 groups of images: 5 (rare (4), part (10), a (" in notes


def test_a_label_that_is_never_trained_on_is_told(checked: DataCheck) -> None:
    given = checked.summary.given_splits
    assert given is not None
    given = replace(given, missing=(("train", "rare"), ("test", "a")))
    findings = findings_of(replace(checked.summary, given_splits=given))
    (finding,) = (f for f in findings if "has no image of class" in f.what)
    assert finding.what == "The given train split has no image of class 'rare', and 1 more."
    assert finding.advice == "No head can learn it; give it images there, or use `exclude_class`."


def test_the_record_and_the_page_show_the_labels(checked: DataCheck, dataset: ImageDataset) -> None:
    record = json.loads(json.dumps(checked.to_json()))
    assert record["labels"]["pairs"][0] == {"labels": ["one", "same"], "n_images": 15}
    words = ["data", "check", str(dataset.root), "--labels", f"{dataset.root.parent}/l.csv"]
    words += ["--multi-label", "--folds", "2", "--run", f"{dataset.root.parent}/run"]
    words += ["--cache", f"{dataset.root.parent}/cache"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "40 images" in text
    assert "5 labels, 40 groups (none given)" in text
    assert "0 to 5 labels per image" in text
    assert "together most often: one + same (15)" in text
    page = (dataset.root.parent / "run" / "data_check.html").read_text(encoding="utf-8")
    assert "<h2>Labels of one image</h2>" in page
    assert "<h3>rare</h3>" in page


def test_split_counts_each_label_in_each_part(dataset: ImageDataset) -> None:
    place = dataset.root.parent
    words = ["data", "split", str(dataset.root), "--labels", str(place / "l.csv"), "--multi-label"]
    words += ["--folds", "2", "--run", str(place / "split"), "--cache", str(place / "cache")]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert sum(counts["a"] for counts in summary["counts"].values()) == 15
    result = CliRunner().invoke(main, words)
    rows = [line.split() for line in result.stdout.splitlines()]
    (images,) = (row for row in rows if row[:2] == ["all", "images"])
    assert sum(map(int, images[2:])) == N_IMAGES


def test_small_labels_are_refused_before_anything_is_cached(dataset: ImageDataset) -> None:
    refuse_small_classes(dataset, 2, dataset.root.parent / "cache")
    with pytest.raises(SplitError, match=r"Label 'rare' has 4 groups of images, too few for 5"):
        refuse_small_classes(dataset, 5, dataset.root.parent / "cache")
