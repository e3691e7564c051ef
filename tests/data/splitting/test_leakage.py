from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hubretrain.data.splitting.folds import TEST, TRAIN
from hubretrain.data.splitting.leakage import (
    kept_together,
    leak_chances,
    leaked_images,
    worst_deviation,
)
from hubretrain.errors import SplitError


def random_split_leak(groups: np.ndarray, seed: int) -> np.ndarray:
    """The oracle: draws 20 % of the images; whether each was drawn and then leaked."""
    drawn = np.zeros(len(groups), bool)
    drawn[np.random.default_rng(seed).permutation(len(groups))[: round(0.2 * len(groups))]] = True
    return drawn & np.isin(groups, groups[~drawn])


def test_leak_chances_are_what_random_splits_leak_in_the_mean() -> None:
    groups = np.repeat(np.arange(60), np.random.default_rng(0).integers(1, 6, 60))
    leaks = np.mean([random_split_leak(groups, seed) for seed in range(4000)], axis=0)
    chances = leak_chances(groups)
    sizes = np.bincount(groups)[groups]
    for size in range(1, 6):
        expected = leaks[sizes == size].mean() / 0.2
        assert chances[sizes == size] == pytest.approx(expected, abs=0.02)
    assert chances[sizes == 1].max() == 0
    assert leak_chances(np.zeros(100)).tolist() == [1] * 100


def test_a_random_split_of_ham10000_leaks_more_than_a_third_of_its_validation_images(
    real_data: Path,
) -> None:
    table = pd.read_csv(real_data / "ham10000" / "HAM10000_metadata.csv")
    groups = pd.factorize(table["lesion_id"])[0]
    leaks = [random_split_leak(groups, seed).sum() / round(0.2 * len(groups)) for seed in range(20)]
    assert leak_chances(table["lesion_id"]).mean() == pytest.approx(np.mean(leaks), abs=0.01)
    assert 0.36 < leak_chances(table["lesion_id"]).mean() < 0.41


@pytest.mark.parametrize(
    ("parts", "options", "sentence"),
    [
        (
            [0, 0, 1, 1, TEST],
            (True, True),
            (
                "Groups kept together, duplicates kept together, images leaked: 0 "
                "(a random split would have leaked 80.0%)."
            ),
        ),
        (
            [0, 0, 1, 1, TEST],
            (False, False),
            (
                "Groups kept together (none are given), duplicates neither searched for nor kept "
                "together, images leaked: 0 (a random split would have leaked 80.0%)."
            ),
        ),
        (
            [0, 1, 1, 1, TEST],
            (True, True),
            (
                "Groups kept together, duplicates kept together, images leaked by the given "
                "split: 2 (a random split would have leaked 80.0%)."
            ),
        ),
    ],
)
def test_every_leaderboard_says_what_was_kept_together_and_what_leaked(
    parts: list[int], options: tuple[bool, bool], sentence: str
) -> None:
    assert kept_together(parts, ["a", "a", "b", "b", "c"], *options) == sentence


def test_leaked_images_counts_validation_and_test_images_only() -> None:
    parts = [0, 1, TEST, TRAIN, TRAIN, TEST, 0]
    groups = ["x", "x", "y", "y", "z", "v", "w"]
    assert leaked_images(parts, groups) == 3  # both of x, and y in the test split


def test_worst_deviation_is_in_percentage_points() -> None:
    labels = ["a"] * 6 + ["b"] * 4
    parts = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]  # shares of a: 100 %, 20 %; overall 60 %
    assert worst_deviation(parts, labels) == pytest.approx(40)
    assert worst_deviation([], []) == 0


def test_a_random_split_with_an_empty_side_is_an_error() -> None:
    with pytest.raises(SplitError, match=r"0\.01 of 10 images leaves one side empty"):
        leak_chances(range(10), 0.01)
