"""How connections begin and end: a timeout for heads, and a last answer at a shutdown."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_LAST_SECONDS = 1.0  # for a request that is on its way when the server is told to end


def protocol(timeout_seconds: float) -> type[H11Protocol]:
    """Return Uvicorn's protocol with a timeout for the head of a request.

    Uvicorn itself closes only connections that are idle between two requests.
    """

    class HeaderTimeout(H11Protocol):
        """A connection that is closed if the head of a request does not arrive in time."""

        _timer: asyncio.TimerHandle | None = None
        _is_ending = False

        def connection_made(self, transport: Any) -> None:
            """Start the timer when a client connects."""
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            """Stop the timer at the end of a head; start it with the first byte of the next."""
            super().data_received(data)
            if self._is_ending and self.cycle is not None:
                self.cycle.keep_alive = False
            is_head_incomplete = self.cycle is None or self.cycle.response_complete
            if not is_head_incomplete:
                self._stop_timer()
            elif self._timer is None:
                self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop the timer when the client is gone."""
            self._stop_timer()
            super().connection_lost(exc)

        def shutdown(self) -> None:
            """End after the request that is served, or that may be on its way."""
            if not self._is_ending:
                self._is_ending = True
                self.loop.call_later(_LAST_SECONDS, super().shutdown)
            if self.cycle is not None:
                self.cycle.keep_alive = False

        def _start_timer(self) -> None:
            self._timer = self.loop.call_later(timeout_seconds, self._close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            self._timer = None
            self.transport.close()

    return HeaderTimeout
