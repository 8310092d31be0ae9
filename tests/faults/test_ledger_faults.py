"""kill -9 of the books process at every point of a ledger transaction, and a database that is
away: afterwards each request is posted once, and the books add up."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text

from schemas.events import TOPIC
from services.backends.bus.kafka import KafkaBus
from services.backends.bus.local import LocalBus
from services.backends.bus.port import Record
from services.backends.sql.tables import posting, settlement
from tests.parts.books import USD, Books, records
from tests.parts.postgres import drop_database, postgres_url
from tests.parts.sqlite import migrated_url

TOLLGATE = Path(sys.executable).parent / "tollgate"
POINTS = (
    "ledger.begun",
    "ledger.advanced",
    "ledger.applied",
    "ledger.posted",
    "ledger.settled",
    "ledger.committed",
)


class Place:
    """A bus, books, and the ledger role as a process over them."""

    def __init__(self, kind: str, folder: Path, broker) -> None:
        self.folder = folder
        self.kind = kind
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TOLLGATE_")},
            "TOLLGATE_DATA_DIR": str(folder),
            "TOLLGATE_METER__LEDGER_BATCH": "40",
        }
        if kind == "kafka":
            config = broker.bus_config(partitions=3)
            self.bus = KafkaBus(config)
            self.url = postgres_url()
            self.environment |= {
                "TOLLGATE_BUS__KIND": "kafka",
                "TOLLGATE_BUS__BOOTSTRAP": config.bootstrap[0],
                "TOLLGATE_BUS__TOPIC_PREFIX": config.topic_prefix,
                "TOLLGATE_DATABASE__URL": self.url,
            }
        else:
            self.bus = LocalBus(folder / "bus.db", 3)
            self.url = migrated_url(folder)
        self.bus.ensure_topics()
        self.books = Books(self.url, folder)
        self.log = folder / "meter.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, crash_at: str = "") -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [TOLLGATE, "meter", "--roles", "ledger"],
                env={**self.environment, "TOLLGATE_CRASH_AT": crash_at},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def send(self, given: list[Record]) -> None:
        producer = self.bus.producer()
        producer.send(TOPIC, given)
        producer.close()

    def wait_until_booked(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        ends = {partition: end for partition, (_, end) in self.bus.bounds(TOPIC).items()}
        while True:
            at = {p: each.next_offset for p, each in self.books.store.positions(TOPIC).items()}
            if all(at.get(partition, 0) >= end for partition, end in ends.items()):
                return
            assert self.processes[-1].poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, (at, ends, self.log.read_text()[-3000:])
            time.sleep(0.05)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.books.close()
        self.bus.close()
        if self.kind == "kafka":
            drop_database(self.url)


@pytest.fixture(
    params=[
        pytest.param("local", id="local-sqlite"),
        pytest.param(
            "kafka",
            id="kafka-postgres",
            marks=[pytest.mark.part("kafka"), pytest.mark.part("postgres"), pytest.mark.slow],
        ),
    ]
)
def place(request, tmp_path):
    broker = request.getfixturevalue("kafka_broker") if request.param == "kafka" else None
    made = Place(request.param, tmp_path, broker)
    yield made
    made.close()


class Story:
    """Requests of several accounts, some of them failed, and what the books must say in the end."""

    def __init__(self, books: Books, accounts: int = 4, pairs: int = 30) -> None:
        self.books = books
        self.leases = [books.lease(books.account(10), 2 * USD) for _ in range(accounts)]
        self.records = books.sql_records()
        self.requests = accounts * (pairs + 1)
        for _ in range(pairs):
            for lease in self.leases:
                self.records += records(lease.pair())
        for lease in self.leases:
            failed = lease.request()
            error = lease.error(failed.request_id, provider_cost_nano=3)
            self.records += records([failed, error, lease.close()])

    def check(self) -> None:
        books = self.books
        books.check()
        assert books.count(settlement) == self.requests
        assert books.dead() == []
        per_event: dict[str, int] = {}
        for row in books.rows(posting):
            per_event[row.event_id] = per_event.get(row.event_id, 0) + 1
        assert set(per_event.values()) <= {2, 4}
        for lease in self.leases:
            assert books.wallet(lease.account_id) == 10 * USD - lease.spent_nano
            settled = (10 * USD, lease.spent_nano, 0)
            assert books.limits()["wallet", lease.account_id] == settled
            assert books.leases()[lease.lease_id][3] == "closed"
        assert books.balances()["loss"] == -3 * len(self.leases)


def test_kill_at_every_point_of_a_transaction(place):
    story = Story(place.books)
    place.send(story.records)
    for point in POINTS:
        process = place.start(f"{point}:2")
        assert process.wait(60) == -signal.SIGKILL, (point, place.log.read_text()[-3000:])
        place.books.check()
    place.start()
    place.wait_until_booked()
    story.check()
    place.send(story.records)
    place.wait_until_booked()
    story.check()


def test_sigterm_ends_in_order_and_the_next_start_goes_on(place):
    story = Story(place.books, pairs=10)
    half = len(story.records) // 2
    place.send(story.records[:half])
    first = place.start()
    place.wait_until_booked()
    first.terminate()
    assert first.wait(30) == 0
    place.send(story.records[half:])
    place.start()
    place.wait_until_booked()
    story.check()


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_database_that_is_away_only_delays(place):
    story = Story(place.books, pairs=5)
    place.start()
    place.wait_until_booked()
    blocker = sqlite3.connect(place.folder / "tollgate.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    place.send(story.records)
    time.sleep(6.0)
    blocker.execute("ROLLBACK")
    blocker.close()
    place.wait_until_booked()
    story.check()


@pytest.mark.part("kafka")
@pytest.mark.part("postgres")
@pytest.mark.parametrize("place", ["kafka"], indirect=True)
def test_connections_cut_at_any_moment_lose_and_double_nothing(place):
    """A commit whose answer never comes is one of the moments."""
    story = Story(place.books, accounts=8, pairs=80)
    place.start()
    admin = create_engine(place.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    cut = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    step = len(story.records) // 40
    cuts = 0
    for at in range(0, len(story.records), step):
        place.send(story.records[at : at + step])
        with admin.connect() as connection:
            cuts += connection.execute(cut).scalar_one()
        time.sleep(0.05)
    assert cuts > 10
    place.wait_until_booked()
    story.check()
    assert place.processes[-1].poll() is None, "it never had to start again"


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_another_log_halts_with_exit_1(place):
    story = Story(place.books, pairs=5)
    place.send(story.records)
    first = place.start()
    place.wait_until_booked()
    first.terminate()
    assert first.wait(30) == 0
    place.bus.close()
    for file in place.folder.glob("bus.db*"):
        file.unlink()
    LocalBus(place.folder / "bus.db", 3).ensure_topics()
    second = place.start()
    assert second.wait(30) == 1
    assert "truncated or made anew" in place.log.read_text()
    story.check()
