from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from hubretrain.data.image_table import cluster_names
from hubretrain.data.options import SplitOptions
from hubretrain.data.splitting.folds import NEW, TEST, TRAIN, previous_parts, write_folds
from hubretrain.data.splitting.leakage import leaked_images, worst_deviation
from hubretrain.data.splitting.splits import cut_parts, split_images
from hubretrain.errors import SplitError

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
@settings(max_examples=25)
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
@settings(max_examples=25)
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
@settings(max_examples=25)
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
@settings(max_examples=25)
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
@settings(max_examples=25)
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
                "ask for at most 3 folds or merge it with another by `merge`."
            ),
        ),
        (
            1,
            (
                "Class 'rare' has 1 group of images, too few for 5 folds and a test split: "
                "merge it with another by `merge`."
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_folds": 1}, "`n_folds` is 1; expected 2 to 100."),
        ({"test_fraction": 1.0}, "`test_fraction` is 1.0; expected at least 0 and below 1."),
        ({"groups": ["x"] * 7}, "7 groups for 8 images; expected one per image."),
        ({"groups": ["x"] * 7 + [None]}, "Image 7 (from 0) has no group."),
        (
            {"given": ["train"] * 7 + ["holdout"]},
            "The given split is 'holdout' for 1 images; expected train, val, test or blank.",
        ),
        (
            {"previous": [0, 1, 0, 0, 1, 1, 0, 0]},
            (
                "Group 's' is in fold 0 and in fold 1 of the earlier split: "
                "cut a new split, or divide the group."
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
                "The earlier parts run from 300 to 300; "
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


@st.composite
def images_with_copies(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An image table with groups, files with the same bytes, and pairs of near duplicates."""
    table = table_of(draw(GROUPS)).assign(split="")
    rows = st.integers(0, len(table) - 1)
    table["sha256"] = [f"content {i:04d}" for i in range(len(table))]
    for a, b in draw(st.lists(st.tuples(rows, rows), max_size=4)):
        table.loc[a, "sha256"] = table.loc[b, "sha256"]
    near = draw(st.lists(st.tuples(rows, rows), max_size=6))
    ends = [table["sha256"][list(pair)].tolist() for pair in near]
    pairs = pd.DataFrame(ends, columns=["a", "b"])
    # Copies may join so many groups that a class is left with too few for two folds and a test.
    clusters = cluster_names(table["group"], table["sha256"], pairs)
    assume(table.assign(cluster=clusters).groupby("label")["cluster"].nunique().min() >= 3)
    return table, pairs


@given(images_with_copies(), st.integers(0, 9))
@settings(max_examples=25)
def test_no_group_and_no_duplicate_straddles_two_parts(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[pd.DataFrame, pd.DataFrame],
    seed: int,
) -> None:
    table, pairs = made
    table["cluster"] = cluster_names(table["group"], table["sha256"], pairs)
    folds_file = tmp_path_factory.mktemp("split") / "folds.csv"
    parts = cut_parts(table, folds_file, SplitOptions(n_folds=2, seed=seed))
    part_of = dict(zip(table["sha256"], parts, strict=True))
    for column in ("group", "sha256"):
        assert len(set(zip(table[column], parts, strict=True))) == table[column].nunique()
    assert all(part_of[a] == part_of[b] for a, b in zip(pairs["a"], pairs["b"], strict=True))
    # The same again from the file that was kept, whatever the order of the rows and the seed.
    write_folds(folds_file, table.assign(fold=parts))
    shuffled = table.sample(frac=1, random_state=seed)
    again = cut_parts(shuffled, folds_file, SplitOptions(n_folds=2, seed=seed + 1))
    np.testing.assert_array_equal(again, parts[shuffled.index])


def test_an_earlier_split_that_parts_copies_is_refused_with_their_names(tmp_path: Path) -> None:
    table = table_of([("a", 1)] * 20 + [("b", 1)] * 20).assign(split="")
    table["sha256"] = [f"{i:064d}" for i in range(len(table))]
    table["cluster"] = cluster_names(table["group"], table["sha256"])
    parts = cut_parts(table, tmp_path / "folds.csv", SplitOptions(n_folds=2))
    write_folds(tmp_path / "folds.csv", table.assign(fold=parts))
    one, other = (table["sha256"][parts == part].iloc[0] for part in (0, TEST))
    pairs = pd.DataFrame({"a": [one], "b": [other]})
    table["cluster"] = cluster_names(table["group"], table["sha256"], pairs)
    with pytest.raises(
        SplitError,
        match=r"folds\.csv: image_\d+\.jpg is in .* and image_\d+\.jpg in .*, but they belong "
        r"together, as one group or duplicates; remove the file to cut a new split\.$",
    ):
        cut_parts(table, tmp_path / "folds.csv", SplitOptions(n_folds=2))


def test_all_classes_that_are_too_small_are_named_at_once_with_the_way_out() -> None:
    table = table_of([(name, 1) for name in "abc" for _ in range(9)])
    table = pd.concat([table, pd.DataFrame({"label": ["x y", "x y", "z"], "group": [-1, -2, -3]})])
    with pytest.raises(SplitError) as caught:
        split_images(table.label, table.group.astype(str))
    assert str(caught.value) == (
        "Classes are too small: 'x y' has 2 groups, 'z' has 1 group, too few for 5 folds and a "
        "test split: merge them with others by `merge` or leave them out by `exclude_class='x y'` "
        "`exclude_class=z`."
    )
    kept = table[~table["label"].isin(["x y", "z"])]
    split_images(kept.label, kept.group.astype(str))


def test_another_seed_puts_other_groups_together():
    labels, groups = np.arange(60) % 2, np.arange(60)

    def together(seed):
        parts = split_images(labels, groups, test_fraction=0.0, seed=seed)
        return parts[:, None] == parts

    assert (together(0) == together(0)).all()
    assert (together(0) != together(1)).any()
