"""How large a request may be, how slowly it may come, and how many at once; for ASGI.

It reads the body itself, so that no route ever sees one that is too large or not all there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hubretrain.serving.limits import Limits
from hubretrain.serving.prometheus import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_SECONDS_TO_LINGER = 2.0
_CLIENT_IS_GONE = 499  # as nginx counts it
_BUSY = "the server is busy; ask again in a moment"
_ROUTES = ("/predict", "/v1/models/", "/healthz", "/metrics")


class BodyLimits:
    """An ASGI application behind the limits, counted."""

    def __init__(self, app: App, limits: Limits, counts: Metrics) -> None:
        self._app, self._limits, self._counts = app, limits, counts
        self._n_bodies = self._n_bytes = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, seconds = time.perf_counter(), None
        status = _CLIENT_IS_GONE

        async def counted(message: Message) -> None:
            nonlocal seconds, status
            if message["type"] == "http.response.start":
                seconds, status = time.perf_counter() - begun, message["status"]
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
            if seconds is not None:
                self._counts.seconds.labels(route).observe(seconds)

    async def _with_body(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        n_most = self._limits.n_bytes
        if self._n_bodies >= self._limits.n_images:
            await _refuse(receive, send, 503, _BUSY)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > n_most:
            await _refuse(receive, send, 413, f"the body is too large; at most {n_most:,} bytes")
            return
        refusal: tuple[int, str] | None = None
        body = _Body()
        self._n_bodies += 1
        try:
            try:
                data = await asyncio.wait_for(self._read(receive, body), self._limits.seconds)
            except TimeoutError:
                refusal = 408, f"the body did not arrive within {self._limits.seconds:g} s"
            except _TooLargeError:
                refusal = 413, f"the body is too large; at most {n_most:,} bytes"
            except _BusyError:
                refusal = 503, _BUSY
            else:
                if data is not None:  # else the client is gone
                    await self._app(scope, _replayed(data, receive), send)
        finally:
            self._n_bodies -= 1
            self._n_bytes -= body.n_bytes
        if refusal is not None:
            body.data.clear()
            await _refuse(receive, send, *refusal)

    async def _read(self, receive: Receive, body: _Body) -> bytes | None:
        """The body, None if the client is gone; `body` knows what has come until then."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            body.data += part
            body.n_bytes += len(part)
            self._n_bytes += len(part)
            if body.n_bytes > self._limits.n_bytes:
                raise _TooLargeError
            if self._n_bytes > self._limits.n_bytes_in_all:
                raise _BusyError
            if not message.get("more_body"):
                data = bytes(body.data)
                body.data.clear()
                return data


class _Body:
    """What has come of a body, and how many bytes are counted for it."""

    def __init__(self) -> None:
        self.data, self.n_bytes = bytearray(), 0


class _TooLargeError(Exception):
    pass


class _BusyError(Exception):
    pass


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
