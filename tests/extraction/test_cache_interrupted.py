"""Interruptions at any line of the code: what is resumed ends bit-equal to what never stopped."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.dataset import open_dataset
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.modules import resolve
from tests.extraction import interruption
from tests.extraction.interruption import LAYERS, Stop, fill, fill_until_killed, interrupt, wanted
from tests.samples import write_digits


@pytest.fixture(scope="module")
def forkserver():
    """Makes processes by forking one without threads: beside threads a fork may deadlock."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", interruption.__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        ensure_running()
    return context


@settings(max_examples=20, database=None)
@given(
    kills=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    seeds=st.integers(0, 2**16),
    first=st.integers(0, 12),
    n_views=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    n_without_layers=st.one_of(st.none(), st.integers(0, 3)),
)
def test_a_file_killed_at_any_line_again_and_again_ends_bit_equal(
    forkserver, kills, seeds, first, n_views, n_without_layers
):
    names = [f"image{i:02}" for i in range(12)]
    rows = wanted(names, n_views)
    few = wanted(names[:first], np.minimum(n_views[:first], 2))
    with tempfile.TemporaryDirectory() as folder:
        straight, killed = Path(folder) / "straight.h5", Path(folder) / "killed.h5"
        layers = None if n_without_layers is None else LAYERS
        fill(straight, rows, 0, layers)
        n_done = 0
        for i, n_lines in enumerate(kills):
            asked = few if i == 0 else rows  # the first run had fewer images and views
            layers_now = None if i < (n_without_layers or 0) else layers
            arguments = (killed, asked, seeds + i, layers_now, n_lines)
            process = forkserver.Process(target=fill_until_killed, args=arguments)
            process.start()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if killed.exists():
                with Bottlenecks(killed) as bottlenecks:  # opens whenever it was killed
                    assert bottlenecks.n_images in (len(few), len(rows))
                    before = n_done
                    todo = bottlenecks.todo("last")
                    n_done = int(bottlenecks.n_views_of.sum() - todo.sum())
                    assert n_done >= before  # what was written stays
        fill(killed, rows, seeds, layers)
        assert killed.read_bytes() == straight.read_bytes()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_digits(tmp_path_factory.mktemp("images") / "digits", 30)
    (folder / "1" / "broken.png").write_bytes(b"no image")
    return folder


@settings(
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stops=st.lists(st.integers(1, 6000), min_size=1, max_size=5))
def test_the_command_interrupted_at_any_line_again_and_again_ends_bit_equal(
    stops, images, small_module
):
    dataset, modules = open_dataset(images), [resolve(str(small_module))]

    def run(folder):
        options = CacheOptions(n_views=2, minority_views=5, engine="tensorflow")
        (found,) = cache_bottlenecks(dataset, modules, options, cache=Path(folder))
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
