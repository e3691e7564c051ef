from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from hubretrain.errors import SplitError
from hubretrain.splits import (
    NEW,
    TEST,
    TRAIN,
    leaked_images,
    previous_parts,
    random_split_leak,
    read_folds,
    split_images,
    worst_deviation,
    write_folds,
)

# One tuple a group: its class and its number of images.
GROUPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 6)), min_size=20, max_size=60
).filter(lambda groups: all(sum(c == name for c, _ in groups) >= 5 for name, _ in groups))


def table_of(groups: list[tuple[str, int]]) -> pd.DataFrame:
    rows = [(c, f"group {i}") for i, (c, n) in enumerate(groups) for _ in range(n)]
    table = pd.DataFrame(rows, columns=["label", "group"])
    return table.assign(path=[f"image_{i}.jpg" for i in range(len(table))])


def ham10000(real_data: Path) -> pd.DataFrame:
    path = real_data / "ham10000" / "HAM10000_metadata.csv"
    if not path.is_file():
        pytest.skip("no HAM10000 metadata")
    return pd.read_csv(path).rename(columns={"dx": "label", "lesion_id": "group"})


def stratified_group_folds(table: pd.DataFrame, n_folds: int, seed: int) -> np.ndarray:
    """The oracle: scikit-learn's folds."""
    parts = np.full(len(table), NEW)
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for fold, (_, rows) in enumerate(folds.split(table, table.label, table.group)):
        parts[rows] = fold
    return parts


def parts_of_groups(table: pd.DataFrame, parts: np.ndarray) -> pd.Series:
    return table.assign(part=parts).groupby("group")["part"].nunique()


@given(GROUPS, st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_no_group_straddles_two_parts_and_every_class_is_in_every_part(
    groups: list[tuple[str, int]], seed: int
) -> None:
    table = table_of(groups)
    parts = split_images(table.label, table.group, n_folds=4, seed=seed)
    assert parts.dtype == np.int8
    assert set(parts) == {TEST, 0, 1, 2, 3}
    assert (parts_of_groups(table, parts) == 1).all()
    assert leaked_images(parts, table.group) == 0
    classes_of_part = table.assign(part=parts).groupby("part")["label"].nunique()
    assert (classes_of_part == table.label.nunique()).all()


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), min_size=8, max_size=40))
@settings(max_examples=25, deadline=None)
def test_groups_that_mix_classes_stay_whole_too(groups: list[list[str]]) -> None:
    table = pd.DataFrame(
        [(c, i) for i, g in enumerate(groups) for c in g], columns=["label", "group"]
    )
    if table.groupby("label")["group"].nunique().min() < 3:
        with pytest.raises(SplitError, match="too few for 3 folds"):
            split_images(table.label, table.group, n_folds=3, test_fraction=0)
    else:
        parts = split_images(table.label, table.group, n_folds=3, test_fraction=0)
        assert set(parts) == {0, 1, 2}
        assert (parts_of_groups(table, parts) == 1).all()


@given(GROUPS, st.integers(0, 9), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_any_order_of_the_rows_gives_the_same_split(
    groups: list[tuple[str, int]], seed: int, random: object
) -> None:
    table = table_of(groups)
    parts = split_images(table.label, table.group, n_folds=3, seed=seed)
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = table.iloc[order]
    again = split_images(shuffled.label, shuffled.group, n_folds=3, seed=seed)
    np.testing.assert_array_equal(again, parts[order])


@given(GROUPS, GROUPS)
@settings(max_examples=25, deadline=None)
def test_adding_images_moves_no_old_image_and_new_images_join_their_group(
    groups: list[tuple[str, int]], more: list[tuple[str, int]]
) -> None:
    both = table_of(groups + more)
    n_old = sum(n for _, n in groups)
    # Every third old group has also got a new image.
    late = both.iloc[:n_old].drop_duplicates("group").iloc[::3].assign(path="late.jpg")
    both = pd.concat([both, late], ignore_index=True)
    old = both.iloc[:n_old]
    earlier = old.assign(fold=split_images(old.label, old.group, n_folds=3), sha256="")
    previous = previous_parts(earlier, list(both.path))
    parts = split_images(both.label, both.group, n_folds=3, previous=previous)
    np.testing.assert_array_equal(parts[:n_old], earlier.fold)
    assert (parts_of_groups(both, parts) == 1).all()
    assert set(parts) == {TEST, 0, 1, 2}


@given(GROUPS, st.integers(2, 4), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_folds_are_no_less_even_than_scikit_learns_give_or_take_an_image(
    groups: list[tuple[str, int]], n_folds: int, seed: int
) -> None:
    table = table_of(groups)
    ours = split_images(table.label, table.group, n_folds=n_folds, test_fraction=0, seed=seed)
    theirs = stratified_group_folds(table, n_folds, seed)
    one_image = 100 / np.bincount(theirs).min()
    assert worst_deviation(ours, table.label) <= worst_deviation(theirs, table.label) + one_image


@pytest.mark.parametrize("n_folds", [5, 10])
def test_ham10000_folds_are_no_less_even_than_scikit_learns(real_data: Path, n_folds: int) -> None:
    table = ham10000(real_data)
    ours = split_images(table.label, table.group, n_folds=n_folds, test_fraction=0)
    theirs = stratified_group_folds(table, n_folds, seed=0)
    assert worst_deviation(ours, table.label) <= worst_deviation(theirs, table.label)
    sizes, wanted = np.bincount(ours), len(table) / n_folds
    assert abs(sizes - wanted).max() < 0.01 * wanted


def test_ham10000_with_a_test_split_is_even_to_a_tenth_of_a_point(real_data: Path) -> None:
    table = ham10000(real_data)
    parts = split_images(table.label, table.group)
    assert worst_deviation(parts, table.label) < 0.1
    assert (parts == TEST).mean() == pytest.approx(0.2, abs=0.002)
    assert leaked_images(parts, table.group) == 0


def test_a_random_split_of_ham10000_leaks_more_than_a_third_of_its_validation_images(
    real_data: Path,
) -> None:
    groups = ham10000(real_data).group
    leaks = [random_split_leak(groups, 0.2, seed) for seed in range(10)]
    assert 0.36 < np.mean(leaks) < 0.41


def test_another_seed_is_another_split() -> None:
    table = table_of([("a", 1)] * 30 + [("b", 2)] * 30)
    splits = {split_images(table.label, table.group, seed=s).tobytes() for s in range(5)}
    assert len(splits) == 5
    first, again = (split_images(table.label, table.group, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_labels_and_groups_may_be_integers() -> None:
    labels, groups = np.arange(60) % 3, np.arange(60) // 2
    as_text = split_images(labels.astype(str), groups.astype(str), n_folds=2)
    np.testing.assert_array_equal(split_images(labels, groups, n_folds=2), as_text)


def test_equal_groups_that_divide_evenly_are_cut_exactly() -> None:
    table = table_of([("a", 2)] * 50 + [("b", 2)] * 25)
    parts = split_images(table.label, table.group, n_folds=4, test_fraction=0.2)
    assert worst_deviation(parts, table.label) == pytest.approx(0)
    assert list(np.bincount(parts + 1)) == [30] * 5


def test_a_rare_class_is_in_every_part_even_if_the_test_split_is_small() -> None:
    table = table_of([("common", 1)] * 500 + [("rare", 40)] + [("rare", 1)] * 5)
    parts = split_images(table.label, table.group, test_fraction=0.02)
    assert set(parts[table.label == "rare"]) == {TEST, 0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("n_groups", "message"),
    [
        (
            4,
            (
                "Class 'rare' has 4 groups of images, too few for 5 folds and a test split: "
                "ask for at most 3 folds, merge the class with another or drop it."
            ),
        ),
        (
            1,
            (
                "Class 'rare' has 1 group of images, too few for 5 folds and a test split: "
                "merge the class with another or drop it."
            ),
        ),
    ],
)
def test_a_class_with_too_few_groups_is_an_error_that_names_it(n_groups: int, message: str) -> None:
    table = table_of([("common", 1)] * 50 + [("rare", 9)] * n_groups)
    with pytest.raises(SplitError) as caught:
        split_images(table.label, table.group)
    assert str(caught.value) == message


def test_a_given_test_split_is_kept_and_the_rest_is_folded() -> None:
    table = table_of([("a", 1)] * 40 + [("b", 1)] * 40)
    split = np.where(np.arange(80) % 4 == 0, "test", "train")
    parts = split_images(table.label, table.group, n_folds=3, given=split)
    np.testing.assert_array_equal(parts == TEST, split == "test")
    assert set(parts[split == "train"]) == {0, 1, 2}


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_a_given_validation_split_is_the_only_fold(name: str) -> None:
    table = table_of([("a", 1)] * 40 + [("b", 1)] * 40)
    split = np.array([name, "train", "test", "train"] * 20)
    parts = split_images(table.label, table.group, given=split)
    np.testing.assert_array_equal(parts == 0, split == name)
    np.testing.assert_array_equal(parts == TEST, split == "test")
    np.testing.assert_array_equal(parts == TRAIN, split == "train")


def test_without_a_given_test_split_one_is_cut_from_the_training_images() -> None:
    table = table_of([("a", 1)] * 40 + [("b", 1)] * 40)
    split = np.array(["val", "train", None, "train"] * 20, dtype=object)
    parts = split_images(table.label, table.group, given=split, test_fraction=0.25)
    np.testing.assert_array_equal(parts == 0, split == "val")
    assert (parts == TEST).sum() == pytest.approx(15, abs=1)
    assert set(parts) == {0, TEST, TRAIN}


def test_a_given_split_that_tears_a_group_apart_is_honoured_and_counted() -> None:
    split = ["train"] * 9 + ["test"] * 3
    parts = split_images(["a"] * 12, list("aabbccddeeff"), n_folds=2, given=split)
    assert [part == TEST for part in parts] == [name == "test" for name in split]
    # Group e has an image in each; both it and its twin in a fold are leaked.
    assert leaked_images(parts, list("aabbccddeeff")) == 2


def test_a_given_validation_split_can_be_carried_on() -> None:
    table = table_of([("a", 1)] * 12)
    split = ["val", "train", "test", "train"] * 3
    first = split_images(table.label, table.group, given=split)
    previous = first.copy()
    previous[7] = NEW
    again = split_images(table.label, table.group, given=None, previous=previous)
    np.testing.assert_array_equal(again, first)


def test_leaked_images_counts_validation_and_test_images_only() -> None:
    parts = [0, 1, TEST, TRAIN, TRAIN, TEST, 0]
    groups = ["x", "x", "y", "y", "z", "v", "w"]
    assert leaked_images(parts, groups) == 3  # both of x, and y in the test split


def test_random_split_leak_has_a_closed_form_for_pairs() -> None:
    n_pairs = 2000
    leak = random_split_leak(np.arange(2 * n_pairs) // 2, 0.2, seed=1)
    assert leak == pytest.approx((0.8 * 2 * n_pairs) / (2 * n_pairs - 1), abs=0.03)
    assert random_split_leak(np.arange(100), 0.2) == 0
    assert random_split_leak(np.zeros(100), 0.2) == 1


def test_worst_deviation_is_in_percentage_points() -> None:
    labels = ["a"] * 6 + ["b"] * 4
    parts = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]  # shares of a: 100 %, 20 %; overall 60 %
    assert worst_deviation(parts, labels) == pytest.approx(40)
    assert worst_deviation([], []) == 0


NAMES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)


@given(st.lists(st.tuples(NAMES, NAMES, st.integers(TRAIN, 99)), max_size=8))
@settings(max_examples=30, deadline=None)
def test_folds_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]]
) -> None:
    table = pd.DataFrame(rows, columns=["path", "label", "fold"])
    table = table.assign(group=table.path, sha256="0" * 64).astype({"fold": np.int8})
    path = tmp_path_factory.mktemp("folds") / "folds.csv"
    write_folds(path, table)
    again = read_folds(path)
    assert list(again.columns) == ["path", "sha256", "label", "group", "fold"]
    for column in again.columns:
        assert list(again[column]) == list(table[column])


def test_folds_csv_is_readable_by_people(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"path": list("abc"), "label": 1, "group": 2, "fold": [TEST, 3, TRAIN], "more": 0}
    )
    write_folds(tmp_path / "folds.csv", table)
    assert (tmp_path / "folds.csv").read_text() == (
        "path,sha256,label,group,fold\na,,1,2,test\nb,,1,2,3\nc,,1,2,train\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_an_earlier_part_is_found_by_content_first_then_by_path() -> None:
    earlier = pd.DataFrame(
        {"path": list("abcd"), "sha256": ["1", "2", "3", "3"], "fold": [0, 1, 2, TEST]}
    )
    paths, sha256s = ["renamed", "b", "edited", "c", "d"], ["1", "9", "8", "3", "3"]
    assert list(previous_parts(earlier, paths, sha256s)) == [0, 1, NEW, 2, TEST]
    assert list(previous_parts(earlier, ["a", "z"])) == [0, NEW]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_folds": 1}, "n_folds is 1: expected 2 to 100."),
        ({"test_fraction": 1.0}, "test_fraction is 1.0: expected at least 0 and below 1."),
        ({"groups": ["x"] * 7}, "7 groups for 8 images: expected one an image."),
        ({"groups": ["x"] * 7 + [None]}, "Image 7 (from 0) has no group."),
        (
            {"given": ["train"] * 7 + ["holdout"]},
            "The given split is 'holdout' for 1 images: expected train, val, test or blank.",
        ),
        (
            {"previous": [0, 1, 0, 0, 1, 1, 0, 0]},
            (
                "Group 's' stands in fold 0 and fold 1 of the earlier split: "
                "cut a new split, or part the group."
            ),
        ),
        (
            {"previous": [0, 0, 1, 1, 2, 2, NEW, NEW]},
            (
                "The earlier split has fold 2, which this one lacks: "
                "ask for the parts that it has, or cut a new split."
            ),
        ),
        (
            {"previous": [0, 0, 1, 1, 0, 0, 1, 1], "test_fraction": 0.2},
            (
                "The earlier split lacks the test split: "
                "ask for the parts that it has, or cut a new split."
            ),
        ),
        (
            {"previous": [300] * 8},
            (
                "The earlier parts run from 300 to 300: "
                "expected -2 (train), -1 (test), or a fold from 0 to 99."
            ),
        ),
    ],
)
def test_what_cannot_be_split_is_an_error_that_says_why(
    options: dict[str, object], message: str
) -> None:
    usual = {"groups": list("ssttuuvv"), "n_folds": 2, "test_fraction": 0.0}
    with pytest.raises(SplitError) as caught:
        split_images(["a"] * 8, **(usual | options))
    assert str(caught.value) == message


def test_a_random_split_with_an_empty_side_is_an_error() -> None:
    with pytest.raises(SplitError, match=r"0\.01 of 10 images leaves one side empty"):
        random_split_leak(range(10), 0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file of folds."),
        ("path,label\n", "no column fold, group; expected path, sha256, label, group, fold."),
        (
            "path,label,group,fold\na,b,c,0\na,b,c,first\n",
            "line 3: fold is 'first', expected test, train or a number from 0.",
        ),
        ("", "is not a CSV file of folds"),
    ],
)
def test_a_file_that_is_not_folds_is_an_error_that_says_where(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "folds.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SplitError) as caught:
        read_folds(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_table_without_parts_cannot_be_written(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["a"], "label": ["b"], "group": ["c"]})
    with pytest.raises(SplitError, match="the table of folds: no column fold"):
        write_folds(tmp_path / "folds.csv", table)
    with pytest.raises(SplitError, match=r"The folds run from -3 to -3: expected -2 \(train\)"):
        write_folds(tmp_path / "folds.csv", table.assign(fold=NEW))
    assert list(tmp_path.iterdir()) == []
