"""How large a request may be, how slowly it may come, and how many at once; for ASGI.

It reads the body itself, so that no route ever sees one that is too large or not all there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from hubretrain.serving.counts import Counts

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_SECONDS_TO_LINGER = 2.0
_ROUTES = ("/predict", "/v1/models/", "/healthz", "/metrics")


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        n_bytes: Of a request's body.
        n_pixels: Of an image.
        seconds: For a body to arrive, and again for its answer.
        n_images: Inside at once; also requests with a body at once.
    """

    n_bytes: int = 32_000_000
    n_pixels: int = 40_000_000
    seconds: float = 30.0
    n_images: int = 128


class Limited:
    """An ASGI application behind the limits, counted."""

    def __init__(self, app: App, limits: Limits, counts: Counts) -> None:
        self._app, self._limits, self._counts = app, limits, counts
        self._n_bodies = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["method"] in ("POST", "PUT", "PATCH"):
                await self._with_body(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        finally:
            path = scope["path"]
            route = next((one for one in _ROUTES if path.startswith(one)), "other")
            self._counts.requests.labels(route, str(status)).inc()
            self._counts.seconds.labels(route).observe(time.perf_counter() - begun)

    async def _with_body(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        n_most = self._limits.n_bytes
        if self._n_bodies >= self._limits.n_images:
            await _refuse(receive, send, 503, "the server is busy; ask again in a moment")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > n_most:
            await _refuse(receive, send, 413, f"the body is too large; at most {n_most:,} bytes")
            return
        self._n_bodies += 1
        try:
            try:
                body = await asyncio.wait_for(_read(receive, n_most), self._limits.seconds)
            except asyncio.TimeoutError:
                sentence = f"the body did not arrive within {self._limits.seconds:g} s"
                await _refuse(receive, send, 408, sentence)
                return
            except _TooLargeError:
                sentence = f"the body is too large; at most {n_most:,} bytes"
                await _refuse(receive, send, 413, sentence)
                return
            if body is None:  # the client is gone
                return
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._n_bodies -= 1


class _TooLargeError(Exception):
    pass


async def _read(receive: Receive, n_most: int) -> bytes | None:
    parts, n_bytes = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        n_bytes += len(parts[-1])
        if n_bytes > n_most:
            raise _TooLargeError
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_told = False

    async def again() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(receive: Receive, send: Send, status: int, sentence: str) -> None:
    """Answers at once, then takes what still comes for a moment.

    Closing with bytes unread would reset the connection, and many clients would see that instead
    of the answer.
    """
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})

    async def rest() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), _SECONDS_TO_LINGER)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
