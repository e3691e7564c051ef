"""The same function over many jobs: in threads here, or in processes on Ray.

This is the one door to `Ray <https://docs.ray.io>`_, which is an extra: `hubretrain[ray]`.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from hubretrain.errors import HubretrainError, WorkerError, first_line

T = TypeVar("T")
R = TypeVar("R")

JOBS_AHEAD = 2  # jobs that a worker has: one to do and one to wait
MAX_DEATHS = 3
_SECONDS_TO_ANSWER = 5.0


def ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    n_ahead: int | None = None,
    n_threads: int | None = None,
) -> Iterator[tuple[T, R]]:
    """Maps with threads, in order, a bounded number of items ahead, so that memory stays flat.

    Args:
        function: What to do; it should spend its time where Python lets other threads run.
        items: What to do it to.
        n_ahead: Results that may wait to be taken; by default 16 a thread.
        n_threads: By default half of the processors: with more, the forward pass that goes on
            beside them is slowed by more than they gain (seen on two processors, in few and
            noisy rounds).

    Yields:
        Each item with its result.
    """
    n_threads = n_threads or max(1, (os.cpu_count() or 1) // 2)
    waiting: collections.deque[tuple[T, Future[R]]] = collections.deque()
    pool = ThreadPoolExecutor(n_threads)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > (n_ahead or 16 * n_threads):
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Cluster:
    """Where workers run.

    Attributes:
        n_workers: How many.
        address: Of a Ray cluster: `auto`, `host:port` or `ray://host:port`; by default a
            Ray of its own on this machine.
    """

    n_workers: int
    address: str | None = None


def on_ray(
    make_worker: Callable[[], Callable[[T], R]], jobs: Iterable[T], cluster: Cluster
) -> Iterator[R]:
    """Maps with processes on Ray, as results come, a bounded number of jobs ahead.

    Each worker makes its function once and is given a share of the processors. One that dies is
    replaced, and what it had is done again.

    Args:
        make_worker: Makes the function that does a job; sent to each worker once.
        jobs: Taken as workers become free.
        cluster: Where, and how many.

    Yields:
        The results, in any order.

    Raises:
        WorkerError: Ray is not installed, the cluster does not answer, or one job's workers die
            again and again.
        HubretrainError: What a worker raised.
    """
    ray = _connected(cluster)
    try:
        workers = _Workers(ray, make_worker, cluster)
        for job in jobs:
            while not workers.has_room:
                yield from workers.results()
            workers.give(job)
        while workers.doing:
            yield from workers.results()
    finally:
        ray.shutdown()


def _connected(cluster: Cluster) -> Any:
    """Imports Ray and connects it."""
    try:
        import ray
    except ImportError:
        raise WorkerError(
            "--workers needs Ray, which is not installed; install it with: "
            "pip install 'hubretrain[ray]'"
        ) from None
    address = cluster.address
    if address is not None and address != "auto":
        _answers(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        here = {} if address else {"num_cpus": max(os.cpu_count() or 1, cluster.n_workers)}
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
            **here,
        )
    except Exception as error:  # Ray raises many types
        reason = first_line(error)
        where = f"--ray-address {address}" if address else "a Ray on this machine"
        raise WorkerError(
            f"{where} cannot be used ({reason}); start a cluster with: ray start --head"
        ) from error
    return ray


def _answers(address: str) -> None:
    """Raises within seconds if nobody listens, where Ray itself would wait for minutes."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port or 10001
    except ValueError:
        host = None
    if not host:
        raise WorkerError(
            f"--ray-address is {address!r}; expected auto, host:port or ray://host:port."
        )
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    import grpc  # which Ray and TensorFlow speak

    channel = grpc.insecure_channel(f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=_SECONDS_TO_ANSWER)
    except grpc.FutureTimeoutError:
        raise WorkerError(
            f"--ray-address {address} does not answer within {_SECONDS_TO_ANSWER:g} s; check "
            "with ray status that the cluster runs."
        ) from None
    finally:
        channel.close()


@dataclass
class _Job(Generic[T]):
    content: T
    worker: Any
    n_deaths: int = 0


class _Workers(Generic[T, R]):
    """Ray actors, what each is doing, and the replacement of those that die."""

    def __init__(self, ray: Any, make_worker: Callable[[], Callable[[T], R]], cluster: Cluster):
        self.ray = ray
        self._n_processors = _share(ray.nodes(), cluster.n_workers)
        self._make_worker = ray.put(make_worker)  # once for all of them
        self._actor = ray.remote(_Worker)
        self.workers = [self._started() for _ in range(cluster.n_workers)]
        self.doing: dict[Any, _Job[T]] = {}

    def _started(self) -> Any:
        # TensorFlow takes every processor of the machine unless it is told.
        threads = str(self._n_processors)
        environment = {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}
        options = {"num_cpus": self._n_processors, "runtime_env": {"env_vars": environment}}
        return self._actor.options(**options).remote(self._make_worker)

    @property
    def has_room(self) -> bool:
        """Whether some worker can take a job."""
        return len(self.doing) < JOBS_AHEAD * len(self.workers)

    def give(self, content: T, n_deaths: int = 0) -> None:
        """Gives a job to the worker that has least to do."""
        counts = collections.Counter(id(job.worker) for job in self.doing.values())
        worker = min(self.workers, key=lambda one: counts[id(one)])
        self.doing[worker.do.remote(content)] = _Job(content, worker, n_deaths)

    def results(self) -> Iterator[R]:
        """Waits for a job and yields its result; a job whose worker died is given again."""
        (done,), _ = self.ray.wait(list(self.doing), num_returns=1)
        job = self.doing.pop(done)
        try:
            yield self.ray.get(done)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, HubretrainError):
                raise cause from None
            raise
        except self.ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                reason = str(error).strip().splitlines()[-1]
                raise WorkerError(f"a worker cannot begin: {reason}") from error
            if job.n_deaths + 1 == MAX_DEATHS:
                raise WorkerError(
                    f"{MAX_DEATHS} workers died of the same job ({first_line(error)}); "
                    "if memory is short, choose fewer --workers."
                ) from error
            if job.worker in self.workers:
                self.workers[self.workers.index(job.worker)] = self._started()
            self.give(job.content, job.n_deaths + 1)


def _share(nodes: Sequence[dict[str, Any]], n_workers: int) -> int:
    """The most processors that each worker can have, if every one is to fit on some machine."""
    processors = [int(n["Resources"].get("CPU", 0)) for n in nodes if n["Alive"]]
    for share in range(max(processors, default=0), 0, -1):
        if sum(n // share for n in processors) >= n_workers:
            return share
    raise WorkerError(
        f"--workers is {n_workers}, but Ray has {sum(processors)} processors; ask for fewer."
    )


class _Worker:
    """The actor: makes its function once, then does jobs."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._function = make_worker()

    def do(self, job: Any) -> Any:
        """Does one job."""
        return self._function(job)
