"""Numbers for Prometheus: requests, batches, tokens, queues."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from onnxopt.host.memory import resident_bytes
from onnxopt.serve.memory import MemoryPlan

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The numbers of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("onnxopt_requests", "Answered requests.", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "onnxopt_request_seconds", "Time to the end of the answer.", ("route",), buckets=_SECONDS, registry=registry
        )
        self.errors = Counter(
            "onnxopt_errors",
            "Requests that met a fault of the server, also in a stream.",
            ("route",),
            registry=registry,
        )
        self.cancelled = Counter(
            "onnxopt_requests_cancelled", "Requests whose caller went away.", ("route",), registry=registry
        )
        self.rows = Histogram(
            "onnxopt_batch_rows", "Rows of a run of the model.", ("model",), buckets=_ROWS, registry=registry
        )
        self.run_seconds = Histogram(
            "onnxopt_batch_seconds", "Time of a run of the model.", ("model",), buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter("onnxopt_tokens", "Tokens of requests.", ("model", "kind"), registry=registry)
        self.places = Counter(
            "onnxopt_batch_places", "Tokens and padding of runs of the model.", ("model",), registry=registry
        )
        self._planned = Gauge("onnxopt_memory_plan_bytes", "Who may use how much.", ("part",), registry=registry)
        self._resident = Gauge("onnxopt_memory_resident_bytes", "What the server holds.", registry=registry)
        self._waiting = Gauge("onnxopt_waiting", "Requests that wait.", ("model",), registry=registry)
        self._writing = Gauge("onnxopt_writing", "Texts that are being written.", ("model",), registry=registry)

    def watch(self, model: str, waiting: Callable[[], float], writing: Callable[[], float] | None = None) -> None:
        """Read the length of a queue, and of what is being written, whenever somebody asks."""
        self._waiting.labels(model).set_function(waiting)
        if writing is not None:
            self._writing.labels(model).set_function(writing)

    def watch_memory(self, plan: MemoryPlan) -> None:
        """Tell what the server may use and, whenever somebody asks, what it does."""
        for name, size in dataclasses.asdict(plan).items():
            self._planned.labels(name).set(size)
        self._resident.set_function(resident_bytes)

    def on_batch(self, model: str) -> Callable[[int, int, int, float], None]:
        """Return what a batcher tells of each run."""
        rows, seconds = self.rows.labels(model), self.run_seconds.labels(model)
        tokens, places = self.tokens.labels(model, "input"), self.places.labels(model)

        def told(count: int, real: int, padded: int, took: float) -> None:
            rows.observe(count)
            seconds.observe(took)
            tokens.inc(real)
            places.inc(padded)

        return told

    def answered(self) -> int:
        """Return how many requests were answered."""
        samples = [sample for metric in self.requests.collect() for sample in metric.samples]
        return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
