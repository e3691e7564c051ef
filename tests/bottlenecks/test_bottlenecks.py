from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks, BottleneckWriter, RowIndex
from hubretrain.errors import CacheError, LockedError, WriteError
from tests.samples import REPOSITORY

FACTS = {
    "module": "small",
    "handle": "h",
    "module_sha256": "m",
    "image_size": 8,
    "value_range": "[0, 1]",
    "resize": "r",
    "engine": "tensorflow",
    "precision": "f32",
    "crop": 0.5,
    "seed": 0,
}
N_FEATURES = 6


def sha(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


def rows_of(names, n_views=2):
    n = n_views if isinstance(n_views, list) else [n_views] * len(names)
    return RowIndex(tuple(f"{x}.png" for x in names), tuple(map(sha, names)), np.array(n, np.int16))


def feature(sha256, view):
    seed = int.from_bytes(hashlib.sha256(f"{sha256}{view}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).random(N_FEATURES, np.float32)


def fill(writer, at_most=None):
    """Computes what is to do, one row at a time, and returns how many it computed."""
    count = 0
    for row, v in np.argwhere(writer.todo).tolist():
        if at_most is not None and count >= at_most:
            return count
        writer.write([v], [row], feature(writer.rows.sha256[row], v)[None])
        count += 1
    writer.seal()
    return count


def make(path, names="abcde", n_views=2, **options):
    facts = {**FACTS, **options.pop("facts", {})}
    with BottleneckWriter(path, rows_of(names, n_views), N_FEATURES, facts, **options) as writer:
        return fill(writer)


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "small.h5"
    assert make(path) == 10
    with Bottlenecks(path) as found:
        assert (found.n_images, found.n_views, found.n_features) == (5, 2, N_FEATURES)
        assert found.attributes["module_sha256"] == "m"
        wanted = [sha("d"), sha("a"), sha("d")]
        assert np.array_equal(found.rows(wanted, 1), [feature(s, 1) for s in wanted])
        assert found.verify() == []


def test_the_file_is_plain_hdf5_as_its_documentation_says(tmp_path):
    make(tmp_path / "small.h5")
    with h5py.File(tmp_path / "small.h5") as file:
        assert sorted(file) == ["digests", "images", "view_000", "view_001"]
        assert file["images/path"].asstr()[2] == "c.png"
        assert file["images/sha256"][2].decode() == sha("c")
        assert file["view_001"].dtype == np.float32
        assert file["view_000"].chunks is None
        assert file.attrs["format_version"] == 1
        content = file["view_000"][:].tobytes()
        assert file["digests"][0].decode() == hashlib.sha256(content).hexdigest()


def test_a_finished_file_needs_nothing(tmp_path):
    path = tmp_path / "small.h5"
    make(path)
    before = path.read_bytes(), path.stat().st_ino
    assert make(path) == 0
    assert (path.read_bytes(), path.stat().st_ino) == before


def test_new_images_cost_their_own_forward_passes_and_the_file_is_as_if_made_at_once(tmp_path):
    make(tmp_path / "grown.h5", "bd")
    assert make(tmp_path / "grown.h5", "abcde") == 3 * 2
    make(tmp_path / "at_once.h5", "abcde")
    assert (tmp_path / "grown.h5").read_bytes() == (tmp_path / "at_once.h5").read_bytes()


def test_removed_images_drop_out_and_moved_ones_cost_nothing(tmp_path):
    path = tmp_path / "small.h5"
    make(path, "abcde")
    moved = RowIndex(("new/e.png", "b.png"), (sha("e"), sha("b")), np.array([2, 2], np.int16))
    with BottleneckWriter(path, moved, N_FEATURES, FACTS) as writer:
        assert fill(writer) == 0
    with Bottlenecks(path) as found:
        assert found.paths == ["new/e.png", "b.png"]
        assert np.array_equal(found.view(1)[0], feature(sha("e"), 1))


def test_more_views_compute_only_the_new_ones(tmp_path):
    path = tmp_path / "small.h5"
    make(path, n_views=1)
    assert make(path, n_views=3) == 5 * 2
    assert make(path, n_views=[3, 3, 5, 3, 3]) == 2


def test_float16_halves_the_file(tmp_path):
    make(tmp_path / "full.h5", "abcdefgh" * 1, 4)
    make(tmp_path / "half.h5", "abcdefgh" * 1, 4, dtype=np.float16)
    with Bottlenecks(tmp_path / "half.h5") as half, Bottlenecks(tmp_path / "full.h5") as full:
        assert half.view(0).dtype == np.float16
        assert np.abs(half.rows([sha("c")]) - full.rows([sha("c")])).max() < 1e-3


@pytest.mark.parametrize(("fact", "kept"), [("seed", 5), ("crop", 5), ("module_sha256", 0)])
def test_other_settings_are_refused_and_overwriting_keeps_what_still_holds(tmp_path, fact, kept):
    path = tmp_path / "small.h5"
    make(path)
    before = path.read_bytes()
    with pytest.raises(CacheError, match=rf"was made with {fact} = .*, now 9 is asked for; use"):
        make(path, facts={fact: 9})
    assert path.read_bytes() == before
    assert make(path, facts={fact: 9}, overwrite=True) == 10 - kept


def test_a_cache_of_another_data_set_is_refused(tmp_path):
    make(tmp_path / "small.h5", "abc")
    with pytest.raises(CacheError, match=r"holds 3 images of another data set, none of this one"):
        make(tmp_path / "small.h5", "xyz")


def test_a_second_writer_is_told_who_holds_the_file(tmp_path):
    path = tmp_path / "small.h5"
    with (
        BottleneckWriter(path, rows_of("ab"), N_FEATURES, FACTS),
        pytest.raises(LockedError, match=rf"being written by process {os.getpid()} on .*; wait"),
    ):
        make(path, "ab")
    make(path, "ab")
    assert [p.name for p in tmp_path.iterdir()] == ["small.h5"]


def test_unfinished_rows_and_unknown_images_are_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "small.h5"
    with BottleneckWriter(path, rows_of("abc"), N_FEATURES, FACTS) as writer:
        fill(writer, at_most=3)
    with Bottlenecks(path) as found:
        with pytest.raises(CacheError, match=r"view 0 is not finished \(1 of 3 images are still"):
            found.rows([sha("a"), sha("b"), sha("c")])
        with pytest.raises(
            CacheError, match=r"no row for an image .*hubretrain cache --module small"
        ):
            found.rows([sha("z")])
        assert found.todo().sum() == 3
        assert "rows to do" in found.verify()[0]


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "small.h5"
    make(path)
    with h5py.File(path) as file:
        offset = file["view_001"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + 21] ^= 1
    path.write_bytes(data)
    with Bottlenecks(path) as found:
        (wrong,) = found.verify()
    assert wrong.startswith("view_001: its bytes are not those that were written; remove the file")


def test_an_undecodable_image_is_not_to_do_as_long_as_that_is_said(tmp_path):
    path = tmp_path / "small.h5"
    with BottleneckWriter(path, rows_of("abc"), N_FEATURES, FACTS) as writer:
        writer.quarantine(1)
        assert fill(writer) == 4
    assert make(path, "abc", [2, 0, 2]) == 0
    assert make(path, "abcd", [2, 0, 2, 2]) == 2
    with Bottlenecks(path) as found:
        assert found.n_views_of.tolist() == [2, 0, 2, 2]
        assert found.verify() == []
    assert make(path, "abcd") == 2  # nobody says so any more: it is tried again


def _fill_slowly(path):
    with BottleneckWriter(path, rows_of(range(300)), N_FEATURES, FACTS) as writer:
        fill(writer)


def test_a_killed_writer_loses_only_its_batch_and_the_end_is_bit_equal(tmp_path):
    make(tmp_path / "straight.h5", range(300))
    path = tmp_path / "killed.h5"
    done = []
    for delay in (0.02, 0.05, 0.01, 0.08, 0.03):
        process = multiprocessing.get_context("fork").Process(target=_fill_slowly, args=(path,))
        process.start()
        while process.is_alive() and not path.exists():
            pass
        process.join(delay)
        os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
        process.join()
        with Bottlenecks(path) as found:
            done.append(600 - int(found.todo().sum()))
    assert done == sorted(done)
    _fill_slowly(path)
    assert path.read_bytes() == (tmp_path / "straight.h5").read_bytes()


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_after_room_is_made(tmp_path):
    path = tmp_path / "small.h5"
    script = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from tests.bottlenecks.test_bottlenecks import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try: make(sys.argv[1], range(300))\n"
        "except CacheError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, path, str(REPOSITORY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot be written (File too large)" in ran.stdout, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "make room" in ran.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert make(path, range(300)) == 600


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"cannot be written .*or choose another folder"):
        make(tmp_path / "file" / "small.h5")


def test_a_file_that_is_no_bottleneck_file_is_refused(tmp_path):
    path = tmp_path / "small.h5"
    path.write_bytes(b"something else")
    with pytest.raises(CacheError, match=r"cannot be opened as HDF5 .*remove it and cache again"):
        Bottlenecks(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(CacheError, match=r"no bottleneck file of format version 1"):
        Bottlenecks(path)
    with pytest.raises(CacheError, match=r"nothing.h5 does not exist; make it with: hubretrain"):
        Bottlenecks(tmp_path / "nothing.h5")
