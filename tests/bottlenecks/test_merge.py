from __future__ import annotations

import pytest

from hubretrain.bottlenecks import merge_files
from hubretrain.errors import CacheError
from tests.bottlenecks.samples import edited, make


def test_overlapping_and_unfinished_parts_become_the_file_that_was_made_at_once(tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    make(one, "bcd")
    make(two, "ade")
    with edited(two, stopped=True) as file:  # d as a kill would leave it
        file["view_001"][1] = float("nan")
    assert len(merge_files([two, one], tmp_path / "merged.h5")) == 5
    make(tmp_path / "at_once.h5", "abcde")
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "at_once.h5").read_bytes()


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    make(one, "ab")
    make(two, "cd", attributes={"seed": 1})
    with pytest.raises(CacheError, match=r"belong together: seed is 0 in the first and 1 in the"):
        merge_files([one, two], tmp_path / "merged.h5")
    make(two, "cd", dtype="float16", overwrite=True, attributes={"seed": 0})
    with pytest.raises(CacheError, match=r"features of float32 in the first, 6 of float16 in the"):
        merge_files([one, two], tmp_path / "merged.h5")


def test_parts_with_different_bottlenecks_of_one_image_are_refused(tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    make(one, "ab")
    make(two, "bc")
    with edited(two) as file:
        file["view_000"][0, 0] += 1
    with pytest.raises(CacheError, match=r"have different bottlenecks of b.png; they were made on"):
        merge_files([one, two], tmp_path / "merged.h5")
