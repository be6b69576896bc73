"""What Prometheus can ask: a registry of this process alone, with few names and no customer in a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one control plane process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs = Counter("fabric_runs_submitted", "Runs accepted", registry=self.registry)
        self.leases = Counter("fabric_leases_granted", "Leases granted", registry=self.registry)
        self.receipts = Counter(
            "fabric_receipts", "Receipts by what became of them", ["verdict"], registry=self.registry
        )
        self.batch_size = Histogram(
            "fabric_receipt_batch_size",
            "Receipts in one transaction",
            buckets=(1, 4, 16, 64, 256, 1024),
            registry=self.registry,
        )
        self.agents = Gauge("fabric_agents_connected", "Agents connected to this process", registry=self.registry)
        self.requests = Histogram(
            "fabric_http_seconds", "Time to answer, by route", ["method", "route", "status"], registry=self.registry
        )

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
