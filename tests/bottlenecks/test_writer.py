from __future__ import annotations

import os

import numpy as np
import pytest

from hubretrain.bottlenecks import (
    Bottlenecks,
    BottleneckWriter,
)
from hubretrain.errors import LockedError, WriteError
from tests.bottlenecks.samples import (
    ATTRIBUTES,
    N_FEATURES,
    fill,
    make,
    rows_of,
    sha256_of,
)


def test_a_finished_file_needs_nothing(tmp_path):
    path = tmp_path / "small.h5"
    make(path)
    before = path.read_bytes(), path.stat().st_ino
    assert make(path) == 0
    assert (path.read_bytes(), path.stat().st_ino) == before


def test_float16_halves_the_file(tmp_path):
    make(tmp_path / "full.h5", "abcdefgh" * 1, 4)
    make(tmp_path / "half.h5", "abcdefgh" * 1, 4, dtype=np.float16)
    with Bottlenecks(tmp_path / "half.h5") as half, Bottlenecks(tmp_path / "full.h5") as full:
        assert half.view(0).dtype == np.float16
        assert np.abs(half.rows([sha256_of("c")]) - full.rows([sha256_of("c")])).max() < 1e-3


def test_a_second_writer_is_told_who_holds_the_file(tmp_path):
    path = tmp_path / "small.h5"
    with (
        BottleneckWriter(path, rows_of("ab"), N_FEATURES, ATTRIBUTES),
        pytest.raises(LockedError, match=rf"being written by process {os.getpid()} on .*; wait"),
    ):
        make(path, "ab")
    make(path, "ab")
    assert [p.name for p in tmp_path.iterdir()] == ["small.h5"]


def test_an_undecodable_image_is_not_to_do_as_long_as_that_is_said(tmp_path):
    path = tmp_path / "small.h5"
    with BottleneckWriter(path, rows_of("abc"), N_FEATURES, ATTRIBUTES) as writer:
        writer.quarantine(1)
        assert fill(writer) == 4
    assert make(path, "abc", [2, 0, 2]) == 0
    assert make(path, "abcd", [2, 0, 2, 2]) == 2
    with Bottlenecks(path) as bottlenecks:
        assert bottlenecks.n_views_of.tolist() == [2, 0, 2, 2]
        assert bottlenecks.verify() == []
    assert make(path, "abcd") == 2  # nobody says so any more: it is tried again


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"cannot be written .*or choose another folder"):
        make(tmp_path / "file" / "small.h5")
