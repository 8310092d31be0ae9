"""A backlog of events in an outbox, and how fast the relay and each sink drain it.

The events are what an edge worker writes: requests and their bills, priced by the book in force,
on leases that the budgets granted, of twelve accounts. Then each role runs alone, as the process
an operator runs, until it has taken everything.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, make_url, text

from schemas.config import Config
from schemas.errors import Outcome
from schemas.events import TOPIC, LeaseClosed, Request, Usage
from services.backends import settings
from services.backends.bus.port import Bus
from services.backends.clock import SystemClock
from services.backends.outbox import Outbox
from services.backends.settings import under
from services.backends.sql.budgets import Budgets
from services.cli.bootstrap import apply, open_books
from services.core.catalog import Key
from services.core.ids import new_id, uuid7_text
from services.core.prices import PriceVersion
from services.core.rating import rate
from services.meter.bootstrap import open_bus, open_database
from tests.bench.gateways import Unavailable
from tests.bench.process import cpu_s, family, stop
from tests.bench.results import Drain, Drained
from tests.bench.tollgate import PROGRAM
from tests.parts.kafka import LIBS, Broker
from tests.parts.postgres import postgres_url
from tests.parts.stack import write_config

ACCOUNTS = 12
MODEL = "claude-sonnet-4-5"
USAGE = {"input": 4_000, "cache_read": 60_000, "output": 700}
HOLD_NANO = 300_000_000
LIMIT_S = 500.0
ROLES = ("relay", "ledger", "clickhouse")


class Place(NamedTuple):
    """Where a backlog is drained: sections of the configuration, and the servers that take part:
    what they are -> the process and its children."""

    name: str
    sections: dict[str, dict]
    servers: dict[str, int]


PLACES = ("local", "kafka", "kafka + postgres")


@contextmanager
def place(name: str, folder: Path) -> Iterator[Place]:
    """One of PLACES, with a broker and a database server of its own. Raises Unavailable."""
    if name == "local":
        yield Place(name, {"bus": {"kind": "local"}}, {})
        return
    if not LIBS.exists() or shutil.which("java") is None:
        raise Unavailable("no broker is installed, see scripts/install-kafka")
    (folder / "broker").mkdir()
    broker = Broker(folder / "broker")
    broker.start()
    sections = {"bus": {"kind": "kafka", "bootstrap": [broker.bootstrap]}}
    servers = {"broker": broker.pid}
    if name.endswith("postgres"):
        url = postgres_url(migrated=False)
        sections["database"] = {"url": url}
        servers["database"] = _postmaster(url)
    try:
        yield Place(name, sections, servers)
    finally:
        broker.stop()


def _postmaster(url: str) -> int:
    host = str(make_url(url).query["host"])
    return int((Path(host) / "postmaster.pid").read_text().split()[0])


def measure(folder: Path, where: Place, count: int) -> Drain:
    """A new installation in `folder`, a backlog of about `count` events, each role alone."""
    config_file, data_dir = folder / "tollgate.toml", folder / "data"
    channel = {"name": "main", "dialect": "anthropic", "base_url": "http://127.0.0.1:9"}
    channels = [{**channel, "models": [MODEL], "groups": ["default"]}]
    write_config(config_file, where.sections, channels)
    data_dir.mkdir()
    config = settings.load(config_file, {}, data_dir=str(data_dir))
    apply(config)
    engine = open_database(config)
    rows, append_us = fill(config, engine, count)
    roles = drain(config_file, config, engine, rows, where.servers)
    return Drain(bus=where.name, events=rows, append_us=append_us, roles=roles)


def fill(config: Config, engine: Engine, count: int) -> tuple[int, float]:
    """Writes a closed outbox of about `count` events. Returns (events, microseconds a row)."""
    books = open_books(config)
    keys = []
    for number in range(ACCOUNTS):
        account = books.catalog.create_account(f"bench-{number}")
        books.wallets.move(account.id, "topup", 10**15, f"bench-{number}", "", "bench")
        keys.append(books.catalog.create_key(account.id, "bench")[0])
    prices = books.catalog.snapshot(SystemClock().now_us()).prices
    incarnation = f"edge-{new_id('x')[2:]}"
    budgets = Budgets(engine)
    budgets.open_incarnation(incarnation, "edge", "bench")
    clock = SystemClock()
    outbox = Outbox.create(under(config, config.outbox.path), incarnation, config.outbox, clock)
    writers = [_Writer(outbox, budgets, incarnation, key, prices) for key in keys]
    pairs = max(1, count // 2 // ACCOUNTS)
    started = time.perf_counter()
    for number in range(pairs):
        for writer in writers:
            writer.pair()
        if number % 100 == 0:
            outbox.sync()  # rotates the files, as the worker's thread does
    rows = pairs * ACCOUNTS * 2
    row_us = (time.perf_counter() - started) / rows * 1e6
    for writer in writers:
        writer.finish()
    outbox.close()
    return outbox.last_seq, row_us


class _Writer:
    """Writes the events of one key, on one lease."""

    def __init__(
        self, outbox: Outbox, budgets: Budgets, incarnation: str, key: Key, prices: PriceVersion
    ) -> None:
        self._outbox, self._key, self._prices = outbox, key, prices
        self._lease = new_id("lease")
        budgets.grant(self._lease, 1, incarnation, key.id, 10**14, 10**14)
        self._seq = 0
        self._rated = rate(
            prices.book, channel="main", priced_as=MODEL, group=key.group, usage=USAGE
        )

    def _envelope(self, request_id: str, kind: str) -> dict:
        self._seq += 1
        return {
            "event_id": f"{request_id}:{kind}",
            "request_id": request_id,
            "account_id": self._key.account_id,
            "key_id": self._key.id,
            "occurred_at": int(time.time() * 1e6),
            "source": "edge",
            "lease_id": self._lease,
            "lease_seq": self._seq,
        }

    def pair(self) -> None:
        request_id = uuid7_text()
        facts = {
            "dialect": "anthropic",
            "path": "/v1/messages",
            "model": MODEL,
            "group": self._key.group,
            "price_version": self._prices.id,
            "hold_nano": HOLD_NANO,
            "stream": True,
            "session_id": "0199f000-1111-7000-8000-000000000001",
            "client": "claude-cli/2.1.0",
        }
        self._outbox.append(
            Request(**self._envelope(request_id, "request"), **facts, body_bytes=77_822)
        )
        self._outbox.append_last(
            Usage(
                **self._envelope(request_id, "usage"),
                **facts,
                status=200,
                outcome=Outcome.COMPLETED,
                priced_as=MODEL,
                upstream_model=MODEL,
                channel="main",
                usage=USAGE,
                multiplier_ppm=self._rated.multiplier_ppm,
                cost_nano=self._rated.cost_nano,
                charged_nano=self._rated.cost_nano,
                provider_cost_nano=self._rated.provider_cost_nano,
                ttfb_ms=800,
                total_ms=9_000,
            )
        )

    def finish(self) -> None:
        self._outbox.append_last(
            LeaseClosed(
                event_id=f"{self._lease}:lease_closed",
                account_id=self._key.account_id,
                occurred_at=int(time.time() * 1e6),
                source="edge",
                lease_id=self._lease,
                events=self._seq,
            )
        )


def drain(
    config_file: Path, config: Config, engine: Engine, rows: int, servers: dict[str, int]
) -> list[Drained]:
    """Runs each role alone until it has taken `rows` events of the outbox, and all on the bus."""
    bus = open_bus(config)
    bus.ensure_topics()
    taken: dict[str, Callable[[], int]] = {
        "relay": lambda: _on_bus(bus),
        "ledger": lambda: _sum(engine, "SELECT sum(next_offset) FROM ledger_position"),
        "clickhouse": lambda: _sum(
            engine, "SELECT sum(last_offset - first_offset + 1) FROM sink_plan WHERE state = 'DONE'"
        ),
    }
    done = []
    try:
        for role in ROLES:
            target = rows if role == "relay" else _on_bus(bus)
            done.append(_run_role(config_file, config, role, taken[role], target, servers))
    finally:
        bus.close()
    return done


def _run_role(
    config_file: Path,
    config: Config,
    role: str,
    taken: Callable[[], int],
    target: int,
    servers: dict[str, int],
) -> Drained:
    command = [str(PROGRAM), "meter", "--roles", role, "--config", str(config_file)]
    log = Path(config.data_dir) / f"{role}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--data-dir", config.data_dir], stdout=out, stderr=out, env=dict(os.environ)
        )
    try:
        pids = {role: process.pid, **servers}
        first_s, first, count = 0.0, 0, 0
        used: dict[str, float] = {}
        deadline = time.monotonic() + LIMIT_S
        while count < target:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{role} stopped at {count}: {log.read_text()[-500:]}")
            time.sleep(0.02)
            count = taken()
            if count and not first:
                first_s, first = time.monotonic(), count
                used = {name: cpu_s(family(pid)) for name, pid in pids.items()}
        took_s = max(time.monotonic() - first_s, 0.001)
        spent = {name: cpu_s(family(pid)) - used[name] for name, pid in pids.items()}
        return Drained(role, target - first, took_s, spent)
    finally:
        stop(process)


def _on_bus(bus: Bus) -> int:
    return sum(following - first for first, following in bus.bounds(TOPIC).values())


def _sum(engine: Engine, statement: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(statement)).scalar() or 0)
