"""The ledger sink on SQLite and PostgreSQL, alone and behind the poll loop on both buses."""

import random
import threading
import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from schemas.events import TOPIC, encode
from services.backends.bus.kafka import KafkaBus
from services.backends.bus.local import LocalBus
from services.backends.bus.port import Message, Record
from services.backends.sql.engine import DatabaseUnavailable, write
from services.backends.sql.tables import balance, dead_event, ledger_position, posting, settlement
from services.core.ids import uuid7_text
from services.meter import ledger_sink
from services.meter.consumer import Consumer, Halt, NotOwner, TryLater
from tests.parts.books import USD, Books, now_us, record, records
from tests.parts.postgres import database_url, drop_database, postgres_url  # noqa: F401
from tests.parts.sqlite import migrated_url


@pytest.fixture
def books(database_url, tmp_path):  # noqa: F811
    world = Books(database_url, tmp_path)
    yield world
    world.close()


class Log:
    """One partition that only grows, fed to a sink by hand."""

    def __init__(self, sink, partition: int = 0) -> None:
        self.sink = sink
        self.partition = partition
        self.messages: list[Message] = []
        sink.claim(partition)

    def add(self, given: list[Record]) -> list[Message]:
        new = [
            Message(TOPIC, self.partition, len(self.messages) + at, r.key, r.value, now_us())
            for at, r in enumerate(given)
        ]
        self.messages += new
        return new

    def feed(self, given: list[Record], batch: int = 1000) -> None:
        new = self.add(given)
        for at in range(0, len(new), batch):
            self.sink.handle(self.partition, new[at : at + batch])


# -- what is booked ------------------------------------------------------------------------------


def test_every_kind_of_event_is_booked_once(books):
    account = books.account(10)
    lease = books.lease(account, 2 * USD)
    billed = lease.request()
    usage = lease.usage(billed.request_id, input=1000, output=100)  # 3 + 1.5 mUSD
    cut = lease.request()
    partly = lease.usage(cut.request_id, written_off_nano=500_000, output=100)
    failed = lease.request()
    error = lease.error(failed.request_id, provider_cost_nano=7)
    events = [billed, usage, cut, partly, failed, error, lease.close(), books.closed()]
    Log(books.sink()).feed(books.sql_records() + records(events))
    assert books.balances() == {
        f"wallet:{account}": 10 * USD - 5_500_000,
        "external:topup": -10 * USD,
        "revenue": 6_000_000,
        "writeoff": -500_000,
        "provider_cost": -6_000_000,
        "loss": -7,
        "provider:main": 6_000_007,
    }
    assert books.leases()[lease.lease_id] == (2 * USD, 5_500_000, 6, "closed")
    assert books.limits()["wallet", account] == (10 * USD, 5_500_000, 0)
    assert books.dead() == []
    settled = {row.request_id: row for row in books.rows(settlement)}
    assert settled[billed.request_id].charged_nano == 4_500_000
    assert (settled[cut.request_id].charged_nano, settled[cut.request_id].cost_nano) == (
        1_000_000,
        1_500_000,
    )
    assert settled[failed.request_id].charged_nano == 0
    books.check()


def test_the_remainder_returns_when_the_last_event_has_come(books):
    account = books.account(10)
    lease = books.lease(account, 3 * USD)
    pair, closed = lease.pair(), lease.close()
    log = Log(books.sink())
    log.feed(records([pair[0], closed]))
    assert books.limits()["wallet", account][2] == 3 * USD, "an event is still missing"
    log.feed(records([pair[1]]))
    assert books.limits()["wallet", account] == (10 * USD, 4_500_000, 0)
    assert books.leases()[lease.lease_id][3] == "closed"


# -- seen again ----------------------------------------------------------------------------------


def _story(books) -> list[Record]:
    account = books.account(10)
    lease = books.lease(account, 2 * USD)
    failed = lease.request()
    events = [*lease.pair(), failed, lease.error(failed.request_id), *lease.pair(), lease.close()]
    return books.sql_records() + records(events)


def test_duplicates_at_other_offsets_change_nothing(books):
    story = _story(books)
    log = Log(books.sink())
    log.feed(story + story[::-1])  # in the same batch
    before = books.state()
    log.feed(story)
    log.feed(story, batch=1)
    assert books.state() == before
    assert books.count(settlement) == 3
    books.check()


def test_the_same_batch_again_changes_nothing(books):
    log = Log(books.sink())
    story = _story(books)
    log.feed(story)
    before = books.state()
    log.sink.handle(0, log.messages)
    log.sink.handle(0, log.messages[2:])
    assert books.state() == before
    again = books.sink()
    assert again.claim(0) == (len(story), msgspec.json.decode(story[-1].value)["event_id"])


def test_other_bytes_under_a_known_id_are_dead_and_the_first_stay(books):
    lease = books.lease(books.account(10))
    request, usage = lease.pair()
    log = Log(books.sink())
    log.feed(records([request, usage]))
    before = books.balances()
    other = msgspec.structs.replace(usage, total_ms=77)
    log.feed(records([other, *lease.pair()]))
    assert books.dead() == [(usage.event_id, "hash_conflict")]
    log.feed(records([other, other]))
    assert len(books.dead()) == 1, "the same refused bytes are kept once"
    assert books.balances()["revenue"] == 2 * before["revenue"]
    books.check()


def test_a_request_has_one_terminal(books):
    account = books.account(10)
    lease = books.lease(account)
    request = lease.request()
    error = lease.error(request.request_id)
    usage = lease.usage(request.request_id)
    log = Log(books.sink())
    log.feed(records([request, error, usage, *lease.pair()]))
    assert books.dead() == [(usage.event_id, "hash_conflict")]
    assert books.balances()["revenue"] == 4_500_000
    assert books.count(settlement) == 2
    log.feed([record(usage)])
    assert len(books.dead()) == 1
    books.check()


# -- owners --------------------------------------------------------------------------------------


def test_a_zombie_books_nothing(books):
    story = _story(books)
    old, new = Log(books.sink()), books.sink()
    assert new.claim(0).next_offset == 0
    before = books.state()
    messages = old.add(story)
    with pytest.raises(TryLater):
        old.sink.handle(0, messages)
    with pytest.raises(NotOwner):
        old.sink.handle(0, messages)
    assert books.state() == before
    new.handle(0, messages)
    assert books.count(settlement) == 3
    books.check()


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_lost_commit_reply_is_looked_up(books, monkeypatch, took_effect):
    log = Log(books.sink())
    log.feed(_story(books))
    failed = []

    def cut(engine, fn):
        if not failed:
            failed.append(1)
            if took_effect:
                write(engine, fn)
            raise DatabaseUnavailable("the connection was cut")
        return write(engine, fn)

    monkeypatch.setattr(ledger_sink, "write", cut)
    messages = log.add(_story(books))
    with pytest.raises(TryLater):
        log.sink.handle(0, messages)
    log.sink.handle(0, messages)
    assert books.count(settlement) == 6
    assert books.store.positions(TOPIC)[0].next_offset == len(log.messages)
    log.feed(_story(books))
    assert books.count(settlement) == 9
    books.check()


# -- poison --------------------------------------------------------------------------------------


def _altered(event, **fields) -> Record:
    plain = msgspec.json.decode(encode(event))
    return Record(event.account_id, msgspec.json.encode({**plain, **fields}))


def _poisons(books, lease) -> dict[str, list[Record]]:
    """reason -> records that must die of it; the requests that they would settle are new."""

    def usage(**units):
        return lease.usage(uuid7_text(), **units)

    tiny = books.lease(books.account(1), 1000)
    stranger = msgspec.structs.replace(usage(), account_id="acct_nobody")
    day_us = 86_400 * 1_000_000
    return {
        "bad_json": [Record("k", b"{"), Record("k", b""), Record("", b"\xff\xfe")],
        "bad_schema": [
            Record("k", b"1"),
            Record("k", b"[]"),
            Record("k", b'{"kind":"nonsense"}'),
            _altered(usage(), cost_nano=1.5),
            _altered(usage(), account_id=None),
            _altered(usage(), event_id="x" * 2000),
            _altered(usage(), client="a\0b"),
            _altered(usage(), request_id=""),
        ],
        "unknown_version": [_altered(usage(), v=2), _altered(usage(), v=9, usage="new shape")],
        "out_of_range": [
            _altered(usage(), cost_nano=-1),
            _altered(usage(), charged_nano=2**63),
            _altered(usage(), cost_nano=2**80),
            _altered(usage(), cost_nano=10**17, charged_nano=10**17),
            Record("k", b'{"a":"' + b"x" * 1_100_000 + b'"}'),
        ],
        "future_clock": [_altered(usage(), occurred_at=now_us() + 3600 * 1_000_000)],
        "too_old": [_altered(usage(), occurred_at=now_us() - 500 * day_us)],
        "unknown_account": [record(stranger)],
        "price_mismatch": [
            _altered(usage(), cost_nano=1, charged_nano=1),
            _altered(usage(), charged_nano=1),
            _altered(usage(), multiplier_ppm=999_999),
            _altered(usage(), provider_cost_nano=5),
            _altered(usage(), usage={"input": 1000, "output": 101}),
            _altered(usage(), usage={"seconds": 3}),
            _altered(usage(), priced_as="no-such-model"),
            _altered(usage(), group="no-such-group"),
        ],
        "unknown_price_version": [_altered(usage(), price_version="pv_0")],
        "lease_overdrawn": [record(tiny.usage(uuid7_text()))],
        "unknown_lease": [_altered(usage(), lease_id="lease_0"), _altered(usage(), lease_id="")],
    }


def test_poison_of_each_kind_dies_and_its_neighbours_are_booked(books):
    lease = books.lease(books.account(100), 50 * USD)
    given: list[Record] = []
    expected: list[str] = []
    for reason, poisons in _poisons(books, lease).items():
        for poison in poisons:
            given += [*records(lease.pair()), poison]
            expected.append(reason)
    log = Log(books.sink())
    log.feed(given, batch=10)
    assert [reason for _, reason in books.dead()] == expected
    assert books.balances()["revenue"] == 4_500_000 * len(expected)
    assert {row.body for row in books.rows(dead_event)} <= {r.value for r in given}
    before = books.state()
    log.feed(given)
    assert books.state() == before, "a replay finds the dead ones too"
    books.check()


def test_a_copy_of_what_was_booked_is_a_duplicate_at_any_age(books):
    log = Log(books.sink())
    story = _story(books)
    log.feed(story)
    before = books.state()
    later = [m._replace(timestamp_us=now_us() + 500 * 86_400 * 1_000_000) for m in log.add(story)]
    log.sink.handle(0, later)
    assert books.dead() == []
    assert books.state() == before


def test_dead_usage_keeps_its_money_leased(books):
    account = books.account(10)
    lease = books.lease(account, 2 * USD)
    request, usage = lease.pair()
    events = [request, msgspec.structs.replace(usage, cost_nano=9, charged_nano=9)]
    Log(books.sink()).feed(records([*events, *lease.pair(), lease.close()]))
    assert books.leases()[lease.lease_id] == (2 * USD, 4_500_000, 3, "closing")
    assert books.limits()["wallet", account] == (10 * USD, 4_500_000, 2 * USD - 4_500_000)
    books.check()


def test_a_dead_free_event_does_not_keep_its_lease_open(books):
    account = books.account(10)
    lease = books.lease(account, 2 * USD)
    request = lease.request()
    error = lease.error(request.request_id)
    late = msgspec.structs.replace(error, occurred_at=now_us() + 10**10)
    Log(books.sink()).feed(records([request, late, lease.close()]))
    assert books.dead() == [(error.event_id, "future_clock")]
    assert books.limits()["wallet", account] == (10 * USD, 0, 0)


def test_usage_after_the_end_of_its_lease_is_our_loss(books):
    account = books.account(10)
    lease = books.lease(account, 2 * USD)
    pair, closed = lease.pair(), lease.close()
    late = lease.usage(uuid7_text())
    log = Log(books.sink())
    log.feed(books.sql_records() + records([*pair, closed]))
    log.feed(records([late, *books.lease(account).pair()]))
    assert books.dead() == [(late.event_id, "late")]
    assert books.wallet(account) == 10 * USD - 9_000_000
    assert books.balances()["loss"] == -4_500_000
    books.check()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.part("postgres")
def test_an_event_that_the_database_refuses_dies_alone(books):
    lease = books.lease(books.account(100), 50 * USD)
    log = Log(books.sink())
    log.feed(records(lease.pair()))
    near_end = update(balance).where(balance.c.ledger_account == "provider:main")
    write(books.engine, lambda c: c.execute(near_end.values(amount_nano=2**63 - 10_000_000)))
    big = lease.usage(uuid7_text(), output=1000)  # 15 mUSD: beyond what a bigint holds
    log.feed(records([*lease.pair(), big, *lease.pair()[:1]]))
    assert books.dead() == [(big.event_id, "out_of_range")]
    assert books.count(settlement) == 2


def test_all_poison_halts_and_stores_nothing_of_it(books):
    sink = books.sink(dead_ratio=0.5, dead_in_a_row=1000)
    log = Log(sink)
    lease = books.lease(books.account(10))
    log.feed(records(lease.pair()))
    log.add([Record("k", b"not an event %d" % at) for at in range(400)])
    with pytest.raises(Halt, match=r"dead.*not booked"):
        sink.handle(0, log.messages)
    assert books.dead() == []
    assert books.store.positions(TOPIC)[0].next_offset == 2
    fresh = Log(books.sink(dead_ratio=0.5, dead_in_a_row=1000))
    with pytest.raises(Halt):
        fresh.sink.handle(0, log.messages)


def test_a_row_of_dead_events_halts_over_several_batches(books):
    log = Log(books.sink(dead_ratio=1.0, dead_in_a_row=25))
    poison = [Record("k", b"[%d]" % at) for at in range(40)]
    log.feed(poison[:20], batch=5)
    with pytest.raises(Halt, match="in a row"):
        log.feed(poison[20:], batch=5)
    assert len(books.dead()) == 25
    log.sink.release(0)


# -- any order, any repetition -------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    world = Books(migrated_url(folder), folder)
    yield world
    world.close()


_steps = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["usage", "error", "open"]), st.integers(1, 5000)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_steps, seed=st.integers(0, 2**32), batch=st.integers(1, 30))
def test_any_order_and_repetition_gives_the_same_books(shared_books, steps, seed, batch):
    books = shared_books
    accounts = [books.account(10) for _ in range(3)]
    leases = [books.lease(account, 5 * USD) for account in accounts]
    story = books.sql_records()
    for who, what, units in steps:
        lease = leases[who]
        request = lease.request()
        story.append(record(request))
        if what == "usage":
            story.append(record(lease.usage(request.request_id, input=units)))
        elif what == "error":
            story.append(record(lease.error(request.request_id, provider_cost_nano=units)))
    for lease in leases:
        story.append(record(lease.close()))
    shuffled = random.Random(seed)
    order = story + shuffled.choices(story, k=shuffled.randrange(len(story)))
    shuffled.shuffle(order)
    partition = len(books.store.positions(TOPIC)) + 1
    Log(books.sink(), partition).feed(order, batch)
    for account, lease in zip(accounts, leases, strict=True):
        assert books.wallet(account) == 10 * USD - lease.spent_nano
        assert books.limits()["wallet", account] == (10 * USD, lease.spent_nano, 0)
        assert books.leases()[lease.lease_id][1:] == (lease.spent_nano, lease.events, "closed")
    assert books.dead() == []
    books.check()


# -- behind the poll loop ------------------------------------------------------------------------

LOCAL_SQLITE = pytest.param("local", id="local-sqlite")
KAFKA_POSTGRES = pytest.param(
    "kafka",
    id="kafka-postgres",
    marks=[pytest.mark.part("kafka"), pytest.mark.part("postgres")],
)


@pytest.fixture(params=[LOCAL_SQLITE, KAFKA_POSTGRES])
def place(request, tmp_path):
    """(bus, books) on the embedded parts, and on those of more than one machine."""
    if request.param == "kafka":
        broker = request.getfixturevalue("kafka_broker")
        bus, url = KafkaBus(broker.bus_config(partitions=4)), postgres_url()
    else:
        bus, url = LocalBus(tmp_path / "bus.db", 4), migrated_url(tmp_path)
    bus.ensure_topics()
    books = Books(url, tmp_path)
    yield bus, books
    books.close()
    bus.close()
    if request.param == "kafka":
        drop_database(url)


class Running:
    """A consumer in a thread of its own."""

    def __init__(self, bus, sink, batch: int = 500) -> None:
        self.stop = threading.Event()
        self.error: Exception | None = None
        consumer = Consumer(bus, sink, batch=batch, wait_s=0.02)
        self.thread = threading.Thread(target=self._run, args=[consumer], daemon=True)
        self.thread.start()

    def _run(self, consumer: Consumer) -> None:
        try:
            consumer.run(self.stop)
        except Exception as ex:
            self.error = ex

    def end(self) -> None:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


def send(bus, given: list[Record]) -> None:
    producer = bus.producer()
    producer.send(TOPIC, given)
    producer.close()


def wait_until_booked(bus, books, timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    ends = {partition: end for partition, (_, end) in bus.bounds(TOPIC).items()}
    while True:
        at = {p: each.next_offset for p, each in books.store.positions(TOPIC).items()}
        if all(at.get(partition, 0) >= end for partition, end in ends.items()):
            return
        assert time.monotonic() < deadline, (at, ends)
        time.sleep(0.02)


def _many(books, accounts: int = 6, pairs: int = 40) -> tuple[list[Record], int]:
    leases = [books.lease(books.account(10), 2 * USD) for _ in range(accounts)]
    given = books.sql_records()
    for _ in range(pairs):
        for lease in leases:
            given += records(lease.pair())
    given += records([lease.close() for lease in leases])
    return given, accounts * pairs


def test_the_loop_books_what_the_bus_holds(place):
    bus, books = place
    given, requests = _many(books)
    send(bus, given)
    running = Running(bus, books.sink())
    wait_until_booked(bus, books)
    assert books.count(settlement) == requests
    more, extra = _many(books, accounts=2, pairs=3)
    send(bus, more + given[:100])
    wait_until_booked(bus, books)
    running.end()
    assert books.count(settlement) == requests + extra
    assert all(state == "closed" for *_, state in books.leases().values())
    books.check()


def test_a_second_member_takes_over_without_a_gap_or_a_double(place):
    bus, books = place
    given, requests = _many(books)
    third = len(given) // 3
    first = Running(bus, books.sink(), batch=50)
    send(bus, given[:third])
    wait_until_booked(bus, books)
    second = Running(bus, books.sink(), batch=50)
    send(bus, given[third : 2 * third])
    wait_until_booked(bus, books)
    first.end()
    send(bus, given[2 * third :] + given[:third])
    wait_until_booked(bus, books)
    second.end()
    assert books.count(settlement) == requests
    assert books.dead() == []
    books.check()


class Flaky:
    """A sink whose database is away now and then."""

    def __init__(self, sink) -> None:
        self._sink = sink
        self.group = sink.group
        self.claim, self.release = sink.claim, sink.release
        self.calls = 0

    def handle(self, partition, messages):
        self.calls += 1
        if self.calls % 3:
            raise TryLater("away")
        self._sink.handle(partition, messages)


def test_a_sink_that_is_away_loses_no_place(place):
    bus, books = place
    given, requests = _many(books, accounts=3, pairs=10)
    send(bus, given)
    running = Running(bus, Flaky(books.sink()), batch=20)
    wait_until_booked(bus, books)
    running.end()
    assert books.count(settlement) == requests
    books.check()


def test_a_partition_that_somebody_claimed_and_left_is_taken_again(place):
    bus, books = place
    given, requests = _many(books, accounts=3, pairs=10)
    half = len(given) // 2
    running = Running(bus, books.sink())
    send(bus, given[:half])
    wait_until_booked(bus, books)
    for partition in bus.bounds(TOPIC):  # a member that had stood still, and is gone at once
        books.store.claim(TOPIC, partition)
    send(bus, given[half:])
    wait_until_booked(bus, books)
    running.end()
    assert books.count(settlement) == requests
    books.check()


def _wait_for_halt(running: Running) -> str:
    running.thread.join(30)
    assert isinstance(running.error, Halt), running.error
    return str(running.error)


def test_a_log_that_is_shorter_than_the_books_halts(place):
    bus, books = place
    running = Running(bus, books.sink())
    send(bus, _many(books, accounts=3, pairs=3)[0])
    wait_until_booked(bus, books)
    running.end()
    _set_positions(books, next_offset=10_000)
    assert "truncated or made anew" in _wait_for_halt(Running(bus, books.sink()))


def test_a_log_with_other_events_halts(place):
    bus, books = place
    running = Running(bus, books.sink())
    send(bus, _many(books, accounts=6, pairs=3)[0])
    wait_until_booked(bus, books)
    running.end()
    _set_positions(books, last_event_id="another:usage")
    before = books.count(posting)
    assert "this is another log" in _wait_for_halt(Running(bus, books.sink()))
    assert books.count(posting) == before


def _set_positions(books, **values) -> None:
    changed = update(ledger_position).where(ledger_position.c.next_offset > 0).values(**values)
    write(books.engine, lambda connection: connection.execute(changed))
