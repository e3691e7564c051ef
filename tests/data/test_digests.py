from __future__ import annotations

import hashlib
import os
import time

import pandas as pd
import pytest

from hubretrain.data import digests
from hubretrain.data.digests import image_digests
from hubretrain.errors import DataError

LONG_AGO = 1_700_000_000


def write(folder, n_files):
    folder.mkdir()
    names = [f"{i:02d}.bin" for i in range(n_files)]
    for name in names:
        (folder / name).write_bytes(name.encode())
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    return names


def test_digests_are_those_of_hashlib_and_an_unchanged_file_is_not_read_again(tmp_path):
    names = write(tmp_path / "d", 5)
    read = []
    found = image_digests(tmp_path / "d", names, tmp_path, read.append)
    assert found == [hashlib.sha256(name.encode()).hexdigest() for name in names]
    assert sum(read) == 5


def test_what_was_read_is_kept_when_a_file_cannot_be_read(tmp_path, monkeypatch):
    names = write(tmp_path / "d", 20)
    bad = tmp_path / "d" / "19.bin"
    bad.unlink()
    bad.symlink_to("/proc/self/mem")  # it can be asked for its size, and not be read
    if not bad.exists():
        pytest.skip("this system has no /proc")
    # Changed two seconds ago at least, or the table would rightly not trust them.
    monkeypatch.setattr("hubretrain.data.digests._RACY_NANOSECONDS", -1)
    with pytest.raises(DataError, match=r"19.bin cannot be read: Input/output error"):
        image_digests(tmp_path / "d", names, tmp_path)
    kept = pd.read_csv(tmp_path / "digests.csv")["path"].tolist()
    assert set(names[:8]) <= set(kept)
    assert "19.bin" not in kept


def test_digesting_holds_few_files_at_a_time(tmp_path):
    import tracemalloc

    n_files = 4000
    paths = [f"{i:05}.png" for i in range(n_files)]
    for path in paths:
        (tmp_path / path).write_bytes(path.encode())
    image_digests(tmp_path, paths[:10], tmp_path / "few")
    tracemalloc.start()
    try:
        image_digests(tmp_path, paths, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / n_files < 1400  # a future for every file would alone be as much


def test_a_file_of_any_name_is_not_read_again(tmp_path, strange_name):
    (tmp_path / strange_name).write_bytes(b"1")
    os.utime(tmp_path / strange_name, (LONG_AGO, LONG_AGO))
    table_file = tmp_path / "digests.csv"
    stamps = digests._stamps([str(tmp_path / strange_name)])
    digests._write(table_file, [strange_name], stamps, ["ab"], time.time_ns() + 10**10)
    assert image_digests(tmp_path, [strange_name], tmp_path) == ["ab"]


def test_a_digest_that_was_found_to_be_wrong_is_forgotten_and_the_others_stay(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    right = [hashlib.sha256(name.encode()).hexdigest() for name in "ab"]
    stamps = digests._stamps([str(tmp_path / name) for name in "ab"])
    wrong = ["0" * 64, right[1]]
    digests._write(tmp_path / "digests.csv", ["a", "b"], stamps, wrong, time.time_ns() + 10**10)
    assert image_digests(tmp_path, ["a", "b"], tmp_path) == wrong
    digests.forget_digests(tmp_path, ["a", "none"])
    read = []
    assert image_digests(tmp_path, ["a", "b"], tmp_path, read.append) == right
    assert read == [1]
