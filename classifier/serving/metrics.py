"""The Prometheus metrics of `/metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The server's metrics, in a separate registry."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], float], held: Callable[[], float]) -> None:
        """`waiting`: images in the queue or being computed; `held`: bytes of the requests in memory."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("path", "status")
        self.requests = Counter("classifier_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "classifier_request_seconds",
            "Seconds from the request's headers to the end of the response",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "classifier_images", "Images classified, by predicted class", ["name"], registry=self.registry
        )
        self.unlike = Counter("classifier_images_unlike", "Images unlike the training images", registry=self.registry)
        self.changes = Counter("classifier_model_changes", "Changes of the model while serving", registry=self.registry)
        self.model = Info("classifier_model", "The current model", registry=self.registry)
        Gauge("classifier_waiting", "Images in the queue or being computed", registry=self.registry).set_function(
            waiting
        )
        Gauge("classifier_held_bytes", "Bytes of requests in memory", registry=self.registry).set_function(held)

    def observe(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
