"""The metrics of the server, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Metrics of one server.

    Attributes:
        requests: Requests by route and HTTP status, 499 if the client left before its answer.
        seconds: Time to the answer, by route.
        images: Images that were answered.
        in_flight: Images in flight: being decoded, waiting or running.
        batch_size: Images per batch.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.requests = Counter(
            "hubretrain_requests",
            "Requests by route and HTTP status.",
            ["route", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "hubretrain_request_seconds",
            "Seconds from the first byte of a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.images = Counter(
            "hubretrain_images", "Images that were answered.", registry=self._registry
        )
        self.in_flight = Gauge(
            "hubretrain_images_inside",
            "Images in flight: being decoded, waiting or running.",
            registry=self._registry,
        )
        self.batch_size = Histogram(
            "hubretrain_batch_images",
            "Images per batch.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
