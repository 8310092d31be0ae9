"""What the chaos runs on: Tollgate as its operator starts it, with every part within reach.

Embedded, it is `tollgate up`. With Kafka or PostgreSQL each role runs alone, two ledger sinks in
one group, started again by the supervisor that `up` uses too."""

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from services.backends.query_client import QueryClient, QueryFailed, QueryUnavailable
from services.cli.supervisor import Part, Supervisor
from tests.chaos.postgres import Postgres
from tests.parts.fault_stack import FaultStack
from tests.parts.kafka import Broker
from tests.parts.stack import ROOT, TOLLGATE

STOP_S = 40.0
ROLES = {
    "relay": "relay",
    "ledger-1": "ledger",
    "ledger-2": "ledger",
    "analytics": "clickhouse,query",
}
READY_S = 120.0


class Away(NamedTuple):
    """How a part is taken away and brought back that is more than a process of ours; it stays
    away for up to `max_s`."""

    kill: Callable[[], None]
    stop: Callable[[], object]
    start: Callable[[], None]
    max_s: float


class Target(NamedTuple):
    """Something that may be killed (-9), stopped for a while, or ended in order. `found` gives
    its processes; what has no `away` is started again by its supervisor."""

    name: str
    found: Callable[[], list[psutil.Process]]
    weight: int
    away: Away | None = None


class Installation(FaultStack):
    """`tollgate up` on local files."""

    def __init__(self, folder: Path, sections: dict[str, dict] | None = None) -> None:
        wanted = {
            "meter": {"clickhouse_wait_s": 0.1},
            "outbox": {"rotate_bytes": 200_000},
            **(sections or {}),
        }
        super().__init__(folder, wanted)
        self._meter: subprocess.Popen[bytes] | None = None

    # -- what may be hurt -------------------------------------------------------------------

    def targets(self) -> list[Target]:
        return [
            Target("edge worker", self._workers, weight=10),
            Target("edge", lambda: self._parts("edge"), weight=3),
            Target("books", lambda: self._parts("books"), weight=8),
            Target("analytics", lambda: self._parts("analytics"), weight=5),
            Target("supervisor", self._leader, 1, self._up()),
        ]

    def _leader(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        return [psutil.Process(self._process.pid)]

    def _parts(self, role: str) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [
                child
                for leader in self._leader()
                for child in leader.children()
                if _title(child) == f"tollgate: {role}"
            ]
        return []  # its supervisor has just died

    def _workers(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [child for edge in self._parts("edge") for child in edge.children()]
        return []

    def _up(self) -> Away:
        return Away(self._kill, self.stop_tollgate, self.start, 2.0)

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def look(self) -> None:
        """Brings back what no supervisor brings back. Called often, by one thread."""

    # -- the end ----------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything that is stopped goes on, everything that is away comes back."""
        if self._process is None:
            self.start()
        self.wait_ready(READY_S)

    def settle(self) -> None:
        """The edge ends in order; a meter with every role books what is left."""
        self.stop_tollgate()
        for order in self.orders.iterdir():  # nothing dies from here on
            order.unlink()
        with (self.data_dir / "meter.log").open("ab") as log:
            self._meter = subprocess.Popen(
                [TOLLGATE, "meter", *self._where()],
                cwd=ROOT,
                env=self._environment(),
                stdout=log,
                stderr=log,
            )
        self.rows("SELECT 1")  # whoever looks before it has the tables would open them himself

    def rows(self, sql: str) -> list[dict]:
        """The rows of one statement, asked of the running analytics role."""
        deadline = time.monotonic() + 60
        while True:
            try:
                found = QueryClient(self.config).sql(sql)
                return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
            except (QueryUnavailable, QueryFailed):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def close(self) -> None:
        if self._meter is not None:
            self._meter.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._meter.wait(30)
            self._meter.kill()
        self.stop()


class Cluster(Installation):
    """Every role alone, on a real broker and a real server where they are given."""

    def __init__(self, folder: Path, broker: Broker | None, postgres: Postgres | None) -> None:
        sections: dict[str, dict] = {"edge": {"workers": 3}}
        if broker is not None:
            sections["bus"] = {"kind": "kafka", "bootstrap": [broker.bootstrap]}
        if postgres is not None:
            sections["database"] = {"url": postgres.url}
        self._broker, self._postgres = broker, postgres
        self._supervisor: Supervisor | None = None
        super().__init__(folder, sections)

    def targets(self) -> list[Target]:
        found = [
            Target("edge worker", self._workers, weight=10),
            Target("edge", lambda: self._parts("edge"), weight=3),
            Target("relay", lambda: self._parts("meter relay"), weight=5),
            Target("ledger", lambda: self._parts("meter ledger"), weight=8),
            Target("analytics", lambda: self._parts("analytics"), weight=4),
        ]
        if (broker := self._broker) is not None:
            away = Away(broker.kill, broker.stop, broker.start, 12.0)
            found.append(Target("kafka", self._broker_process, 3, away))
        if (server := self._postgres) is not None:
            away = Away(server.kill, server.stop, server.start, 6.0)
            found.append(Target("postgres", server.processes, 2, away))
            found.append(Target("postgres backend", server.backends, weight=2))
        return found

    def _leader(self) -> list[psutil.Process]:
        return [psutil.Process()] if self._supervisor is not None else []

    def _broker_process(self) -> list[psutil.Process]:
        return [each for each in psutil.Process().children() if "kafka.Kafka" in _title(each)]

    def start(self) -> None:
        self.cli("migrate")
        ours = str(TOLLGATE)
        parts = [Part("edge", [ours, "edge", *self._where()], STOP_S)]
        for name, roles in ROLES.items():
            command = [ours, "meter", "--roles", roles, *self._where()]
            parts.append(Part(name, command, STOP_S, niceness=5))
        self._supervisor = Supervisor(parts, self._environment(), self.data_dir / "logs", self._say)
        self._supervisor.start()
        self.heal()

    def _say(self, line: str) -> None:
        with self.output.open("a") as log:
            log.write(line + "\n")

    def look(self) -> None:
        if self._supervisor is not None:
            self._supervisor.look()

    def heal(self) -> None:
        if self._postgres is not None:
            self._postgres.start()
        deadline = time.monotonic() + READY_S
        while self._status("/readyz") != 200:
            assert time.monotonic() < deadline, "not ready again"
            self.look()
            time.sleep(0.1)

    def stop_tollgate(self) -> int:
        if self._supervisor is None:
            return 0
        clean = self._supervisor.stop(lambda: False)
        self._supervisor = None
        return 0 if clean else 1


def _title(process: psutil.Process) -> str:
    """Empty for a process that has just died."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""
