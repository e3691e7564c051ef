"""The serving stage: an export answers over HTTP."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import numpy as np

from hubretrain.errors import EngineError, RunError
from hubretrain.export import Export, Runtime, open_runtime
from hubretrain.files import StrPath
from hubretrain.serving.limits import ServeLimits

_BACKLOG = 1024  # connections that the system accepts before the server does
_KEEP_ALIVE_SECONDS = 30


def serve_export(
    export: StrPath,
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    name: str | None = None,
    format: str | None = None,
    limits: ServeLimits | None = None,
    ready: Callable[[str, str, str], object] = lambda _url, _name, _runtime: None,
) -> None:
    """Serve an export until the process is interrupted.

    Args:
        export: An export folder.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        name: Name of the model in the URLs; by default the name of its run.
        format: One of `hubretrain.export.runtimes.FORMATS`; by default LiteRT where the export
            has it.
        limits: Request limits of the server.
        ready: Called with the URL, the model's name and the runtime's name once the server
            listens.

    Raises:
        EngineError: The server, or the library that runs the format, is not installed.
        RunError: The folder holds no complete export, or the address is not available.

    Examples:
        >>> from hubretrain import serve_export
        >>> serve_export("runs/digits/export", port=8501)  # doctest: +SKIP
    """
    try:
        import uvicorn

        from hubretrain.serving.app import make_app
        from hubretrain.serving.connections import protocol
    except ImportError as error:
        raise EngineError(
            f"the server is not installed ({error}); install it with: "
            "pip install 'hubretrain[serve]'"
        ) from None
    opened = Export.open(export)
    name = name or opened.name
    limits = limits or ServeLimits()
    with _listen(host, port) as listener:
        runtime = open_runtime(opened, format)
        _warm_up(opened, runtime)
        config = uvicorn.Config(
            make_app(opened, runtime, name, limits),
            http=protocol(limits.timeout_seconds),
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            # For a body to arrive, for its answer, and for a moment.
            timeout_graceful_shutdown=int(2 * limits.timeout_seconds) + 2,
            limit_concurrency=limits.max_connections,
            backlog=_BACKLOG,
        )
        url_host = f"[{host}]" if ":" in host else host
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to stop it
            ready(f"http://{url_host}:{listener.getsockname()[1]}", name, runtime.name)
            uvicorn.Server(config).run(sockets=[listener])


def _warm_up(export: Export, runtime: Runtime) -> None:
    """Run the model once, so that a defect shows at the start and not to a client.

    Raises:
        RunError: The model cannot be run, or has another number of classes.
    """
    probs = runtime({size: np.zeros((1, size, size, 3), np.float32) for size in export.sizes})
    if probs.shape != (1, len(export.class_names)):
        raise RunError(
            f"{export.folder} holds a model of {probs.shape[-1]} classes and the names of "
            f"{len(export.class_names)}; export again."
        )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError, ValueError) as error:  # ValueError: no valid host name
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"cannot listen on {host}:{port} ({reason}); choose another `port` or `host`."
        ) from error
    return listener
