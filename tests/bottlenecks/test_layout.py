from __future__ import annotations

import hashlib

import h5py
import numpy as np
import pytest

from hubretrain.bottlenecks import (
    Bottlenecks,
    bottleneck_files,
)
from hubretrain.errors import CacheError
from tests.bottlenecks.samples import (
    make,
    sha256_of,
)


def test_the_file_is_plain_hdf5_as_its_documentation_says(tmp_path):
    make(tmp_path / "small.h5")
    with h5py.File(tmp_path / "small.h5") as file:
        assert sorted(file) == ["digests", "images", "seal", "view_000", "view_001"]
        assert file["images/path"].asstr()[2] == "c.png"
        assert file["images/sha256"][2].decode() == sha256_of("c")
        assert file["view_001"].dtype == np.float32
        assert file["view_000"].chunks is None
        assert file.attrs["format_version"] == 2
        content = file["view_000"][:].tobytes()
        assert file["digests"][0].decode() == hashlib.sha256(content).hexdigest()


def test_a_file_that_is_no_bottleneck_file_is_refused(tmp_path):
    path = tmp_path / "small.h5"
    path.write_bytes(b"something else")
    with pytest.raises(
        CacheError, match=r"is damaged \(its first bytes are no digest\); repair it by `hubr"
    ):
        Bottlenecks(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(CacheError, match=r"no bottleneck file of format version 2"):
        Bottlenecks(path)
    with pytest.raises(CacheError, match=r"nothing.h5 does not exist; run `hubretrain cache`"):
        Bottlenecks(tmp_path / "nothing.h5")


def test_the_files_of_a_folder_are_found_without_those_that_are_being_written(tmp_path):
    with pytest.raises(CacheError, match=r"holds no bottlenecks; run `hubretrain cache` first"):
        bottleneck_files(tmp_path, recursive=True)
    for name in ("b.h5", "a.h5", ".a.h5", "parts/a.1-of-2.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.name for path in bottleneck_files(tmp_path)]
    assert names == ["a.h5", "b.h5"]
    assert len(bottleneck_files(tmp_path, recursive=True)) == 3
