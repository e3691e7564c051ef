"""Splits of images with several labels: whole groups, every label in every part, even shares."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubretrain.data.options import SplitOptions
from hubretrain.data.splitting.folds import NEW, TEST, TRAIN, previous_parts, write_folds
from hubretrain.data.splitting.leakage import leaked_images, part_table, worst_deviation
from hubretrain.data.splitting.splits import check_class_sizes, cut_parts, split_images
from hubretrain.errors import SplitError

# One list a group: the labels of each of its images.
LABELS = st.sets(st.sampled_from("abcd"), max_size=4).map(lambda names: "|".join(sorted(names)))
GROUPS = st.lists(st.lists(LABELS, min_size=1, max_size=3), min_size=30, max_size=45)


def table_of(groups: list[list[str]]) -> pd.DataFrame:
    rows = [(label, f"group {g}") for g, labels in enumerate(groups) for label in labels]
    table = pd.DataFrame(rows, columns=["label", "group"])
    return table.assign(path=[f"image_{i}.jpg" for i in range(len(table))])


def indicators(table: pd.DataFrame) -> pd.DataFrame:
    names = table["label"].str.split("|")
    return pd.DataFrame({c: names.map({c}.issubset) for c in sorted({*chain(*names)} - {""})})


def n_groups(table: pd.DataFrame) -> int:
    """The fewest groups with an image with, or with one without, any label."""
    flags = indicators(table).astype(int)
    if flags.empty:
        return 0
    with_label, without = (f.groupby(table["group"]).max().sum() for f in (flags, 1 - flags))
    return int(min(with_label.min(), without.min()))


def split(table: pd.DataFrame, **options: object) -> np.ndarray:
    return split_images(table["label"], table["group"], multi_label=True, **options)


def iterative_stratification(flags: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """The oracle: Sechidis et al. 2011, Algorithm 1; ties are broken at random."""
    random = np.random.default_rng(seed)
    parts = np.full(len(flags), NEW)
    wanted = np.full(n_folds, len(flags) / n_folds)
    wanted_of_label = np.outer(flags.sum(axis=0), np.full(n_folds, 1 / n_folds))

    def place(row: int, scores: tuple[np.ndarray, ...]) -> None:
        best = max(zip(*scores, random.random(n_folds), range(n_folds), strict=True))[-1]
        parts[row] = best
        wanted[best] -= 1
        wanted_of_label[flags[row], best] -= 1

    while (left := flags[parts == NEW].sum(axis=0)).any():
        rarest = min(np.flatnonzero(left), key=lambda c: left[c])
        for row in np.flatnonzero((parts == NEW) & flags[:, rarest]):
            place(row, (wanted_of_label[rarest], wanted))
    for row in np.flatnonzero(parts == NEW):
        place(row, (wanted,))
    return parts


@given(GROUPS, st.integers(0, 9))
@settings(max_examples=10)
def test_no_group_straddles_two_parts_and_every_part_has_images_with_and_without_each_label(
    groups: list[list[str]], seed: int
) -> None:
    table = table_of(groups)
    if n_groups(table) < 15:  # where groups mix labels, so many leave room enough
        return
    parts = split(table, n_folds=4, seed=seed)
    assert parts.dtype == np.int8
    assert set(parts) == {TEST, 0, 1, 2, 3}
    assert leaked_images(parts, table["group"]) == 0
    shares = indicators(table).groupby(parts).mean()
    assert ((shares > 0) & (shares < 1)).all(axis=None)


@given(GROUPS, st.integers(0, 9), st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_any_order_of_the_rows_gives_the_same_split(
    groups: list[list[str]], seed: int, random: object
) -> None:
    table = table_of(groups)
    if n_groups(table) < 4:
        return
    parts = split(table, n_folds=3, seed=seed)
    order = list(range(len(table)))
    random.shuffle(order)
    np.testing.assert_array_equal(split(table.iloc[order], n_folds=3, seed=seed), parts[order])


@given(GROUPS, st.integers(2, 4), st.integers(0, 9))
@settings(max_examples=10)
def test_folds_are_no_less_even_than_iterative_stratification_give_or_take_an_image(
    groups: list[list[str]], n_folds: int, seed: int
) -> None:
    table = table_of([labels[:1] for labels in groups])
    if n_groups(table) < 4:
        return
    ours = split(table, n_folds=n_folds, test_fraction=0, seed=seed)
    flags = indicators(table).to_numpy(bool)
    theirs = iterative_stratification(flags, n_folds, seed)
    one_image = 100 / np.bincount(theirs).min()
    assert (
        worst_deviation(ours, table["label"], True)
        <= worst_deviation(theirs, table["label"], True) + one_image
    )


def test_the_worst_deviation_is_that_of_the_shares_of_images() -> None:
    labels = pd.Series(["a|b", "a", "", "b", "a", ""])
    parts = np.array([0, 0, 0, 1, 1, 1])
    flags = indicators(labels.to_frame("label"))
    expected = 100 * (flags.groupby(parts).mean() - flags.mean()).abs().max(axis=None)
    assert worst_deviation(parts, labels, True) == pytest.approx(expected)
    counts = part_table(np.array([0, 0, TEST, 1, 1, TEST]), labels, True)
    assert counts.to_dict("index") == {
        "test": {"a": 0, "b": 0},
        "fold 0": {"a": 2, "b": 1},
        "fold 1": {"a": 1, "b": 1},
    }


def test_ham10000_with_three_columns_is_even_to_a_fifth_of_a_point(real_data: Path) -> None:
    path = real_data / "ham10000" / "HAM10000_metadata.csv"
    if not path.is_file():
        pytest.skip("no HAM10000 metadata")
    metadata = pd.read_csv(path)
    metadata = metadata[metadata["localization"] != "acral"]
    columns = [name + ":" + metadata[name] for name in ("dx", "localization", "sex")]
    table = pd.DataFrame(
        {"label": columns[0] + "|" + columns[1] + "|" + columns[2], "group": metadata["lesion_id"]}
    )
    parts = split(table)
    assert worst_deviation(parts, table["label"], True) < 0.2
    assert leaked_images(parts, table["group"]) == 0


def test_a_rare_label_is_in_every_part_even_among_many() -> None:
    random = np.random.default_rng(0)
    labels = [{f"l{c}" for c in random.integers(0, 20, 3)} for _ in range(200)]
    for row in random.choice(200, 6, replace=False):
        labels[row] |= {"rare"}
    counts = Counter(chain(*labels))
    cells = ["|".join(sorted(c for c in names if counts[c] >= 6)) for names in labels]
    table = pd.DataFrame({"label": cells, "group": [f"g{i}" for i in range(200)]})
    parts = split(table)
    assert (indicators(table).groupby(parts).sum()["rare"] == 1).all()


def test_images_without_a_label_are_dealt_out_evenly() -> None:
    table = table_of([["a"], [""], ["b"], ["a|b"], [""]] * 12)
    parts = split(table, n_folds=3, test_fraction=0)
    assert np.bincount(parts).tolist() == [20, 20, 20]
    assert worst_deviation(parts, table["label"], True) == 0


@given(GROUPS, GROUPS)
@settings(max_examples=10)
def test_adding_images_moves_no_old_image(groups: list[list[str]], more: list[list[str]]) -> None:
    both = table_of(groups + more)
    old = both.iloc[: sum(map(len, groups))]
    if n_groups(old) < 4:
        return
    earlier = old.assign(fold=split(old, n_folds=3), sha256="")
    previous = previous_parts(earlier, list(both["path"]))
    parts = split(both, n_folds=3, previous=previous)
    np.testing.assert_array_equal(parts[: len(old)], earlier["fold"])
    assert leaked_images(parts, both["group"]) == 0


def test_a_given_split_is_honoured_and_folds_csv_keeps_the_labels(tmp_path: Path) -> None:
    table = table_of([["a"], [""], ["b"], ["a|b"]] * 10)
    table["split"] = ["test" if i % 4 == 3 else "" for i in range(40)]
    table = table.assign(sha256=[f"{i:064x}" for i in range(40)], cluster=table["group"])
    options = SplitOptions(n_folds=2)
    table["fold"] = cut_parts(table, None, options, multi_label=True)
    assert ((table["fold"] == TEST) == (table["split"] == "test")).all()
    write_folds(tmp_path / "folds.csv", table, options)
    again = cut_parts(table, tmp_path / "folds.csv", options, multi_label=True)
    np.testing.assert_array_equal(again, table["fold"])
    table["split"] = ["validation" if i % 4 == 3 else "train" for i in range(40)]
    assert set(cut_parts(table, None, options, multi_label=True)) == {TRAIN, 0, TEST}


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (
            [["a"], ["b"], ["a|b"], [""]] * 9 + [["c"]] * 2,
            (
                "Label 'c' has 2 groups of images, too few for 5 folds and a test split: merge it "
                "with another by `merge` or leave it out by `exclude_class=c`."
            ),
        ),
        (
            [["a"], ["b"], ["a|b"], [""]] * 9 + [["a|c"]] + [["d"]] * 3,
            (
                "Labels are too small: 'c' has 1 group, 'd' has 3 groups, too few for 5 folds and "
                "a test split: merge them with others by `merge` or leave them out by "
                "`drop_small_classes=6`."
            ),
        ),
        (
            [["a"], ["a|b"], ["a|c"]] * 9 + [["c"]],
            (
                "All images have the label 'a' but those of 1 group, too few for 5 folds and a "
                "test split: leave it out by `exclude_class=a`."
            ),
        ),
    ],
)
def test_labels_that_too_few_groups_have_or_lack_get_one_sentence(
    groups: list[list[str]], sentence: str
) -> None:
    table = table_of(groups)
    for refuse in (split_images, check_class_sizes):
        with pytest.raises(SplitError) as caught:
            refuse(table["label"], table["group"], multi_label=True)
        assert str(caught.value) == sentence
