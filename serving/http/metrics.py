"""What the server reports to Prometheus."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..answer import StageLatency
from .request_queue import Served

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STAGES = (*(item.name for item in fields(StageLatency)), "total")


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("knobctl_requests", "Chat requests by outcome", ["outcome"], registry=registry)
        self.answers = Counter("knobctl_answers", "Answers by setting", ["setting"], registry=registry)
        self.over_budget = Counter(
            "knobctl_over_budget", "Answers that took longer than their budget, queue included", registry=registry
        )
        self.open_requests = Gauge(
            "knobctl_open_requests", "Requests being read, waiting or being answered", registry=registry
        )
        self.queue = Histogram(
            "knobctl_queue_seconds",
            "Time from a request's last byte to its start",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.stages = Histogram(
            "knobctl_stage_seconds", "Latency by stage", ["stage"], buckets=_BUCKETS_S, registry=registry
        )

    def count(self, outcome: str) -> None:
        """Counts a chat request; called once for each."""
        self.requests.labels(outcome).inc()

    def record(self, served: Served) -> None:
        """Counts an answer, with its setting and times."""
        self.count("answered")
        self.answers.labels(str(served.answer.setting)).inc()
        self.queue.observe(served.queue_ms / 1000)
        for stage in STAGES:
            self.stages.labels(stage).observe(getattr(served.answer.latency_ms, stage) / 1000)
        if not served.within_budget:
            self.over_budget.inc()

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
