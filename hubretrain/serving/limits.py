"""Request limits of the server."""

from __future__ import annotations

from dataclasses import dataclass

from hubretrain.errors import EngineError
from hubretrain.option_fields import check_options, option

MOST_PIXELS = 2**30  # 4 GiB; as in `data.images`


@dataclass(frozen=True)
class ServeLimits:
    """Request limits of the server.

    Attributes:
        max_bytes: Largest body of a request; all bodies in flight together may have eight times
            as many bytes.
        max_pixels: Largest image, width times height.
        timeout_seconds: Time for a body to arrive, and again for its answer.
        max_images: Largest number of images in flight: being received, decoded, waiting or
            running; also of requests with a body.

    Examples:
        >>> from hubretrain import ServeLimits
        >>> ServeLimits(max_images=16).timeout_seconds
        30.0
    """

    max_bytes: int = option(32_000_000, "Maximum size of a request, bytes.", minimum=1)
    max_pixels: int = option(
        40_000_000,
        "Maximum size of an image, width times height.",
        minimum=1,
        maximum=MOST_PIXELS,
    )
    timeout_seconds: float = option(
        30.0,
        "Seconds for a request to arrive, and again for its answer.",
        minimum=0.1,
        maximum=3600,
        flag="timeout",
    )
    max_images: int = option(
        128, "Maximum images in flight; further requests get 503.", minimum=1, flag="queue"
    )

    def __post_init__(self) -> None:
        check_options(self, EngineError)

    @property
    def max_bytes_in_flight(self) -> int:
        """Largest sum of the bytes of all bodies in flight."""
        return 8 * self.max_bytes

    @property
    def max_connections(self) -> int:
        """Largest number of connections, idle ones included."""
        return max(1024, 8 * self.max_images)
