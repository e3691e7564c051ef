"""A bottleneck file that is damaged anywhere is refused before HDF5 sees it, and repaired."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from hubretrain.bottlenecks import (
    Bottlenecks,
    BottleneckWriter,
    RowIndex,
    is_of_old_format,
    merge_files,
    repair_file,
)
from hubretrain.errors import CacheError
from tests.bottlenecks.samples import ATTRIBUTES, LAYERS, edited, make, sha256_of

ALL = {"layers": "all"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small.h5"
    make(path, attributes=ALL, layers=LAYERS)
    return path


def read_all(path):
    with Bottlenecks(path) as bottlenecks:
        bottlenecks.check_module("small")
        return [bottlenecks.rows(bottlenecks.sha256s, v, "all") for v in range(2)]


@pytest.mark.parametrize(("length", "step"), [(1, 97), (64, 101), (4096, 2048)])
def test_damage_anywhere_is_found_and_repaired(path, tmp_path, length, step):
    """Zeros, as a bad sector or a power loss leaves them, or one bit, wherever it is."""
    whole = path.read_bytes()
    n_tried, repaired = 0, tmp_path / "repaired" / "small.h5"
    repaired.parent.mkdir()
    for first in range(0, len(whole), step):
        damaged = bytearray(whole)
        part = damaged[first : first + length]
        damaged[first : first + length] = bytes([part[0] ^ 4]) if length == 1 else bytes(len(part))
        if damaged == whole:
            continue
        n_tried += 1
        repaired.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"verify --repair`, then run `hubretrain cache` ag"):
            read_all(repaired)
        assert repair_file(repaired, "small")
        make(repaired, attributes=ALL, layers=LAYERS)
        assert repaired.read_bytes() == whole
    assert n_tried > len(whole) / step / 2


@pytest.mark.parametrize("length", [0, 7, 511, 600, 4000, -1])
def test_a_file_that_was_cut_short_or_grew_is_refused(path, length):
    whole = path.read_bytes()
    path.write_bytes(whole[:length] if length >= 0 else whole + b"\0")
    with pytest.raises(CacheError, match=r"small\.h5 is damaged \("):
        read_all(path)


def test_a_file_of_another_module_is_not_taken_for_the_one_of_its_name(path, tmp_path):
    other = tmp_path / "other.h5"
    shutil.copy(path, other)
    with (
        Bottlenecks(other) as bottlenecks,
        pytest.raises(CacheError, match=r"other\.h5 holds bottlenecks of small, not of other;"),
    ):
        bottlenecks.check_module("other")
    (done,) = repair_file(other, "other")
    assert done.startswith("holds bottlenecks of small, not of other: moved to other.h5.damaged; r")
    assert not other.exists()


def test_only_the_damaged_view_is_computed_again(path):
    whole = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file["layers_001"][2, 3] += 1
    (done,) = repair_file(path, "small")
    assert done.startswith("layers_001 was damaged and is empty now; run the same `hubretrain cac")
    with Bottlenecks(path) as bottlenecks:
        assert bottlenecks.todo().sum() == 5
        assert "view_001: 5 of 5 rows to do" in bottlenecks.verify()[0]
    assert repair_file(path, "small") == []
    assert make(path, attributes=ALL, layers=LAYERS) == 5
    assert path.read_bytes() == whole


def test_a_view_without_a_digest_is_not_read_though_all_its_rows_are_there(path):
    with edited(path, stopped=True):
        pass
    with pytest.raises(CacheError, match=r"view 0 is not finished \(what wrote it was stopped bef"):
        read_all(path)
    with Bottlenecks(path) as bottlenecks:
        (sentence,) = bottlenecks.verify()
    assert sentence.startswith("what wrote it was stopped before its digests; run the same `hub")
    assert make(path, attributes=ALL, layers=LAYERS) == 0
    read_all(path)


def test_merging_does_not_certify_damage(path, tmp_path):
    make(tmp_path / "two.h5", "fg", attributes=ALL, layers=LAYERS)
    with h5py.File(path, "r+") as file:
        file["view_000"][:3] = 0
    with pytest.raises(CacheError, match=r"small\.h5: view_000: its bytes are not those that were"):
        merge_files([path, tmp_path / "two.h5"], tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()


def test_a_file_of_the_format_before_is_read_and_brought_to_this_one(path, tmp_path):
    old = tmp_path / "old" / "small.h5"
    old.parent.mkdir()
    with h5py.File(path) as new, h5py.File(old, "w") as file:
        for name in new:
            if name != "seal":
                new.copy(name, file)
        del file["images/path"]
        file["images/path"] = new["images/path"].asstr()[:].astype(h5py.string_dtype())
        for name, value in new.attrs.items():
            file.attrs[name] = value
        file.attrs["format_version"] = 1
    assert is_of_old_format(old)
    assert not is_of_old_format(path)
    np.testing.assert_array_equal(read_all(old), read_all(path))
    assert make(old, attributes=ALL, layers=LAYERS) == 0
    assert old.read_bytes() == path.read_bytes()


def test_names_that_are_no_utf_8_are_read_as_they_were_written(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    rows = RowIndex((name, "é" * 100), (sha256_of(1), sha256_of(2)), np.ones(2, np.int16))
    with BottleneckWriter(tmp_path / "a.h5", rows, 3, ATTRIBUTES):
        pass
    with Bottlenecks(tmp_path / "a.h5") as bottlenecks:
        assert bottlenecks.paths == [name, "é" * 100]
