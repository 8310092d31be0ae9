"""The worker's metrics: added up in memory on the request path, written out by the poll loop.

PERF: a dict addition instead of a write to a shared file for every request; and the poll loop
writes once per bucket, not once per request, which would hold up every stream for a while."""

from collections import Counter

from schemas.metrics import METRICS
from services.backends.observations import Observations
from services.backends.telemetry import metric


class Counters:
    """`add` and `observe` on the request path, `flush` from the poll loop. Names and labels are
    those of `schemas.metrics`."""

    def __init__(self) -> None:
        metric(METRICS[0].name)  # imports the library now, not in front of the first clients
        self._sums: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._seen: dict[tuple[str, tuple[str, ...]], Observations] = {}

    def add(self, name: str, *labels: str, amount: int = 1) -> None:
        self._sums[name, labels] += amount

    def observe(self, name: str, value: float, *labels: str) -> None:
        seen = self._seen.get((name, labels))
        if seen is None:
            seen = self._seen[name, labels] = Observations(name, *labels)
        seen.add(value)

    def flush(self) -> None:
        """Moves what was added up into the shared metrics."""
        sums, self._sums = self._sums, Counter()
        seen, self._seen = self._seen, {}
        for (name, labels), amount in sums.items():
            family = metric(name)
            (family.labels(*labels) if labels else family).inc(amount)
        for observed in seen.values():
            observed.write()
