"""The ledger's building blocks on both engines: fenced positions, each event and request once."""

import threading

import pytest
from sqlalchemy import func, select

from services.backends.sql import outbox
from services.backends.sql.engine import read, write
from services.backends.sql.ledger import (
    AppliedRow,
    DeadRow,
    Entry,
    LedgerStore,
    SettlementRow,
    Taken,
    Unbalanced,
    body_hash,
)
from services.backends.sql.tables import (
    applied,
    balance,
    dead_event,
    posting,
    settlement,
    sql_outbox,
)
from services.core.ledger import Posting
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import count

TOPIC = "tollgate.events.v1"


@pytest.fixture
def store(engine):  # noqa: F811
    return LedgerStore(engine)


class Rollback(Exception):
    pass


def advance(engine, store, epoch, expected, next_offset, last="e"):  # noqa: F811
    return write(
        engine,
        lambda c: store.advance(
            c,
            TOPIC,
            0,
            owner_epoch=epoch,
            expected=expected,
            next_offset=next_offset,
            last_event_id=last,
        ),
    )


def take(engine, store, *rows):  # noqa: F811
    return write(engine, lambda c: store.add_applied(c, TOPIC, 0, rows))


def terminal(request_id, kind="usage", charged_nano=10):
    return SettlementRow(
        request_id, f"{request_id}:{kind}", "acct", "key", charged_nano, 12, 3, "completed", 1
    )


# -- positions ---------------------------------------------------------------------------------


def test_a_new_owner_starts_where_the_last_one_committed(engine, store):  # noqa: F811
    assert store.claim(TOPIC, 0) == (1, 0, "")
    assert advance(engine, store, 1, 0, 7, "event_6")
    assert store.claim(TOPIC, 0) == (2, 7, "event_6")
    assert store.claim(TOPIC, 1) == (1, 0, "")
    assert store.claim("other", 0) == (1, 0, "")
    assert store.positions(TOPIC) == {0: (2, 7, "event_6"), 1: (1, 0, "")}


def test_a_stale_owner_moves_nothing(engine, store):  # noqa: F811
    old = store.claim(TOPIC, 0)
    new = store.claim(TOPIC, 0)
    assert not advance(engine, store, old.owner_epoch, 0, 5)
    assert advance(engine, store, new.owner_epoch, 0, 5)
    assert not advance(engine, store, new.owner_epoch, 0, 5)
    assert store.positions(TOPIC)[0].next_offset == 5


def test_two_owners_at_once_apply_a_batch_once(engine, store):  # noqa: F811
    """The first owner stalls inside its transaction while another claims and applies the batch."""
    first = store.claim(TOPIC, 0)
    results = []

    def apply(epoch):
        def fn(connection):
            if not store.advance(
                connection,
                TOPIC,
                0,
                owner_epoch=epoch,
                expected=0,
                next_offset=1,
                last_event_id="e1",
            ):
                raise Rollback
            store.add_applied(connection, TOPIC, 0, [AppliedRow("e1", "h", 0)])
            store.add_postings(
                connection, [Entry("e1", 1, (Posting("wallet:a", -5), Posting("revenue", 5)))]
            )

        try:
            write(engine, fn)
        except Rollback:
            results.append((epoch, "zombie"))
        else:
            results.append((epoch, "applied"))

    second = store.claim(TOPIC, 0)
    threads = [
        threading.Thread(target=apply, args=(position.owner_epoch,))
        for position in (first, second, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [(1, "zombie"), (2, "applied"), (2, "zombie")]
    assert count(engine, posting) == 2
    assert balances(engine) == {"wallet:a": (-5, 1), "revenue": (5, 1)}


# -- applied -----------------------------------------------------------------------------------


def test_an_event_is_new_once(engine, store):  # noqa: F811
    rows = [AppliedRow(f"e{number}", body_hash(b"%d" % number), number) for number in range(5)]
    assert take(engine, store, *rows) == [Taken.NEW] * 5
    assert take(engine, store, *rows[3:], AppliedRow("e9", "h", 9)) == [
        Taken.DUPLICATE,
        Taken.DUPLICATE,
        Taken.NEW,
    ]
    assert take(engine, store, AppliedRow("e1", "other", 20)) == [Taken.CONFLICT]
    assert take(engine, store) == []
    query = select(applied.c.event_id, applied.c.offset, applied.c.topic).order_by("offset")
    found = read(engine, lambda c: c.execute(query).all())
    assert found == [*((f"e{n}", n, TOPIC) for n in range(5)), ("e9", 9, TOPIC)]


def test_of_two_with_one_id_in_a_batch_the_first_counts(engine, store):  # noqa: F811
    rows = [AppliedRow("e", "h", 1), AppliedRow("e", "h", 2), AppliedRow("e", "other", 3)]
    assert take(engine, store, *rows) == [Taken.NEW, Taken.DUPLICATE, Taken.CONFLICT]
    stored = read(engine, lambda c: c.execute(select(applied.c.offset)).scalars().all())
    assert stored == [1]


def test_a_rolled_back_batch_is_new_again(engine, store):  # noqa: F811
    def fn(connection):
        store.add_applied(connection, TOPIC, 0, [AppliedRow("e", "h", 1)])
        raise Rollback

    with pytest.raises(Rollback):
        write(engine, fn)
    assert take(engine, store, AppliedRow("e", "h", 1)) == [Taken.NEW]


def test_odd_characters(engine, store):  # noqa: F811
    names = ["'", '"', "\\", "{}", "a,b", "\u00fc\u4e16\U0001f600", "NULL", "%s", ":x", "\n"]
    rows = [AppliedRow(name, name, number) for number, name in enumerate(names)]
    assert take(engine, store, *rows) == [Taken.NEW] * len(names)
    assert take(engine, store, *rows) == [Taken.DUPLICATE] * len(names)


# -- settlements and postings ------------------------------------------------------------------


def test_a_request_has_one_terminal(engine, store):  # noqa: F811
    def add(*rows):
        return write(engine, lambda c: store.add_settlements(c, rows))

    assert add(terminal("r1"), terminal("r2")) == {"r1:usage", "r2:usage"}
    assert add(terminal("r2", "error"), terminal("r3")) == {"r3:usage"}
    assert add(terminal("r4"), terminal("r4", "error")) == {"r4:usage"}
    assert add() == set()
    query = select(func.sum(settlement.c.charged_nano), func.count())
    assert read(engine, lambda c: c.execute(query).one()) == (40, 4)


def balances(engine):  # noqa: F811
    rows = read(engine, lambda c: c.execute(select(balance)).all())
    return {row.ledger_account: (row.amount_nano, row.postings) for row in rows}


def test_postings_move_balances(engine, store):  # noqa: F811
    entries = [
        Entry("e1", 5, (Posting("wallet:a", 100), Posting("external:topup", -100))),
        Entry("e2", 6, (Posting("wallet:a", -30), Posting("revenue", 30))),
        Entry("e3", 7, ()),
    ]
    write(engine, lambda c: store.add_postings(c, entries[:1]))
    write(engine, lambda c: store.add_postings(c, entries[1:]))
    write(engine, lambda c: store.add_postings(c, []))
    assert balances(engine) == {
        "wallet:a": (70, 2),
        "external:topup": (-100, 1),
        "revenue": (30, 1),
    }
    query = select(posting).order_by(posting.c.event_id, posting.c.line)
    assert read(engine, lambda c: c.execute(query).all()) == [
        ("e1", 1, "wallet:a", 100, 5),
        ("e1", 2, "external:topup", -100, 5),
        ("e2", 1, "wallet:a", -30, 6),
        ("e2", 2, "revenue", 30, 6),
    ]


def test_postings_that_do_not_sum_to_zero_are_refused(engine, store):  # noqa: F811
    entries = [
        Entry("e1", 1, (Posting("wallet:a", 1), Posting("revenue", -1))),
        Entry("e2", 1, (Posting("wallet:a", 1), Posting("revenue", -2))),
    ]
    with pytest.raises(Unbalanced, match="e2"):
        write(engine, lambda c: store.add_postings(c, entries))
    assert count(engine, posting) == 0
    assert balances(engine) == {}


def test_partitions_post_to_shared_accounts_at_once(engine, store):  # noqa: F811
    """Each thread touches the shared accounts in another order; no deadlock gets through."""

    def post(number):
        for turn in range(10):
            names = ["revenue", "provider_cost", f"wallet:{number}"]
            names = names[turn % 3 :] + names[: turn % 3]
            postings = tuple(zip(names, (1, 2, -3), strict=True))
            entry = Entry(f"e{number}_{turn}", 1, tuple(Posting(*each) for each in postings))
            write(engine, lambda c, entry=entry: store.add_postings(c, [entry]))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = balances(engine)
    assert count(engine, posting) == sum(postings for _, postings in found.values()) == 120
    assert sum(amount for amount, _ in found.values()) == 0


# -- dead events -------------------------------------------------------------------------------


def test_a_dead_event_is_kept_as_it_was_read(engine, store):  # noqa: F811
    rows = [
        DeadRow(1, "e1", "acct", "bad_json", "at 3", b"\x00\xff{"),
        DeadRow(2, "", "a\0b", "bad_schema", "nul \0 here", b""),
    ]
    write(engine, lambda c: store.add_dead(c, TOPIC, 0, rows))
    write(engine, lambda c: store.add_dead(c, TOPIC, 0, rows))
    write(engine, lambda c: store.add_dead(c, TOPIC, 0, []))
    found = read(engine, lambda c: c.execute(select(dead_event).order_by("offset")).all())
    assert [(row.offset, row.reason, bytes(row.body), row.state) for row in found] == [
        (1, "bad_json", b"\x00\xff{", "dead"),
        (2, "bad_schema", b"", "dead"),
    ]
    assert found[1].account_id == "a\ufffdb"
    assert read(engine, lambda c: store.is_dead(c, "e1", b"\x00\xff{"))
    assert not read(engine, lambda c: store.is_dead(c, "e1", b"{"))
    assert not read(engine, lambda c: store.is_dead(c, "e2", b"\x00\xff{"))


def test_of_what_was_shipped_the_books_newest_rows_stay(engine, store, monkeypatch):  # noqa: F811
    """What the books do not have stays whatever its age: reconciliation asks for it."""
    monkeypatch.setattr(outbox, "KEPT", 5)
    monkeypatch.setattr(outbox, "TRIM_EVERY", 2)
    for number in range(20):
        subject = f"key_{number}"
        write(engine, lambda c, s=subject: outbox.audit(c, "key.create", s, "me", {}))
    relay = outbox.SqlOutbox(engine)
    rows = relay.unshipped(100)
    take(engine, store, *(AppliedRow(row.event_id, "h", row.id) for row in rows[1:]))
    relay.mark_shipped([row.id for row in rows[:12]])
    left = [row.id for row in rows]

    def stored():
        query = select(sql_outbox.c.id).order_by(sql_outbox.c.id)
        return list(read(engine, lambda c: c.execute(query)).scalars())

    assert stored() == left[:1] + left[5:], "so many at a time"
    relay.mark_shipped([row.id for row in rows[12:]])
    assert stored() == left[:1] + left[9:]
    relay.mark_shipped([rows[-1].id])
    relay.mark_shipped([rows[-1].id])
    assert stored() == left[:1] + left[14:], "all that is due"
    assert relay.unshipped(100) == []
