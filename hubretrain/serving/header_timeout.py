"""HTTP/1.1 protocol with a request-header timeout."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(timeout_seconds: float) -> type[H11Protocol]:
    """Return Uvicorn's protocol with a timeout for the head of a request.

    Uvicorn itself closes only connections that are idle between two requests.
    """

    class HeaderTimeout(H11Protocol):
        """A connection that is closed if the head of a request does not arrive in time."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Start the timer when a client connects."""
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            """Stop the timer at the end of a head; start it with the first byte of the next."""
            super().data_received(data)
            is_head_incomplete = self.cycle is None or self.cycle.response_complete
            if not is_head_incomplete:
                self._stop_timer()
            elif self._timer is None:
                self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop the timer when the client is gone."""
            self._stop_timer()
            super().connection_lost(exc)

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
