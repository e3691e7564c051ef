"""Extraction in several processes on Ray, on this machine or on a cluster.

This is the one door to [Ray](https://docs.ray.io), which is an extra: `hubretrain[ray]`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hubretrain._version import __version__
from hubretrain.errors import HubretrainError, WorkerError, first_line
from hubretrain.extraction.engines import BATCH_SIZE
from hubretrain.extraction.pipeline import Batch, Extractor, ImageTask, SkippedImage
from hubretrain.extraction.plan import Recipe
from hubretrain.modules import pack_folder, unpack_folder
from hubretrain.parallel import ahead
from hubretrain.storage import PRIVATE_ADDRESSES, is_remote, read_bytes

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)
JOBS_PER_WORKER = 2  # one that it does and one that waits, so that it never idles
MAX_DEATHS = 3  # workers that may die of one job
NO_WORKER_SECONDS = 300.0  # in which one has to start where there is none
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Cluster:
    """Number and place of the worker processes.

    Attributes:
        n_workers: Number of worker processes.
        ray_address: Address of a Ray cluster: `auto`, `host:port` or `ray://host:port`; by
            default Ray is started on this machine.
    """

    n_workers: int
    ray_address: str | None = None


def extract_on_ray(
    recipe: Recipe, images: Iterable[ImageTask], needed: Sequence[bool], cluster: Cluster
) -> Iterator[Batch | SkippedImage]:
    """Compute on workers the very bottlenecks that `pipeline.extract` computes in this process.

    Args:
        recipe: The modules and all else that the bottlenecks depend on.
        images: The images and the views to compute.
        needed: Whether each module of the recipe has a view to compute.
        cluster: The workers.

    Yields:
        The results, in any order.

    Raises:
        CacheError: A module gives NaN or infinite features.
        EngineError: An engine cannot run its module.
        ModuleError: A module cannot be loaded.
        WorkerError: See `map_on_ray`.
    """
    archives = [
        (pack_folder(spec.module.folder), pack_folder(spec.quantised) if spec.quantised else b"")
        if is_needed
        else None
        for spec, is_needed in zip(recipe.extractors, needed, strict=True)
    ]
    make_worker = functools.partial(_extracting, recipe, archives, __version__)
    for results in map_on_ray(make_worker, _jobs(images, recipe.batch_size or BATCH_SIZE), cluster):
        yield from results


def map_on_ray(
    make_function: Callable[[], Callable[[T], R]], jobs: Iterable[T], cluster: Cluster
) -> Iterator[R]:
    """Map a function over jobs in worker processes, a bounded number of jobs ahead.

    Each worker makes its function once and gets an equal share of the CPUs. Ray restarts a worker
    that dies and runs its jobs again.

    Args:
        make_function: Makes the function that does a job; sent to each worker once.
        jobs: The jobs, taken as workers become free.
        cluster: The workers.

    Yields:
        The results, in any order.

    Raises:
        WorkerError: Ray is not installed, the cluster does not answer, or the workers of one job
            die again and again.
        HubretrainError: What the function raised in a worker.
    """
    ray = _connected(cluster)
    try:
        # Modules of hundreds of MB are stored once for all workers.
        pool = _Pool(ray, ray.put(make_function), cluster.n_workers)
        for job in jobs:
            while not pool.has_room:
                yield from pool.results()
            pool.submit(job)
        while pool.is_busy:
            yield from pool.results()
    finally:
        ray.shutdown()


class _Pool:
    """Workers and the jobs that they were given; the jobs of one that dies go to the others.

    Ray could restart a worker itself and repeat its jobs, but where its machine is gone and no
    other has room these would wait for ever.

    Args:
        ray: The library.
        stored: Reference to what makes the function of a worker.
        n_workers: Number of workers.
    """

    def __init__(self, ray: Any, stored: Any, n_workers: int) -> None:
        self._ray, self._stored = ray, stored
        self._actor = _actor(ray, n_workers)
        self._loads: dict[Any, int] = {}  # of the workers that have started
        self._starting: dict[Any, Any] = {}  # by what they answer once they have
        self._running: dict[Any, tuple[Any, Any, int]] = {}  # result to job, worker, deaths
        self._waiting: list[tuple[Any, int]] = []  # jobs of workers that died
        for _ in range(n_workers):
            self._start()

    @property
    def has_room(self) -> bool:
        """Whether a worker can be given another job: one that it does and one that waits."""
        return not self._waiting and any(n < JOBS_PER_WORKER for n in self._loads.values())

    @property
    def is_busy(self) -> bool:
        """Whether a job is not done."""
        return bool(self._running or self._waiting)

    def submit(self, job: Any, n_deaths: int = 0) -> None:
        """Give a job to the worker that has the fewest."""
        worker = min(self._loads, key=lambda worker: self._loads[worker])
        self._loads[worker] += 1
        self._running[worker.do.remote([self._stored], job)] = (job, worker, n_deaths)

    def results(self) -> Iterator[Any]:
        """Wait until a worker has started, finished a job or died; yield the result of a job."""
        pending = [*self._running, *self._starting]
        limit = None if self._loads else NO_WORKER_SECONDS
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=limit)
        if not ready:
            raise WorkerError(
                f"no machine of the cluster had room for a worker in {NO_WORKER_SECONDS:g} s; "
                "check with `ray status` that the cluster runs, and run the command again."
            )
        if ready[0] in self._starting:
            self._join(ready[0])
        else:
            yield from self._finish(ready[0])
        while self._waiting and any(n < JOBS_PER_WORKER for n in self._loads.values()):
            self.submit(*self._waiting.pop())

    def _start(self) -> None:
        worker = self._actor.remote()
        self._starting[worker.answer.remote()] = worker

    def _join(self, answer: Any) -> None:
        """Let a worker that has started take part; another is started for one that died first."""
        worker = self._starting.pop(answer)
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                reason = str(error).strip().splitlines()[-1]
                raise WorkerError(f"a worker cannot start: {reason}") from error
            self._start()
        else:
            self._loads[worker] = 0

    def _finish(self, result: Any) -> Iterator[Any]:
        """Yield the result of a job; where its worker died, let another do it again."""
        job, worker, n_deaths = self._running.pop(result)
        exceptions = self._ray.exceptions
        try:
            value = self._ray.get(result)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, HubretrainError):
                raise error.cause from None
            raise
        except (exceptions.RayActorError, exceptions.ObjectLostError) as error:
            if n_deaths + 1 == MAX_DEATHS:
                raise WorkerError(
                    f"{MAX_DEATHS} workers died of the same job ({first_line(error)}); "
                    "if memory is short, decrease `n_workers`."
                ) from error
            is_dead = isinstance(error, exceptions.RayActorError)
            if is_dead and self._loads.pop(worker, None) is not None:
                _log.warning(
                    "a worker died (%s): the others do its jobs, and another is started where "
                    "there is room.",
                    first_line(error),
                )
                self._start()
            self._waiting.append((job, n_deaths + 1))
        else:
            yield value
        if worker in self._loads:
            self._loads[worker] -= 1


class _Worker:
    """Ray actor that makes its function at its first job and does all its jobs with it."""

    def __init__(self) -> None:
        self._function: Callable[[Any], Any] | None = None

    def answer(self) -> None:
        """Return: the worker has started."""

    def do(self, stored: Sequence[Any], job: Any) -> Any:
        """Do one job.

        Args:
            stored: One reference to what makes the function.
            job: The job.
        """
        if self._function is None:
            self._function = self._made(stored)
        return self._function(job)

    @staticmethod
    def _made(stored: Sequence[Any]) -> Callable[[Any], Any]:
        import ray

        try:
            function: Callable[[Any], Any] = ray.get(stored[0])()
        except HubretrainError:
            raise
        except Exception as error:  # such as a library that this machine does not have
            raise WorkerError(f"a worker cannot start: {first_line(error)}") from error
        return function


def _actor(ray: Any, n_workers: int) -> Any:
    """Return what starts a worker."""
    n_cpus = _cpus_per_worker(ray.nodes(), n_workers)
    # TensorFlow and OpenVINO take every CPU of the machine unless they are told.
    variables = {"TF_NUM_INTRAOP_THREADS": str(n_cpus), "OMP_NUM_THREADS": str(n_cpus)}
    variables[PRIVATE_ADDRESSES] = os.environ.get(PRIVATE_ADDRESSES, "")
    return ray.remote(_Worker).options(num_cpus=n_cpus, runtime_env={"env_vars": variables})


def _cpus_per_worker(nodes: Sequence[dict[str, Any]], n_workers: int) -> int:
    """Return the most CPUs that every worker can have if each must fit on one machine."""
    counts = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    for share in range(max(counts, default=0), 0, -1):
        if sum(count // share for count in counts) >= n_workers:
            return share
    raise WorkerError(
        f"`n_workers` is {n_workers}, but Ray has {sum(counts)} CPUs; expected at most as many "
        "workers as CPUs."
    )


def _connected(cluster: Cluster) -> Any:
    """Import Ray, start it or connect it to the cluster, and return the library."""
    # Else Ray hides the GPU from workers that ask for none, and warns that this will change.
    variables = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if cluster.ray_address is None:
        # Ray, which reads this when it is imported, then listens on the loopback address only, as
        # it does on macOS: else anyone on the network could send it jobs.
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with _environment(variables):
        return _started(cluster)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set those variables of the environment within the block that are not set."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _started(cluster: Cluster) -> Any:
    """Do what `_connected` does, in its environment."""
    try:
        import ray
    except ImportError:
        raise WorkerError(
            "`n_workers` needs Ray, which is not installed; install it with: "
            "pip install 'hubretrain[ray]'"
        ) from None
    address = cluster.ray_address
    if address is not None and address != "auto":
        _check_answers(address)
    try:
        local = {} if address else {"num_cpus": max(os.cpu_count() or 1, cluster.n_workers)}
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
            **local,
        )
    except Exception as error:  # Ray raises many types
        reason = first_line(error)
        where = f"`ray_address` is {address!r}, which" if address else "Ray on this machine"
        raise WorkerError(
            f"{where} cannot be used ({reason}); start a cluster with: ray start --head"
        ) from error
    return ray


def _check_answers(address: str) -> None:
    """Raise within seconds if nobody listens, where Ray itself would wait for minutes."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port or 10001
    except ValueError:
        host = None
    if not host:
        raise WorkerError(
            f"`ray_address` is {address!r}; expected auto, host:port or ray://host:port."
        )
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    import grpc  # which Ray and TensorFlow speak

    channel = grpc.insecure_channel(f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=_ANSWER_SECONDS)
    except grpc.FutureTimeoutError:
        raise WorkerError(
            f"`ray_address` is {address!r}, which does not answer within {_ANSWER_SECONDS:g} s; "
            "check with `ray status` that the cluster runs."
        ) from None
    finally:
        channel.close()


def _extracting(
    recipe: Recipe, archives: Sequence[tuple[bytes, bytes] | None], version: str
) -> Callable[[list[ImageTask]], list[Batch | SkippedImage]]:
    """Make what a worker does: it holds the modules, and decodes and forwards the images of a job.

    Runs in the worker.

    Args:
        recipe: The recipe.
        archives: Of each module that is needed, its folder and that of its quantised model,
            packed.
        version: The version of hubretrain that the command runs.

    Raises:
        WorkerError: The worker has another version of hubretrain.
    """
    if version != __version__:
        raise WorkerError(
            f"a worker runs hubretrain {__version__}, the command {version}; install the same "
            "version on every machine."
        )
    specs = []
    for spec, archive in zip(recipe.extractors, archives, strict=True):
        if archive is not None:
            module = replace(spec.module, folder=unpack_folder(archive[0]))
            quantised = unpack_folder(archive[1]) if archive[1] else None
            spec = replace(spec, module=module, quantised=quantised)
        specs.append(spec)
    needed = [archive is not None for archive in archives]
    extractor = Extractor(replace(recipe, extractors=tuple(specs)), needed)
    return lambda images: list(extractor.run(images))


def _jobs(images: Iterable[ImageTask], batch_size: int) -> Iterator[list[ImageTask]]:
    """Cut the images into jobs of whole batches, nearly: what is left over is padded."""
    job: list[ImageTask] = []
    n_forward = 0
    for image, data in ahead(_read, images):
        job.append(replace(image, data=data))
        n_forward += max(map(len, image.views))
        if n_forward % batch_size == 0 or n_forward >= 8 * batch_size:
            yield job
            job, n_forward = [], 0
    if job:
        yield job


def _read(image: ImageTask) -> bytes | None:
    """Return the bytes of a local file; None where the worker is to read it itself.

    That is a remote file, or one that cannot be read here.
    """
    if is_remote(image.path):
        return None
    try:
        return read_bytes(image.path)
    except OSError:
        return None
