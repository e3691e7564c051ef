"""A cluster of three machines, as processes here, of which one dies in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data import open_dataset
from hubretrain.extraction import Cluster, slice_file
from hubretrain.extraction.ray import map_on_ray
from hubretrain.racing import RaceOptions, race_modules
from tests.samples import PATIENCE, REPOSITORY, write_digits, write_pooled

pytestmark = pytest.mark.slow  # a minute each of starting Ray


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three machines with one CPU each, the first being where the driver runs."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Machines

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # so that workers can import this file
    often = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": often}
    cluster = Machines(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def kill_one(machines: Any) -> None:
    """Kill a machine with its worker, of which the others have no room for another."""
    machines.remove_node(machines.list_all_nodes()[-1], allow_graceful=False)


def slow_squares() -> Callable[[int], int]:
    def do(number: int) -> int:
        time.sleep(0.5)
        return number * number

    return do


def test_the_jobs_of_a_machine_that_dies_are_done_by_the_others(machines: Any) -> None:
    results = []
    for result in map_on_ray(slow_squares, range(30), Cluster(3, machines.address)):
        results.append(result)
        if len(results) == 6:
            kill_one(machines)
    assert sorted(results) == [i * i for i in range(30)]


def test_a_machine_that_dies_in_a_race_costs_its_batches_only(
    machines: Any, tmp_path: Path
) -> None:
    dataset = open_dataset(write_digits(tmp_path / "digits", 500))
    module = str(write_pooled(tmp_path / "pooled", size=256))
    options = RaceOptions(first=400, engine="tensorflow")
    alone = race_modules(dataset, [module], tmp_path / "a", options, cache=tmp_path / "alone")
    file = slice_file(tmp_path / "together" / "digits", "pooled")
    seen: list[int] = []

    def kill_in_the_middle() -> None:
        until = time.monotonic() + PATIENCE
        while not seen and time.monotonic() < until:
            time.sleep(0.02)
            if file.exists():
                with Bottlenecks(file) as bottlenecks:
                    n_todo = int(bottlenecks.todo().sum())
                    if 0 < n_todo < bottlenecks.n_images:
                        seen.append(n_todo)
        kill_one(machines)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    cluster = Cluster(3, machines.address)
    together = race_modules(
        dataset, [module], tmp_path / "b", options, cache=file.parents[2], cluster=cluster
    )
    killer.join()
    assert seen, "the features were there before a machine could be killed"
    assert together.rungs[0].estimates == alone.rungs[0].estimates
    with (
        Bottlenecks(file) as one,
        Bottlenecks(slice_file(tmp_path / "alone" / "digits", "pooled")) as other,
    ):
        assert one.sha256s == other.sha256s
        assert np.array_equal(one.view(0, "all")[:], other.view(0, "all")[:])
