"""What a server takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        n_bytes: Of a request's body; all bodies inside together have eight times as many.
        n_pixels: Of an image.
        seconds: For a body to arrive, and again for its answer.
        n_images: Inside at once; also requests with a body at once.
    """

    n_bytes: int = 32_000_000
    n_pixels: int = 40_000_000
    seconds: float = 30.0
    n_images: int = 128

    @property
    def n_bytes_in_all(self) -> int:
        """Of all bodies inside at once."""
        return 8 * self.n_bytes

    @property
    def n_connections(self) -> int:
        """Connections at once, idle ones among them."""
        return max(1024, 8 * self.n_images)
