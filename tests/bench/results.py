"""What a bench measured, and the figures that follow from it."""

from statistics import median

import msgspec

from tests.bench.answers import Case
from tests.bench.load import Load
from tests.bench.streams import Delays


class Spread(msgspec.Struct):
    """Median, least and greatest of the rounds."""

    median: float
    low: float
    high: float

    def text(self, form: str = "{:,.0f}") -> str:
        low, high = form.format(self.low), form.format(self.high)
        return f"{form.format(self.median)} ({low}..{high})"


def spread(values: list[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


class Subject(msgspec.Struct):
    """One gateway of the run. `error`: why nothing was measured; empty when it ran."""

    name: str
    version: str = ""
    settings: str = ""
    error: str = ""
    start_s: float = 0.0
    idle_memory_mb: float = 0.0
    memory_mb: float = 0.0  # on the request path, after the load
    behind_memory_mb: float = 0.0  # metering and analytics, after the load


class Run(msgspec.Struct):
    """One round of one case on one gateway. CPU is that of the gateway's processes."""

    gateway: str
    case: str
    round: int
    load: Load
    cpu_us: float  # per answer, on the request path
    behind_cpu_us: float  # per answer, off the request path


class Bill(msgspec.Struct):
    """Served by the load generator's count, billed by the ledger's."""

    served: int
    billed: int
    free: int
    unfinished: int
    hold_ratio_p50: float
    hold_ratio_p99: float

    @property
    def equal(self) -> bool:
        return self.served == self.billed and self.free == 0 and self.unfinished == 0


class Streams(msgspec.Struct):
    """Many slow streams at once, read straight from the upstream or through Tollgate."""

    where: str
    delays: Delays
    memory_kb_each: float = 0.0  # of the edge, per open stream


class Drained(msgspec.Struct):
    """`seconds` from the first event taken to the last, without the start of the process."""

    role: str
    events: int
    seconds: float
    cpu_s: dict[str, float]

    @property
    def rate(self) -> float:
        return self.events / self.seconds


class Drain(msgspec.Struct):
    """How a backlog of `events` was drained; `bus` is one of `backlog.PLACES`."""

    bus: str
    events: int
    append_us: float
    roles: list[Drained]


class Bench(msgspec.Struct):
    """Everything of one run of the bench."""

    made_at: str
    machine: dict[str, str]
    rounds: int
    seconds: float
    subjects: list[Subject]
    cases: list[Case]
    runs: list[Run] = []
    streams: list[Streams] = []
    bill: Bill | None = None
    drains: list[Drain] = []

    def of(self, gateway: str, case: Case) -> list[Run]:
        runs = self.runs
        return [r for r in runs if r.gateway == gateway and r.case == case.name and r.round]

    def works(self, gateway: str, case: Case) -> bool:
        runs = self.of(gateway, case)
        return bool(runs) and all(run.load.served and not run.load.not_ok for run in runs)

    def rate(self, gateway: str, case: Case) -> Spread | None:
        """Answers per second; None when it gave errors."""
        if not self.works(gateway, case):
            return None
        return spread([run.load.rate for run in self.of(gateway, case)])

    def ratio(self, gateway: str, other: str, case: Case) -> Spread | None:
        """Answers per second over those of `other` in the same round."""
        if not (self.works(gateway, case) and self.works(other, case)):
            return None
        pairs = zip(self.of(gateway, case), self.of(other, case), strict=True)
        return spread([mine.load.rate / theirs.load.rate for mine, theirs in pairs])

    def added_ms(self, gateway: str, case: Case, quantile: str) -> Spread | None:
        """Latency over the direct one in the same round; `quantile` p50_ms or p99_ms."""
        if not (self.works(gateway, case) and self.works("direct", case)):
            return None
        pairs = zip(self.of(gateway, case), self.of("direct", case), strict=True)
        return spread(
            [
                getattr(mine.load, quantile) - getattr(theirs.load, quantile)
                for mine, theirs in pairs
            ]
        )

    def measured(self) -> list[Subject]:
        return [subject for subject in self.subjects if not subject.error]

    @property
    def comparable(self) -> bool:
        """Ratios may be told: billed equals served."""
        return self.bill is not None and self.bill.equal
