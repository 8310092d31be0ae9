"""The worker's metrics: added up in memory on the request path, written out by the poll loop.

PERF: a dict addition instead of a write to a shared file for every request; and the poll loop
writes once per bucket, not once per request, which would hold up every stream for a while."""

from bisect import bisect_left
from collections import Counter
from typing import Any, Final

from schemas.metrics import METRICS
from services.backends.telemetry import metric

_BUCKETS: Final = {spec.name: spec.buckets for spec in METRICS if spec.kind == "histogram"}


class _Seen:
    """Observations of one histogram since the last flush."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def write(self, histogram: Any) -> None:
        # The library has no call for many observations; these are the two fields of `observe`.
        histogram._sum.inc(self.total)
        for bucket, count in zip(histogram._buckets, self.counts, strict=True):
            if count:
                bucket.inc(count)


class Counters:
    """`add` and `observe` on the request path, `flush` from the poll loop. Names and labels are
    those of `schemas.metrics`."""

    def __init__(self) -> None:
        metric(METRICS[0].name)  # imports the library now, not in front of the first clients
        self._sums: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._seen: dict[tuple[str, tuple[str, ...]], _Seen] = {}

    def add(self, name: str, *labels: str, amount: int = 1) -> None:
        self._sums[name, labels] += amount

    def observe(self, name: str, value: float, *labels: str) -> None:
        seen = self._seen.get((name, labels))
        if seen is None:
            seen = self._seen[name, labels] = _Seen(_BUCKETS[name])
        seen.add(value)

    def flush(self) -> None:
        """Moves what was added up into the shared metrics."""
        sums, self._sums = self._sums, Counter()
        seen, self._seen = self._seen, {}
        for (name, labels), amount in sums.items():
            family = metric(name)
            (family.labels(*labels) if labels else family).inc(amount)
        for (name, labels), observed in seen.items():
            family = metric(name)
            observed.write(family.labels(*labels) if labels else family)
