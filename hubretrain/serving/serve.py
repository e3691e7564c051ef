"""The serving stage: an export answers over HTTP."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hubretrain.errors import EngineError, RunError
from hubretrain.export import Export, Runtime, open_runtime
from hubretrain.serving.limits import Limits


def serve_export(
    export: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    name: str | None = None,
    format: str | None = None,
    limits: Limits | None = None,
    ready: Callable[[str, str, str], object] = lambda _url, _name, _engine: None,
) -> None:
    """Serves an export until it is told to stop.

    Args:
        export: An export folder.
        host: Address to listen at.
        port: 0 for any that is free.
        name: Of the model in its address; by default its run's.
        format: One of `runtimes.FORMATS`; by default LiteRT where it is there.
        limits: What the server takes.
        ready: Told the address, the model's name and what runs it, once the port is ours.

    Raises:
        EngineError: What serves, or runs that format, is not installed.
        RunError: There is no whole export there, or the port cannot be had.
    """
    try:
        import uvicorn

        from hubretrain.serving.app import make_app
        from hubretrain.serving.header_timeout import protocol
    except ImportError as error:
        raise EngineError(
            f"serving needs what is not installed ({error}); install it with: "
            "pip install 'hubretrain[serve]'"
        ) from None
    exported = Export.open(export)
    name = name or exported.name
    with _listening(host, port) as listener:
        runner = open_runtime(exported, format)
        _warm(exported, runner)
        limits = limits or Limits()
        config = uvicorn.Config(
            make_app(exported, runner, name, limits),
            http=protocol(limits.seconds),
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(limits.seconds) + 1,
            limit_concurrency=limits.n_connections,
            backlog=1024,
        )
        shown = f"[{host}]" if ":" in host else host
        with contextlib.suppress(KeyboardInterrupt):  # how it is told to stop
            ready(f"http://{shown}:{listener.getsockname()[1]}", name, runner.name)
            uvicorn.Server(config).run(sockets=[listener])


def _warm(exported: Export, runner: Runtime) -> None:
    """Runs the model once, so that what is wrong with it is told now and not to a client.

    Raises:
        RunError: It cannot be run, or says something of other classes.
    """
    said = runner({size: np.zeros((1, size, size, 3), np.float32) for size in exported.sizes})
    if said.shape != (1, len(exported.class_names)):
        raise RunError(
            f"{exported.folder} holds a model of {said.shape[-1]} classes and the names of "
            f"{len(exported.class_names)}; export again."
        )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError, ValueError) as error:  # ValueError: no name of a host
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{host}:{port} cannot be listened at ({reason}); choose another with --port or --host."
        ) from error
    return listener
