"""Request limits of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Request limits of the server.

    Attributes:
        max_bytes: Largest body of a request; all bodies in flight together may have eight times
            as many bytes.
        max_pixels: Largest image, width times height.
        timeout_seconds: Time for a body to arrive, and again for its answer.
        max_images: Largest number of images in flight: being received, decoded, waiting or
            running; also of requests with a body.
    """

    max_bytes: int = 32_000_000
    max_pixels: int = 40_000_000
    timeout_seconds: float = 30.0
    max_images: int = 128

    @property
    def max_bytes_in_flight(self) -> int:
        """Largest sum of the bytes of all bodies in flight."""
        return 8 * self.max_bytes

    @property
    def max_connections(self) -> int:
        """Largest number of connections, idle ones included."""
        return max(1024, 8 * self.max_images)
