"""Interruptions at any line of the code: what is resumed ends bit-equal to what never stopped."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hubretrain
from hubretrain.bottlenecks import Bottlenecks, BottleneckWriter, RowIndex
from hubretrain.data.dataset import open_dataset
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.modules import resolve
from tests.samples import write_digits

HOUSE = str(Path(hubretrain.__file__).parent)
N_FEATURES = 5
FACTS = {"module": "m", "module_sha256": "m", "seed": 0}


class Stop:
    """Does something when the main thread comes to the n-th line of the package's code."""

    def __init__(self, n, action):
        self.left, self.action = n, action

    def __enter__(self):
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _enter(self, frame, _event, _argument):
        return self._line if frame.f_code.co_filename.startswith(HOUSE) else None

    def _line(self, _frame, event, _argument):
        self.left -= event == "line"
        if self.left == 0:
            self.action()
        return self._line


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


def wanted(names, n_views):
    sha256s = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    return RowIndex(tuple(names), tuple(sha256s), np.array(n_views, np.int16))


def fill(path, rows, order_seed):
    """Fills a bottleneck file in batches of a random order."""
    random = np.random.default_rng(order_seed)
    with BottleneckWriter(path, rows, N_FEATURES, FACTS) as writer:
        todo = random.permutation(np.argwhere(writer.todo))
        for first in range(0, len(todo), 7):
            r, v = todo[first : first + 7].T
            known = [f"{writer.rows.sha256[row]}{view}" for row, view in zip(r, v, strict=True)]
            features = [
                np.frombuffer(hashlib.sha256(k.encode()).digest()[:20], "u4") for k in known
            ]
            writer.write(v, r, np.array(features, dtype=np.float32))
        writer.seal()


def fill_until_killed(path, rows, order_seed, n_lines):
    with Stop(n_lines, kill):
        fill(path, rows, order_seed)


@settings(max_examples=20, deadline=None, database=None)
@given(
    kills=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    seeds=st.integers(0, 2**16),
    first=st.integers(0, 12),
    n_views=st.lists(st.integers(0, 4), min_size=12, max_size=12),
)
def test_a_file_killed_at_any_line_again_and_again_ends_bit_equal(kills, seeds, first, n_views):
    names = [f"image{i:02}" for i in range(12)]
    rows = wanted(names, n_views)
    few = wanted(names[:first], np.minimum(n_views[:first], 2))
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        straight, killed = Path(folder) / "straight.h5", Path(folder) / "killed.h5"
        fill(straight, rows, 0)
        for i, n_lines in enumerate(kills):
            asked = few if i == 0 else rows  # the first run had fewer images and views
            arguments = (killed, asked, seeds + i, n_lines)
            process = fork.Process(target=fill_until_killed, args=arguments)
            process.start()
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL)
            if killed.exists():
                with Bottlenecks(killed) as found:  # opens whenever it was killed
                    assert found.n_images in (len(few), len(rows))
        fill(killed, rows, seeds)
        assert killed.read_bytes() == straight.read_bytes()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_digits(tmp_path_factory.mktemp("images") / "digits", 30)
    (folder / "1" / "broken.png").write_bytes(b"no image")
    return folder


@settings(
    max_examples=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stops=st.lists(st.integers(1, 6000), min_size=1, max_size=5))
def test_the_command_interrupted_at_any_line_again_and_again_ends_bit_equal(
    stops, images, small_module
):
    dataset, modules = open_dataset(images), [resolve(str(small_module))]

    def run(folder):
        options = {"n_views": 2, "minority_views": 5, "engine": "tensorflow"}
        (found,) = cache_bottlenecks(dataset, modules, folder=Path(folder), **options)
        return found.file.read_bytes()

    with tempfile.TemporaryDirectory() as folder:
        straight = run(f"{folder}/straight")
        n_interrupted = 0
        for n_lines in stops:
            try:
                with Stop(n_lines, interrupt):
                    run(f"{folder}/interrupted")
            except KeyboardInterrupt:
                n_interrupted += 1
        assert n_interrupted or min(stops) > 1000
        assert run(f"{folder}/interrupted") == straight
