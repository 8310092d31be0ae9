"""The relay as a process that fault tests kill, and what they read from the bus afterwards.

    python -m tests.parts.relay_process FOLDER BUS_JSON [--data-dir DIR]

BUS_JSON is a `schemas.config.Bus`; with --data-dir the relay also ships the outbox of the database
there (or of the one at --database) and reaps."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from schemas import config as schema
from schemas.events import TOPIC, decode
from services.backends.bus.local import LocalBus
from services.backends.bus.port import Bus
from services.backends.clock import SystemClock
from services.backends.lifecycle import Stop, die_with_parent
from services.meter.relay import AnotherRelay, Relay

ROOT = Path(__file__).parent.parent.parent
STALL_S = 3.0
DATABASE = "sqlite:///tollgate.db"


def local_bus(folder: Path, partitions: int = 3) -> schema.Bus:
    return schema.Bus(kind="local", path=str(folder / "bus.db"), partitions=partitions)


def open_bus(config: schema.Bus) -> Bus:
    if config.kind == "local":
        return LocalBus(Path(config.path), config.partitions)
    from services.backends.bus.kafka import KafkaBus  # half a second

    return KafkaBus(config, stall_s=STALL_S)


def events_on(config: schema.Bus) -> list:
    """Every event on the bus: partition by partition, in offset order."""
    bus = open_bus(config)
    found = []
    for partition, (first, end) in sorted(bus.bounds(TOPIC).items()):
        if end > first:
            found += [decode(m.value) for m in bus.read(TOPIC, partition, first, end - 1)]
    return found


def first_copies(events: list) -> list:
    """Each event where it stands for the first time."""
    found: dict[str, object] = {}
    for event in events:
        found.setdefault(event.event_id, event)
    return list(found.values())


class RelayProcess:
    def __init__(
        self,
        folder: Path,
        bus: schema.Bus,
        *,
        crash_at: str = "",
        data_dir: Path | None = None,
        database: str = DATABASE,
    ) -> None:
        command = [sys.executable, "-m", "tests.parts.relay_process", str(folder)]
        command.append(msgspec.json.encode(bus).decode())
        if data_dir is not None:
            command += ["--data-dir", str(data_dir), "--database", database]
        self._log = (folder.parent / f"relay-{time.monotonic_ns()}.log").open("w+")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TOLLGATE_CRASH_AT": crash_at},
            stdout=self._log,
            stderr=self._log,
            preexec_fn=die_with_parent,
        )

    def wait(self, limit_s: float = 30.0) -> int:
        return self.process.wait(limit_s)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, once the process listens to it: before, the signal would just end it."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None and "relay_started" not in self.text():
            assert time.monotonic() < deadline, f"it never started:\n{self.text()[-3000:]}"
            time.sleep(0.02)
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def log(self) -> list[dict]:
        self._log.flush()
        lines = Path(self._log.name).read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def text(self) -> str:
        return Path(self._log.name).read_text()

    def wait_for(self, event: str, limit_s: float = 30.0) -> dict:
        """The first log line of that name."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for line in self.log():
                if line.get("event") == event:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no {event} in:\n{self.text()[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("bus")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--database", default=DATABASE)
    args = parser.parse_args()
    import structlog

    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()]
    )
    config = msgspec.json.decode(args.bus, type=schema.Bus)
    stop = Stop().install()
    sql_outbox = budgets = None
    if args.data_dir is not None:
        from services.backends.sql.budgets import Budgets
        from services.backends.sql.engine import open_engine
        from services.backends.sql.outbox import SqlOutbox

        engine = open_engine(args.database, args.data_dir)
        sql_outbox, budgets = SqlOutbox(engine), Budgets(engine)
    settings = schema.Meter(relay_poll_s=0.01, relay_batch=500)
    relay = Relay(args.folder, open_bus(config), sql_outbox, SystemClock(), settings, budgets)
    try:
        relay.run(stop)
    except AnotherRelay as error:
        print(error, flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
