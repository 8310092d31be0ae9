"""Several meters in one group: processes of the ledger and ClickHouse roles over one log, a worker
that keeps writing events (some of them twice), and what must be true when it ends."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from schemas import config as schema
from schemas.events import TOPIC
from services.backends.clickhouse.client import ClickHouse
from services.backends.clickhouse.schema import migrate
from services.backends.lifecycle import die_with_parent
from services.backends.settings import load
from services.backends.sql.plans import Plans
from services.backends.sql.tables import settlement
from services.meter.bootstrap import open_bus
from services.meter.reconcile import reconcile
from tests.parts.books import USD, Books, records
from tests.parts.clickhouse import stop_merges

ROOT = Path(__file__).parent.parent.parent
PARTITIONS = 6
WAIT_S = 120.0


class Member:
    """One `tollgate meter --roles ROLE` process. It writes its log to a file of its own."""

    def __init__(self, role: str, log: Path, environment: dict[str, str]) -> None:
        self.role = role
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.cli.main", "meter", "--roles", role],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stopped(self) -> bool:
        """By SIGSTOP."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def lines(self, event: str) -> list[dict]:
        found = []
        for line in self.log.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):
                each = json.loads(line)
                if each.get("event") == event:
                    found.append(each)
        return found

    def owned(self) -> set[int]:
        """The partitions that it has, as its log tells."""
        owned: set[int] = set()
        for line in self.log.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):
                each = json.loads(line)
                if each.get("event") == "partitions_assigned":
                    owned |= {int(number) for number in each["offsets"]}
                elif each.get("event") == "partitions_revoked":
                    owned -= set(each["partitions"])
        return owned


class Group:
    """`bus` and `database_url` are shared by all; ClickHouse is a server."""

    def __init__(self, folder: Path, bus: schema.Bus, database_url: str, dsn: str, name: str):
        self.folder = folder
        self.orders = folder / "orders"
        self.orders.mkdir()
        values = {
            "data_dir": str(folder),
            "bus__kind": "kafka",
            "bus__bootstrap": bus.bootstrap,
            "bus__topic_prefix": bus.topic_prefix,
            "bus__partitions": PARTITIONS,
            "database__url": database_url,
            "clickhouse__dsn": dsn,
            "clickhouse__database": name,
            "meter__ledger_batch": 50,
            "meter__clickhouse_batch": 80,
        }
        self.config = load(None, {}, **values)
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TOLLGATE_")},
            **{f"TOLLGATE_{k.upper()}": _text(v) for k, v in values.items()},
            "TOLLGATE_CRASH_FOLDER": str(self.orders),
        }
        self.bus = open_bus(self.config)
        self.bus.ensure_topics()
        self.books = Books(database_url, folder)
        self.plans = Plans(self.books.engine)
        self.clickhouse = ClickHouse(dsn, name)
        migrate(self.clickhouse)
        stop_merges(self.clickhouse)
        self.members: list[Member] = []
        self.feed = Feed(self)

    def join(self, role: str) -> Member:
        log = self.folder / f"{role}-{len(self.members)}.log"
        member = Member(role, log, self._environment)
        self.members.append(member)
        return member

    def of(self, role: str) -> list[Member]:
        return [each for each in self.members if each.role == role]

    def order(self, point: str, *, stop: bool = False) -> None:
        """The next process that passes the point dies there, or stands still."""
        given = self.orders / f".{point}"
        given.write_text("stop" if stop else "")
        given.rename(self.orders / point)

    def wait_taken(self, point: str) -> None:
        self.wait(lambda: not (self.orders / point).exists(), f"nothing passed {point}")

    def wait(self, done, what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < deadline, f"{what}\n{self.tails()}"
            time.sleep(0.1)

    def wait_shared(self, role: str) -> None:
        """Until every living member of the role has partitions, and together all of them once."""

        def shared() -> bool:
            owned = [each.owned() for each in self.of(role) if each.process.poll() is None]
            return all(owned) and sorted(p for each in owned for p in each) == [*range(PARTITIONS)]

        self.wait(shared, f"the partitions are not shared: {role}")

    def positions(self, role: str) -> dict[int, int]:
        if role == "clickhouse":
            return self.plans.positions(TOPIC)
        return {p: at.next_offset for p, at in self.books.store.positions(TOPIC).items()}

    def wait_caught_up(self, role: str) -> None:
        """Until the role has taken what the log holds now."""
        ends = {p: end for p, (_, end) in self.bus.bounds(TOPIC).items()}

        def caught_up() -> bool:
            at = self.positions(role)
            return all(at.get(partition, 0) >= end for partition, end in ends.items())

        self.wait(caught_up, f"{role} is behind {ends}: {self.positions(role)}")

    def check(self) -> None:
        """Every event of the feed counted once: in the books, in ClickHouse, and between them."""
        self.books.check()
        assert self.books.dead() == []
        assert self.books.count(settlement) == self.feed.requests
        for lease in self.feed.leases:
            wallet = (1000 * USD, lease.spent_nano, 0)
            assert self.books.limits()["wallet", lease.account_id] == wallet
            assert self.books.leases()[lease.lease_id][3] == "closed"
        count, unique, cost_nano = self.clickhouse.select(
            "SELECT count(), uniqExact(event_id), sum(cost_nano) FROM requests"
        ).rows[0]
        assert (count, unique) == (self.feed.requests, self.feed.requests)
        assert cost_nano == sum(lease.spent_nano for lease in self.feed.leases)
        report = reconcile(self.config, 30)
        assert report.exit_code == 0, report

    def tails(self) -> str:
        return "\n".join(
            f"--- {each.log.name} {each.process.poll()}\n{each.log.read_text()[-1500:]}"
            for each in self.members
        )

    def close(self) -> None:
        self.feed.over.set()
        for each in self.members:
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGCONT)
                each.process.kill()
                each.process.wait()
        self.clickhouse.close()
        self.books.close()
        self.bus.close()


class Feed(threading.Thread):
    """Events of some accounts without a pause. One batch in five is sent again later, as a relay
    does that died before it noted what it had sent."""

    def __init__(self, group: Group, accounts: int = 12) -> None:
        super().__init__(daemon=True)
        books = group.books
        self._group = group
        self.leases = [books.lease(books.account(1000), 500 * USD) for _ in range(accounts)]
        self._first = books.sql_records()
        self.requests = 0
        self.over = threading.Event()
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failed = error

    def _run(self) -> None:
        producer = self._group.bus.producer()
        chance = random.Random(5)
        producer.send(TOPIC, self._first)
        while not self.over.is_set():
            batch = []
            for lease in chance.choices(self.leases, k=5):
                batch += records(lease.pair())
                self.requests += 1
            producer.send(TOPIC, batch)
            if chance.random() < 0.2:
                producer.send(TOPIC, batch)
            self.over.wait(0.1)  # slower than the sinks on a busy machine
        producer.send(TOPIC, records([lease.close() for lease in self.leases]))
        producer.close()

    def finish(self) -> None:
        """Ends the leases; returns when all is on the bus."""
        self.over.set()
        self.join(60)
        assert not self.is_alive()
        assert self.failed is None, self.failed


def _text(value) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
