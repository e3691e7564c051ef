"""HTTP that does not wait for ever: a connection must say what it wants within some seconds."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol, with a time for the head of a request to arrive.

    Uvicorn itself ends only connections that are idle between two requests.
    """

    class HeaderTimeout(H11Protocol):
        """Closes connections whose request does not come."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """A client is there."""
            super().connection_made(transport)
            self._late = self.loop.call_later(seconds, self._close)

        def data_received(self, data: bytes) -> None:
            """Some of a request has come."""
            super().data_received(data)
            is_waiting = self.cycle is None or self.cycle.response_complete
            if not is_waiting:
                self._forget()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self._close)

        def connection_lost(self, exc: Exception | None) -> None:
            """The client is gone."""
            self._forget()
            super().connection_lost(exc)

        def _forget(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _close(self) -> None:
            self._late = None
            self.transport.close()

    return HeaderTimeout
