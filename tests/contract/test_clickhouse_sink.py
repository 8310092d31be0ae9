"""The sink stores every terminal event once, whatever is repeated, refused or unknown."""

import pytest

from schemas.events import TOPIC, encode
from services.backends.bus.local import LocalBus
from services.backends.bus.port import Message, Record
from services.backends.clickhouse.schema import migrate
from services.backends.clickhouse.store import RequestStore
from services.backends.sql.engine import DatabaseUnavailable, open_engine
from services.backends.sql.migrate import upgrade
from services.backends.sql.plans import Plan, Plans
from services.meter.booked import NOTHING_DEAD, Fates
from services.meter.clickhouse_sink import ClickHouseSink, token
from services.meter.consumer import Halt, NotOwner, Position, TryLater
from tests.parts.clickhouse import HTTP, stop_merges
from tests.parts.terminals import AllBooked, error, request, usage

pytest_plugins = ["tests.parts.clickhouse_fixtures"]


class House:
    """A local log with one partition, plans in SQLite, tables in ClickHouse."""

    def __init__(self, folder, clickhouse):
        upgrade("sqlite:///tollgate.db", folder)
        self.engine = open_engine("sqlite:///tollgate.db", folder)
        self.bus = LocalBus(folder / "bus.db", 1)
        self.bus.ensure_topics()
        self.producer = self.bus.producer()
        self.clickhouse = clickhouse
        self.plans = Plans(self.engine)
        self.booked = AllBooked()
        self.sink = self.new_sink()

    def new_sink(self, plans=None):
        store = RequestStore(self.clickhouse)
        return ClickHouseSink(store, plans or self.plans, self.bus, self.booked)

    def log(self, *values):
        """Appends events (or raw bytes) and returns their messages."""
        first = self.bus.bounds(TOPIC)[0][1]
        bodies = [v if isinstance(v, bytes) else encode(v) for v in values]
        self.producer.send(TOPIC, [Record("acct_a", body) for body in bodies])
        return self.read(first, first + len(bodies) - 1)

    def read(self, first, last) -> list[Message]:
        return list(self.bus.read(TOPIC, 0, first, last))

    def next_offset(self):
        return self.plans.positions(TOPIC)[0]

    def count(self, table="requests"):
        """Rows as they lie there, copies and all."""
        return self.clickhouse.select(f"SELECT count() FROM {table}").rows[0][0]

    def ids(self):
        return [r[0] for r in self.clickhouse.select("SELECT event_id FROM requests").rows]


@pytest.fixture
def house(tmp_path, clickhouse):
    migrate(clickhouse)
    stop_merges(clickhouse)
    built = House(tmp_path, clickhouse)
    yield built
    built.producer.close()
    built.engine.dispose()


def test_terminals_become_rows_and_the_position_moves_past_everything(house):
    assert house.sink.claim(0) == Position(0, "")
    batch = house.log(request(1), usage(1), request(2), error(2), request(3))
    house.sink.handle(0, batch)
    assert sorted(house.ids()) == sorted([usage(1).event_id, error(2).event_id])
    assert house.count("attempts") == 1
    assert house.new_sink().claim(0) == Position(5, request(3).event_id)


def test_the_same_messages_again_store_nothing(house):
    batch = house.log(*(usage(n) for n in range(10)))
    house.sink.claim(0)
    house.sink.handle(0, batch)
    house.sink.handle(0, batch)
    later = house.new_sink()
    later.claim(0)
    later.handle(0, batch)
    assert house.count() == 10


def test_resent_events_are_dropped_by_lookup_in_later_batches_and_within_one(house):
    house.sink.claim(0)
    house.sink.handle(0, house.log(usage(1), usage(2)))
    house.sink.handle(0, house.log(usage(2), usage(3), usage(1), usage(3), error(4)))
    assert sorted(house.ids()) == sorted(e.event_id for e in (usage(1), usage(2), usage(3),
                                                              error(4)))  # fmt: skip
    assert house.next_offset() == 7


def test_poison_is_left_out_and_its_neighbours_flow(house):
    house.sink.claim(0)
    float_cost = encode(usage(5)).replace(b'"cost_nano":6000', b'"cost_nano":6000.5')
    negative = encode(usage(6)).replace(b'"cost_nano":7000', b'"cost_nano":-7000')
    other_v = encode(usage(7, v=99))
    assert b"6000.5" in float_cost
    assert b"-7000" in negative
    batch = house.log(usage(1), b"{", b"\xff\xfe", float_cost, negative, other_v, usage(2))
    house.sink.handle(0, batch)
    assert sorted(house.ids()) == sorted([usage(1).event_id, usage(2).event_id])
    assert house.next_offset() == 7


def test_a_batch_without_terminals_moves_the_position(house):
    house.sink.claim(0)
    house.sink.handle(0, house.log(request(1), request(2)))
    assert house.next_offset() == 2
    assert house.count() == 0


def test_an_open_plan_is_finished_with_exactly_its_range(house):
    """The owner dies after its insert; the next one gets other batches and must not re-cut."""
    house.sink.claim(0)
    house.sink.handle(0, house.log(usage(1)))
    batch = house.log(usage(2), usage(1), usage(3))
    dying = house.new_sink(plans=LostDone(house.plans, lost_before=True))
    dying.claim(0)
    with pytest.raises(TryLater):
        dying.handle(0, batch)
    assert house.count() == 3
    heir = house.new_sink()
    assert heir.claim(0) == Position(1, usage(1).event_id)
    more = house.log(usage(4))
    heir.handle(0, [batch[0]])
    assert house.next_offset() == 4
    heir.handle(0, batch[1:] + more)
    assert house.count() == 4
    assert sorted(house.ids()) == sorted(usage(n).event_id for n in (1, 2, 3, 4))


def test_an_open_plan_whose_range_reads_otherwise_halts_before_the_insert(house):
    batch = house.log(usage(1), usage(2))
    epoch = house.plans.claim(TOPIC, 0).owner_epoch
    plan = Plan(TOPIC, 0, 0, 1, usage(2).event_id, 2, (), "0" * 64, 1)
    assert house.plans.open(plan, epoch)
    house.sink.claim(0)
    for _ in range(2):
        with pytest.raises((Halt, NotOwner)):
            house.sink.handle(0, batch)
    assert house.count() == 0
    assert house.next_offset() == 0


def test_an_open_plan_whose_range_is_gone_halts(house):
    house.log(usage(1))
    epoch = house.plans.claim(TOPIC, 0).owner_epoch
    assert house.plans.open(Plan(TOPIC, 0, 0, 7, "x", 2, (), "0" * 64, 1), epoch)
    house.sink.claim(0)
    with pytest.raises(Halt, match="no longer in the log"):
        house.sink.handle(0, house.read(0, 0))


def test_an_owner_that_was_fenced_stores_nothing_more(house):
    batch = house.log(usage(1), usage(2))
    house.sink.claim(0)
    heir = house.new_sink()
    heir.claim(0)
    with pytest.raises(NotOwner):
        house.sink.handle(0, batch)
    assert house.count() == 0
    heir.handle(0, batch)
    assert house.count() == 2


def test_what_was_released_or_never_claimed_is_refused(house):
    batch = house.log(usage(1))
    with pytest.raises(NotOwner):
        house.sink.handle(0, batch)
    house.sink.claim(0)
    house.sink.release(0)
    with pytest.raises(NotOwner):
        house.sink.handle(0, batch)


class Pace(AllBooked):
    """A ledger that comes as far as a test lets it."""

    def __init__(self):
        self.at = 0
        self.told = NOTHING_DEAD

    def reached(self, partition):
        return self.at

    def fates(self, partition, messages):
        offsets = {message.offset for message in messages}
        places = {at: first for at, first in self.told.places.items() if at in offsets}
        return Fates(self.told.set_aside & offsets, places)


def test_rows_follow_the_ledger_and_never_overtake_it(house, monkeypatch):
    monkeypatch.setattr("services.meter.clickhouse_sink._BOOKS_WAIT_S", 0.05)
    house.booked = Pace()
    sink = house.new_sink()
    sink.claim(0)
    batch = house.log(usage(1), usage(2), usage(3))
    with pytest.raises(TryLater, match="the ledger is at offset 0"):
        sink.handle(0, batch)
    assert house.count() == 0
    house.booked.at = 2
    with pytest.raises(TryLater, match="the ledger is at offset 2"):
        sink.handle(0, batch)
    assert (house.count(), house.next_offset()) == (2, 2)
    house.booked.at = 3
    sink.handle(0, batch)
    assert sorted(house.ids()) == sorted(usage(n).event_id for n in (1, 2, 3))


def test_what_the_ledger_set_aside_has_a_row_once_it_was_replayed(house):
    house.booked = Pace()
    house.booked.at = 10
    house.booked.told = Fates(frozenset({1}))
    sink = house.new_sink()
    sink.claim(0)
    sink.handle(0, house.log(usage(1), usage(2), usage(3)))
    assert sorted(house.ids()) == sorted(usage(n).event_id for n in (1, 3))
    house.booked.told = Fates(frozenset({1, 3}))
    sink.handle(0, house.log(usage(2)))  # the relay sends it again while it is dead
    assert house.count() == 2
    house.booked.told = Fates(frozenset(), {3: 1, 4: 1, 5: 1})
    for _ in range(2):
        sink.handle(0, house.log(usage(2)))
    assert sorted(house.ids()) == sorted(usage(n).event_id for n in (1, 2, 3))
    at = house.clickhouse.select("SELECT event_id, log_offset FROM requests").rows
    assert dict(at)[usage(2).event_id] == 1, "where it stood first"


def test_an_open_plan_does_not_change_when_its_events_are_replayed_meanwhile(house):
    house.booked = Pace()
    house.booked.at = 10
    house.booked.told = Fates(frozenset({1}))
    batch = house.log(usage(1), usage(2), usage(3))
    dying = house.new_sink(plans=LostDone(house.plans, lost_before=True))
    dying.claim(0)
    with pytest.raises(TryLater):
        dying.handle(0, batch)
    house.booked.told = Fates(frozenset(), {3: 1})
    heir = house.new_sink()
    heir.claim(0)
    heir.handle(0, batch + house.log(usage(2)))
    assert sorted(house.ids()) == sorted(usage(n).event_id for n in (1, 2, 3))
    assert house.count() == 3


class LostOpen:
    """Commits the plan and loses the answer, once."""

    def __init__(self, plans, *, lost_before=False):
        self._plans = plans
        self._lost_before = lost_before
        self._armed = True

    def __getattr__(self, name):
        return getattr(self._plans, name)

    def open(self, plan, epoch):
        return self._lose(self._plans.open, plan, epoch)

    def _lose(self, call, plan, epoch):
        if not self._armed:
            return call(plan, epoch)
        self._armed = False
        if not self._lost_before:
            assert call(plan, epoch)
        raise DatabaseUnavailable("the answer was lost")


class LostDone(LostOpen):
    """Commits the confirmation and loses the answer, once; `lost_before`: does not commit."""

    def open(self, plan, epoch):
        return self._plans.open(plan, epoch)

    def done(self, plan, epoch):
        return self._lose(self._plans.done, plan, epoch)


@pytest.mark.parametrize("lost", [LostOpen, LostDone])
@pytest.mark.parametrize("lost_before", [False, True])
def test_a_lost_answer_of_the_database_is_asked_again(house, lost, lost_before):
    sink = house.new_sink(plans=lost(house.plans, lost_before=lost_before))
    sink.claim(0)
    batch = house.log(usage(1), usage(2))
    with pytest.raises(TryLater):
        sink.handle(0, batch)
    batch += house.log(usage(3))  # the consumer may hand over more than the first time
    sink.handle(0, batch)
    assert sorted(house.ids()) == sorted(usage(n).event_id for n in (1, 2, 3))
    assert house.next_offset() == 3


@pytest.mark.parametrize("clickhouse", [HTTP], indirect=True)
def test_an_insert_that_succeeded_without_an_answer_is_repeated_under_its_token(
    house, shared_front
):
    house.sink.claim(0)
    batch = house.log(*(usage(n) for n in range(20)))
    before = len(shared_front.inserts())
    shared_front.arm(drop_insert_reply=2)  # the driver repeats once by itself
    with pytest.raises(TryLater):
        house.sink.handle(0, batch)
    batch += house.log(usage(20))
    house.sink.handle(0, batch)
    assert house.count() == 21
    assert house.count("attempts") == 21
    tries = [i for i in shared_front.inserts()[before:] if i["token"].startswith("a:")]
    dropped = "stored, reply dropped"
    assert [t["fate"] for t in tries] == [dropped, dropped, "stored", "stored"]
    assert len({t["token"] for t in tries[:3]}) == 1
    assert tries[3]["token"] != tries[0]["token"]


@pytest.mark.parametrize("clickhouse", [HTTP], indirect=True)
def test_a_refused_insert_stays_planned_until_it_is_taken(house, shared_front):
    house.sink.claim(0)
    batch = house.log(usage(1))
    shared_front.arm(refuse_insert=3)
    for _ in range(3):
        with pytest.raises(TryLater):
            house.sink.handle(0, batch)
        assert house.next_offset() == 0
    house.sink.handle(0, batch)
    assert house.count() == 1


def test_a_token_names_the_rows_and_not_only_the_range():
    """A log made anew has the same offsets: its rows must not be taken for the old ones."""
    plan = Plan(TOPIC, 0, 0, 1, "x", 2, (), "a" * 64, 1)
    assert token(plan) == token(plan._replace(last_event_id="y"))
    assert token(plan) != token(plan._replace(sha256="b" * 64))
