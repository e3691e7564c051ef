from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from hubretrain.racing.slices import LEAST_CLUSTERS, slice_of, slice_order

N = 1200


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    cluster = np.sort(random.integers(0, 700, N))
    label_of = random.choice(3, 700, p=(0.8, 0.15, 0.05))
    fold_of = random.integers(0, 5, 700)
    table = pd.DataFrame(
        {"cluster": cluster, "label": label_of[cluster].astype(str), "fold": fold_of[cluster]}
    )
    return table.assign(sha256=[f"{i:064x}" for i in range(N)])


def contents(images, order, n):
    return set(slice_of(images, order, n)["sha256"])


def test_a_slice_holds_all_smaller_ones(images):
    order = slice_order(images, 0)
    slices = [contents(images, order, n) for n in (100, 200, 201, 500, N)]
    assert all(small <= large and len(small) < N for small, large in pairwise(slices))
    assert len(slices[-1]) == N


def test_no_cluster_is_cut_and_no_slice_is_larger_than_that_takes(images):
    order = slice_order(images, 0)
    largest = images["cluster"].value_counts().max()
    for n in (50, 333, 800):
        chosen = slice_of(images, order, n)
        assert n <= len(chosen) < n + largest
        rest = images[~images["sha256"].isin(chosen["sha256"])]
        assert not set(chosen["cluster"]) & set(rest["cluster"])


def test_each_class_and_fold_has_its_share_within_a_cluster_and_the_first_ones(images):
    order = slice_order(images, 0)
    cells = ["label", "fold"]
    largest = images["cluster"].value_counts().max()
    chosen = slice_of(images, order, 600)
    whole = images.groupby(cells).size()
    share = len(chosen) / N
    surplus = LEAST_CLUSTERS * largest  # of what comes first of all, whatever the share
    counts = chosen.groupby(cells).size().reindex(whole.index, fill_value=0)
    assert ((counts - share * whole).abs() <= surplus + largest).all()


def test_the_smallest_slice_has_every_class_in_every_fold(images):
    order = slice_order(images, 0)
    cells = images.groupby(["label", "fold"]).ngroups
    first = slice_of(images, order, 100)
    assert first.groupby(["label", "fold"]).ngroups == cells == 15


def test_the_order_is_of_the_seed_and_not_of_the_rows(images):
    shuffled = images.sample(frac=1, random_state=1).reset_index(drop=True)
    here = contents(images, slice_order(images, 3), 300)
    assert contents(shuffled, slice_order(shuffled, 3), 300) == here
    assert contents(images, slice_order(images, 4), 300) != here


def test_rows_stay_in_the_order_of_the_table(images):
    chosen = slice_of(images, slice_order(images, 0), 300)
    assert chosen["sha256"].is_monotonic_increasing
    assert slice_of(images, slice_order(images, 0), 10 * N) is images
