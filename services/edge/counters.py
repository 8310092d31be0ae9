"""The worker's metrics: added up in memory on the request path, written out by the poll loop.

PERF: a dict addition instead of a write to a shared file for every request."""

from collections import Counter
from typing import Final

from services.backends.telemetry import metric

OBSERVATIONS_MAX: Final = 10_000  # between two flushes; beyond that only counts are kept


class Counters:
    """`add` and `observe` on the request path, `flush` from the poll loop. Names and labels are
    those of `schemas.metrics`."""

    def __init__(self) -> None:
        self._sums: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._seen: list[tuple[str, tuple[str, ...], float]] = []

    def add(self, name: str, *labels: str, amount: int = 1) -> None:
        self._sums[name, labels] += amount

    def observe(self, name: str, value: float, *labels: str) -> None:
        if len(self._seen) < OBSERVATIONS_MAX:
            self._seen.append((name, labels, value))

    def flush(self) -> None:
        """Moves what was added up into the shared metrics."""
        sums, self._sums = self._sums, Counter()
        seen, self._seen = self._seen, []
        for (name, labels), amount in sums.items():
            family = metric(name)
            (family.labels(*labels) if labels else family).inc(amount)
        for name, labels, value in seen:
            family = metric(name)
            (family.labels(*labels) if labels else family).observe(value)
