from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np

from hubretrain.bottlenecks import (
    Bottlenecks,
    BottleneckWriter,
    RowIndex,
    seal_file,
    shrink_file,
)
from tests.bottlenecks.samples import (
    ATTRIBUTES,
    N_FEATURES,
    fill,
    make,
    output_of,
    rows_of,
    sha256_of,
)
from tests.samples import REPOSITORY


def test_new_images_cost_their_own_forward_passes_and_the_file_is_as_if_made_at_once(tmp_path):
    make(tmp_path / "grown.h5", "bd")
    assert make(tmp_path / "grown.h5", "abcde") == 3 * 2
    make(tmp_path / "at_once.h5", "abcde")
    assert (tmp_path / "grown.h5").read_bytes() == (tmp_path / "at_once.h5").read_bytes()


def test_removed_images_drop_out_and_moved_ones_cost_nothing(tmp_path):
    path = tmp_path / "small.h5"
    make(path, "abcde")
    moved = RowIndex(
        ("new/e.png", "b.png"), (sha256_of("e"), sha256_of("b")), np.array([2, 2], np.int16)
    )
    with BottleneckWriter(path, moved, N_FEATURES, ATTRIBUTES) as writer:
        assert fill(writer) == 0
    with Bottlenecks(path) as bottlenecks:
        assert bottlenecks.paths == ["new/e.png", "b.png"]
        assert np.array_equal(bottlenecks.view(1)[0], output_of(sha256_of("e"), 1))


def test_more_views_compute_only_the_new_ones(tmp_path):
    path = tmp_path / "small.h5"
    make(path, n_views=1)
    assert make(path, n_views=3) == 5 * 2
    assert make(path, n_views=[3, 3, 5, 3, 3]) == 2


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_after_room_is_made(tmp_path):
    path = tmp_path / "small.h5"
    script = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from hubretrain.errors import CacheError\n"
        "from tests.bottlenecks.samples import make\n"
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
    assert "free disk space" in ran.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert make(path, range(300)) == 600


def test_shrinking_drops_images_that_are_gone_and_views_beyond_a_number(tmp_path):
    path = tmp_path / "small.h5"
    make(path, "abcde", 3)
    present = {sha256_of(name) for name in "abcd"}
    assert shrink_file(path, present, 2, dry_run=True).n_gone == 1
    shrinkage = shrink_file(path, present, 2, dry_run=False)
    assert (shrinkage.n_before, shrinkage.n_after) == (3, 2)
    assert shrinkage.n_bytes == (5 * 3 - 4 * 2) * N_FEATURES * 4
    assert shrink_file(path, present, 2, dry_run=False) is None
    seal_file(path)
    make(tmp_path / "at_once.h5", "abcd", 2)
    assert path.read_bytes() == (tmp_path / "at_once.h5").read_bytes()


def test_another_module_of_another_length_takes_the_place_of_the_file_only_if_told_to(tmp_path):
    path = tmp_path / "small.h5"
    make(path)
    attributes = {**ATTRIBUTES, "module_sha256": "other"}
    with BottleneckWriter(path, rows_of("abcde"), 9, attributes, overwrite=True) as writer:
        assert writer.todo.all()
    with Bottlenecks(path) as bottlenecks:
        assert bottlenecks.n_features == 9
