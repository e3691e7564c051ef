from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.dataset import open_dataset
from hubretrain.errors import HeadError, WorkerError
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.extraction.ray import Cluster, map_on_ray
from hubretrain.modules import resolve
from tests.samples import PATIENCE, REPOSITORY, write_digits


def squares():
    return lambda x: x * x


def dying_once():
    """Makes a worker that dies of the job 3 the first time that anyone is given it."""

    def do(job):
        number, folder = job
        if number == 3:
            try:
                (folder / "died").touch(exist_ok=False)
            except FileExistsError:
                return number
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return do


def deadly():
    return lambda _job: os.kill(os.getpid(), signal.SIGKILL)


def refusing():
    def do(_job):
        raise HeadError("this is refused.")

    return do


@pytest.fixture
def here_on_workers(monkeypatch):
    """Lets workers import this file."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_workers_do_every_job_with_few_of_them_waiting(here_on_workers):
    taken = []

    def jobs():
        for i in range(40):
            taken.append(i)
            yield i

    found = []
    for result in map_on_ray(squares, jobs(), Cluster(2)):
        found.append(result)
        assert len(taken) <= len(found) + 5
    assert sorted(found) == [i * i for i in range(40)]


@pytest.mark.slow  # half a minute of starting Ray
def test_a_worker_that_dies_is_replaced_and_its_job_done_again(here_on_workers, tmp_path):
    jobs = [(i, tmp_path) for i in range(8)]
    assert sorted(map_on_ray(dying_once, jobs, Cluster(2))) == list(range(8))
    assert (tmp_path / "died").exists()


@pytest.mark.slow  # half a minute of starting Ray
def test_a_job_that_kills_every_worker_ends_with_a_sentence(here_on_workers):
    with pytest.raises(WorkerError, match=r"3 workers died of the same job"):
        list(map_on_ray(deadly, [1], Cluster(1)))


def test_what_a_worker_raises_on_purpose_arrives_as_it_is(here_on_workers):
    with pytest.raises(HeadError, match=r"^this is refused.$"):
        list(map_on_ray(refusing, [1], Cluster(1)))


def refusing_to_start():
    raise HeadError("this worker does not start.")


def failing_to_start():
    raise ImportError("no module named that.")


@pytest.mark.slow  # half a minute of starting Ray
def test_a_worker_that_cannot_start_says_why_at_once(here_on_workers):
    with pytest.raises(HeadError, match=r"^this worker does not start.$"):
        list(map_on_ray(refusing_to_start, [1], Cluster(1)))
    with pytest.raises(WorkerError, match=r"^a worker cannot start: no module named that$"):
        list(map_on_ray(failing_to_start, [1], Cluster(1)))


def test_workers_fit_on_the_machines_of_a_cluster():
    from hubretrain.extraction.ray import _cpus_per_worker

    four = [{"Alive": True, "Resources": {"CPU": 8.0}}] * 4
    assert _cpus_per_worker(four, 2) == 8
    assert _cpus_per_worker(four, 5) == 4
    assert _cpus_per_worker([*four, {"Alive": False, "Resources": {"CPU": 64.0}}], 32) == 1
    with pytest.raises(WorkerError, match=r"`n_workers` is 33, but Ray has 32 CPUs; expected"):
        _cpus_per_worker(four, 33)


def test_an_address_where_nobody_speaks_ray_is_a_sentence_within_seconds():
    pytest.importorskip("ray")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        for address in (f"ray://127.0.0.1:{port}", f"127.0.0.1:{port}"):
            with pytest.raises(
                WorkerError, match=rf"{address}', which does not answer within 5 s; check"
            ):
                list(map_on_ray(squares, [1], Cluster(1, address)))
    with pytest.raises(WorkerError, match=r"'ray://' ?; expected auto, host:port or ray://host"):
        list(map_on_ray(squares, [1], Cluster(1, "ray://")))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match=r"install it with: pip install 'hubretrain\[ray\]'"):
        list(map_on_ray(squares, [1], Cluster(1)))


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_leaves_the_cache_bit_equal_to_the_serial_one(
    small_module, tmp_path
):
    pytest.importorskip("ray")
    digits = write_digits(tmp_path / "digits", 60)
    options = CacheOptions(n_views=50, minority_views=60, engine="tensorflow")
    (serial,) = cache_bottlenecks(
        open_dataset(digits), [resolve(str(small_module))], options, cache=tmp_path / "serial"
    )
    command = [sys.executable, "-m", "hubretrain", "cache", digits, "--module", small_module]
    command += [
        "--views",
        "50",
        "--minority-views",
        "60",
        "--workers",
        "2",
        "--engine",
        "tensorflow",
    ]
    command += ["--cache", tmp_path / "workers"]
    process = subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True)
    file = tmp_path / "workers" / "digits" / "small.h5"
    killed = None
    while process.poll() is None and killed is None:
        time.sleep(0.02)
        if file.exists():
            with Bottlenecks(file) as found:
                begun = not found.todo().all()
            if begun and (workers := workers_of(process.pid)):
                listening = addresses_listened_at(process.pid)
                killed = workers[0]
                os.kill(killed, signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert killed is not None
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}  # nobody else can send it jobs
    assert file.read_bytes() == serial.file.read_bytes()


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started, without those that have ended."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def workers_of(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):  # one may end in between
        return [p.pid for p in family(pid) if " ".join(p.cmdline()).startswith("ray::_Worker")]
    return []


def addresses_listened_at(pid: int) -> set[str]:
    sockets = [socket for process in family(pid) for socket in process.net_connections("tcp")]
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
