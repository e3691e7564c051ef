"""ASGI middleware that bounds the size, duration and number of request bodies.

It reads the body itself, so that no route ever sees one that is too large or incomplete.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
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
_GRACE_SECONDS = 1.0  # after which a body may have to give way to another
_CLIENT_CLOSED_REQUEST = 499  # the status that nginx logs
_BUSY = "the server is busy; try again in a moment"
_ROUTES = ("/predict", "/v1/models/", "/healthz", "/metrics")


class BodyLimits:
    """An ASGI application behind the limits, its requests counted."""

    def __init__(self, app: App, limits: ServeLimits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._n_bodies = self._n_bytes = 0  # in flight
        self._arriving: list[_Body] = []

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
        body = _Body(scope)
        if self._n_bodies >= self._limits.max_images and not self._end_slowest(body.client):
            await _refuse(receive, send, 503, _BUSY)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.max_bytes:
            await _refuse(receive, send, *too_large)
            return
        refusal: tuple[int, str] | None = None
        self._n_bodies += 1
        self._arriving.append(body)
        body.reading = asyncio.ensure_future(self._read(receive, body))
        try:
            seconds = self._limits.timeout_seconds
            try:
                data = await _within(body.reading, seconds)
            except TimeoutError:
                refusal = 408, f"the body did not arrive within {seconds:g} s"
            except _TooLargeError:
                refusal = too_large
            except _BusyError:
                refusal = 503, _BUSY
            else:
                if data is not None:  # else the client left
                    self._arriving.remove(body)
                    await self._answer_while_connected(scope, data, receive, send)
        finally:
            self._forget(body)
        if refusal is not None:
            await _refuse(receive, send, *refusal)

    def _forget(self, body: _Body) -> None:
        if body in self._arriving:
            self._arriving.remove(body)
        if not body.is_forgotten:
            body.is_forgotten = True
            self._n_bodies -= 1
            self._n_bytes -= body.n_bytes
            body.data.clear()

    def _end_slowest(self, newcomer: str) -> bool:
        """End the slowest body of the client that sends most of them; False if none may be."""
        n_of = Counter(body.client for body in self._arriving)
        return self._end(n_of, newcomer, 1, lambda body: -body.rate)

    def _end_largest(self, body: _Body) -> bool:
        """End the largest body of the client that sends most bytes; False if none may be."""
        n_of: Counter[str] = Counter()
        for other in self._arriving:
            n_of[other.client] += other.n_bytes
        return self._end(n_of, body.client, 0, lambda other: other.n_bytes)

    def _end(
        self, n_of: Counter[str], client: str, n_more: int, cost: Callable[[_Body], float]
    ) -> bool:
        """End the costliest body of the client that has most.

        Its bodies may be young if it has more than the client that room is made for: whoever
        comes again and again starves nobody else.
        """
        most = max(n_of.values(), default=0)
        is_greedy = most > n_of[client] + n_more
        bodies = [body for body in self._arriving if n_of[body.client] == most]
        bodies = [body for body in bodies if not body.reading.done()]
        if not is_greedy:
            bodies = [body for body in bodies if body.seconds > _GRACE_SECONDS]
        if not bodies:
            return False
        body = max(bodies, key=cost)
        self._forget(body)
        body.reading.cancel()
        return True

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
            while self._n_bytes > self._limits.max_bytes_in_flight:
                if not self._end_largest(body) or body.is_forgotten:
                    raise _BusyError
            if not message.get("more_body"):
                data = bytes(body.data)
                body.data.clear()
                return data


class _Body:
    """The part of a body that has arrived, and the bytes that are counted for it."""

    reading: asyncio.Future[bytes | None]

    def __init__(self, scope: Scope) -> None:
        self.client = str((scope.get("client") or ("",))[0])
        self.data, self.n_bytes = bytearray(), 0
        self.is_forgotten = False
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Bytes per second so far."""
        return self.n_bytes / max(self.seconds, 1e-3)


async def _within(reading: asyncio.Future[bytes | None], seconds: float) -> bytes | None:
    """Return what is read.

    Raises:
        TimeoutError: It is not read in time.
        _BusyError: The body made room for another.
    """
    try:
        done, _ = await asyncio.wait({reading}, timeout=seconds)
        if not done:
            raise TimeoutError
        if reading.cancelled():
            raise _BusyError
        return reading.result()
    finally:
        reading.cancel()


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
