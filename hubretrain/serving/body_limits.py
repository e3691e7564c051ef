"""ASGI middleware that bounds the size, duration and number of request bodies.

It reads the body itself, so that no route ever sees one that is too large or incomplete.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hubretrain.serving.limits import ServeLimits
from hubretrain.serving.prometheus import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_DRAIN_SECONDS = 2.0
_CLIENT_CLOSED_REQUEST = 499  # the status that nginx logs
_BUSY = "the server is busy; try again in a moment"
_ROUTES = ("/predict", "/v1/models/", "/healthz", "/metrics")


class BodyLimits:
    """An ASGI application behind the limits, its requests counted."""

    def __init__(self, app: App, limits: ServeLimits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._n_bodies = self._n_bytes = 0  # in flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, seconds = time.perf_counter(), None
        status = _CLIENT_CLOSED_REQUEST

        async def send_and_time(message: Message) -> None:
            nonlocal seconds, status
            if message["type"] == "http.response.start":
                seconds, status = time.perf_counter() - start, message["status"]
            await send(message)

        try:
            if scope["method"] in ("POST", "PUT", "PATCH"):
                await self._serve_body(scope, receive, send_and_time)
            else:
                await self._app(scope, receive, send_and_time)
        finally:
            path = scope["path"]
            route = next((prefix for prefix in _ROUTES if path.startswith(prefix)), "other")
            self._metrics.requests.labels(route, str(status)).inc()
            if seconds is not None:
                self._metrics.seconds.labels(route).observe(seconds)

    async def _serve_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body of a request within the limits, then pass it to the application."""
        too_large = 413, f"the body is too large; at most {self._limits.max_bytes:,} bytes"
        if self._n_bodies >= self._limits.max_images:
            await _refuse(receive, send, 503, _BUSY)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.max_bytes:
            await _refuse(receive, send, *too_large)
            return
        refusal: tuple[int, str] | None = None
        body = _Body()
        self._n_bodies += 1
        try:
            seconds = self._limits.timeout_seconds
            try:
                data = await asyncio.wait_for(self._read(receive, body), seconds)
            except TimeoutError:
                refusal = 408, f"the body did not arrive within {seconds:g} s"
            except _TooLargeError:
                refusal = too_large
            except _BusyError:
                refusal = 503, _BUSY
            else:
                if data is not None:  # else the client left
                    await self._answer_while_connected(scope, data, receive, send)
        finally:
            self._n_bodies -= 1
            self._n_bytes -= body.n_bytes
        if refusal is not None:
            body.data.clear()
            await _refuse(receive, send, *refusal)

    async def _answer_while_connected(
        self, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> None:
        """Hand the request to the application, and cancel that when the client leaves.

        Else whoever leaves would keep others waiting until an answer that nobody reads.
        """
        work = asyncio.ensure_future(self._app(scope, _receive_again(body, receive), send))
        departure = asyncio.ensure_future(_departure(receive))
        departure.add_done_callback(lambda _: work.cancel())
        try:
            await work
        except asyncio.CancelledError:
            if not departure.done():  # it is the server that ends
                raise
        finally:
            departure.cancel()

    async def _read(self, receive: Receive, body: _Body) -> bytes | None:
        """Read a body; None if the client leaves. `body` holds what has arrived so far."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            body.data += part
            body.n_bytes += len(part)
            self._n_bytes += len(part)
            if body.n_bytes > self._limits.max_bytes:
                raise _TooLargeError
            if self._n_bytes > self._limits.max_bytes_in_flight:
                raise _BusyError
            if not message.get("more_body"):
                data = bytes(body.data)
                body.data.clear()
                return data


class _Body:
    """The part of a body that has arrived, and the bytes that are counted for it."""

    def __init__(self) -> None:
        self.data, self.n_bytes = bytearray(), 0


class _TooLargeError(Exception):
    pass


class _BusyError(Exception):
    pass


def _receive_again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first gives a body that was read already."""
    is_given = False

    async def receive_body_first() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body_first


async def _departure(receive: Receive) -> None:
    """Return when the client has closed the connection, or has its whole answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(receive: Receive, send: Send, status: int, sentence: str) -> None:
    """Answer at once, then drain the request for a moment.

    To close with bytes unread would reset the connection, and many clients would see that instead
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

    async def drain() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(drain(), _DRAIN_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
