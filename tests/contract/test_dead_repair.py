"""`tollgate dead` and `tollgate incarnation`: on both databases, and proved by reconciliation."""

import json

import msgspec
import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from schemas.errors import Outcome
from schemas.events import TOPIC, encode
from services.backends.bus.port import Message, Record
from services.backends.sql.dead_events import DeadEvents, NoSuchDeadEvent
from services.backends.sql.engine import write
from services.backends.sql.incarnations import Incarnations, NoSuchIncarnation
from services.backends.sql.tables import account, limit_row, settlement, sql_outbox
from services.cli.context import Cli
from services.cli.dead import dead
from services.core.ids import uuid7_text
from services.core.prices import Overrides, PriceBook
from services.meter.dead import TimeLimits
from services.meter.dead_repair import AlreadyClosed, DeadRepair, StillDead
from services.meter.relay_store import Dead, RelayStore
from tests.faults.test_relay import flip_bit
from tests.parts.books import MODEL, USD, Books, now_us, record, records
from tests.parts.postgres import database_url  # noqa: F401

pytest_plugins = ["tests.parts.clickhouse_fixtures", "tests.parts.plant_fixture"]


@pytest.fixture
def books(database_url, tmp_path):  # noqa: F811
    world = Books(database_url, tmp_path)
    yield world
    world.close()


def _repair(books) -> DeadRepair:
    return DeadRepair(books.engine, books.reader)


def _feed(books, given: list[Record], *, first: int = 0) -> None:
    sink = books.sink()
    at = sink.claim(0).next_offset
    messages = [
        Message(TOPIC, 0, at + n, r.key, r.value, now_us()) for n, r in enumerate(given, first)
    ]
    sink.handle(0, messages)


def _numbers(books, reason: str = "") -> list[int]:
    return [each.id for each in DeadEvents(books.engine).listed(state="dead", reason=reason)]


def _audits(books, action: str) -> list[dict]:
    bodies = [json.loads(row.body) for row in books.rows(sql_outbox)]
    return [each for each in bodies if each.get("action") == action]


def _other_prices(books) -> tuple[PriceBook, str]:
    """A book with a dearer model, not imported yet, and the id that it will have."""
    model = books.prices.book.models[MODEL]
    dearer = msgspec.structs.replace(model, classes={k: v * 2 for k, v in model.classes.items()})
    book = msgspec.structs.replace(books.prices.book, models={MODEL: dearer})
    return book, book.version_id()


def _under_other_prices(books, usage):
    version_id = _other_prices(books)[1]
    return msgspec.structs.replace(
        usage,
        price_version=version_id,
        cost_nano=usage.cost_nano * 2,
        charged_nano=usage.charged_nano * 2,
        provider_cost_nano=usage.provider_cost_nano * 2,
    )


def test_a_missing_price_version_is_imported_and_its_usage_booked_once(books):
    account_id = books.account(10)
    lease = books.lease(account_id, 2 * USD)
    request, usage = lease.pair()
    usage = _under_other_prices(books, usage)
    given = books.sql_records() + records([request, usage, lease.close()])
    _feed(books, given)
    (number,) = _numbers(books, "unknown_price_version")
    assert books.limits()["wallet", account_id] == (10 * USD, 0, 2 * USD)

    with pytest.raises(StillDead, match="unknown_price_version"):
        _repair(books).replay(number)
    assert books.wallet(account_id) == 10 * USD

    models = _other_prices(books)[0].models
    assert books.catalog.import_prices(Overrides(models=models), now_us()).id == usage.price_version
    assert _repair(books).replay(number) is True
    assert books.wallet(account_id) == 10 * USD - 9_000_000
    assert books.limits()["wallet", account_id] == (10 * USD, 9_000_000, 0)
    assert books.leases()[lease.lease_id][3] == "closed"
    books.check()

    before = books.state()
    assert _repair(books).replay(number) is False
    _feed(books, given)
    assert books.state() == before, "neither a second replay nor the log books it again"
    assert [each["subject"] for each in _audits(books, "dead.replay")] == [
        f"{TOPIC}/0/{len(given) - 2}"
    ]
    with pytest.raises(AlreadyClosed):
        _repair(books).dismiss(number)


def test_a_dismissed_usage_is_free_and_its_money_returns(books):
    account_id = books.account(10)
    lease = books.lease(account_id, 2 * USD)
    request, usage = lease.pair()
    wrong = msgspec.structs.replace(usage, cost_nano=9, charged_nano=9)
    _feed(books, books.sql_records() + records([request, wrong, *lease.pair(), lease.close()]))
    (number,) = _numbers(books)
    assert books.limits()["wallet", account_id] == (10 * USD, 4_500_000, 2 * USD - 4_500_000)
    assert _repair(books).dismiss(number, note="the worker's build was bad") is True
    assert books.limits()["wallet", account_id] == (10 * USD, 4_500_000, 0)
    assert books.wallet(account_id) == 10 * USD - 4_500_000
    books.check()
    before = books.state()
    assert _repair(books).dismiss(number) is False
    assert books.state() == before
    assert [each["detail"]["note"] for each in _audits(books, "dead.dismiss")] == [
        "the worker's build was bad"
    ]
    with pytest.raises(AlreadyClosed):
        _repair(books).replay(number)


def test_an_unknown_account_is_made_and_its_event_booked(books):
    lease = books.lease(books.account(1), USD)
    error = msgspec.structs.replace(
        lease.error(uuid7_text(), provider_cost_nano=7), account_id="acct_late", lease_id=""
    )
    _feed(books, [record(error)])
    (number,) = _numbers(books, "unknown_account")
    with pytest.raises(StillDead):
        _repair(books).replay(number)

    def make(connection):
        wallet = {"id": "lim_late", "kind": "wallet", "subject": "acct_late", "limit_nano": 0}
        connection.execute(insert(limit_row).values(wallet | {"settled_nano": 0, "leased_nano": 0}))
        row = {"id": "acct_late", "name": "late", "kind": "individual", "status": "active"}
        row |= {"wallet_limit_id": "lim_late", "created_at": now_us()}
        connection.execute(insert(account).values(row))

    write(books.engine, make)
    assert _repair(books).replay(number)
    assert books.balances()["loss"] == -7
    books.check()


def test_a_free_event_is_counted_in_its_lease_once(books):
    account_id = books.account(10)
    lease = books.lease(account_id, USD)
    request = lease.request()
    error = msgspec.structs.replace(
        lease.error(request.request_id, provider_cost_nano=3),
        occurred_at=now_us() - 500 * 864 * 10**8,
    )
    more = lease.pair()
    _feed(books, books.sql_records() + records([request, error, *more]))
    (number,) = _numbers(books, "too_old")
    assert books.leases()[lease.lease_id][2] == 4
    assert _repair(books).replay(number)
    assert books.leases()[lease.lease_id][2] == 4
    _feed(books, [record(lease.close())])
    assert books.leases()[lease.lease_id][3] == "closed"
    books.check()


def test_what_could_not_be_read_waits_for_a_build_that_can(books):
    account_id = books.account(10)
    lease = books.lease(account_id, USD)
    request, usage = lease.pair()
    newer = msgspec.json.decode(encode(request)) | {"v": 2}
    body = Record(account_id, msgspec.json.encode(newer))
    _feed(books, [*books.sql_records(), body, record(usage), record(lease.close())])
    (number,) = _numbers(books, "unknown_version")
    with pytest.raises(StillDead):
        _repair(books).replay(number)
    assert books.leases()[lease.lease_id][3] == "closing"
    assert _repair(books).dismiss(number)
    assert books.leases()[lease.lease_id][3] == "closed", "it was not counted before"
    books.check()


def test_a_second_terminal_is_no_answer_and_can_be_dismissed(books):
    account_id = books.account(10)
    lease = books.lease(account_id, USD)
    request, usage = lease.pair()
    error = lease.error(request.request_id)
    other = msgspec.structs.replace(usage, outcome=Outcome.CLIENT_ABORTED)
    _feed(books, books.sql_records() + records([request, usage, error, other, lease.close()]))
    second, conflict = _numbers(books, "hash_conflict")
    for number in (second, conflict):
        with pytest.raises(StillDead, match="hash_conflict"):
            _repair(books).replay(number)
    assert _repair(books).dismiss(conflict)
    assert books.leases()[lease.lease_id][3] == "closing", "the usage itself was counted"
    assert _repair(books).dismiss(second)
    assert books.leases()[lease.lease_id][3] == "closed"
    assert books.wallet(account_id) == 10 * USD - 4_500_000
    books.check()


def test_a_lease_that_ended_meanwhile_makes_the_replay_our_loss(books):
    account_id = books.account(10)
    lease = books.lease(account_id, 2 * USD)
    usage = _under_other_prices(books, lease.usage(uuid7_text()))
    _feed(books, [*books.sql_records(), record(usage)])
    (number,) = _numbers(books)
    books.catalog.import_prices(Overrides(models=_other_prices(books)[0].models), now_us())
    Incarnations(books.engine, books.budgets).lose(books.incarnation)
    for _ in range(2):
        with pytest.raises(StillDead, match="late"):
            _repair(books).replay(number)
    assert books.wallet(account_id) == 10 * USD
    assert books.balances()["loss"] == -9_000_000
    assert _repair(books).dismiss(number)
    assert books.balances()["loss"] == -9_000_000
    books.check()


@pytest.mark.parametrize("ahead_s", [-3_600, 3_600])
def test_how_far_an_events_time_may_be_off_is_a_setting(books, ahead_s):
    lease = books.lease(books.account(10), USD)
    _, usage = lease.pair()
    usage.occurred_at += ahead_s * 1_000_000
    reader = books.reader()
    reader.times = TimeLimits(future_max_us=1_800 * 10**6, age_max_us=1_800 * 10**6)
    message = Message(TOPIC, 0, 0, usage.account_id, encode(usage), now_us())
    (entry,) = reader.read([message])
    assert entry.poison.reason == ("future_clock" if ahead_s > 0 else "too_old")
    reader.times = TimeLimits(future_max_us=7_200 * 10**6, age_max_us=7_200 * 10**6)
    assert reader.read([message])[0].poison is None


HOUR_US = 3_600 * 10**6


def _wrong(lease, reason):
    """A usage that is set aside for `reason`, and why its replay is refused, if it is."""
    usage = lease.usage(uuid7_text())
    if reason == "price_mismatch":
        usage.provider_cost_nano += 1
        return usage, "price_mismatch"
    if reason == "out_of_range":
        usage.provider_cost_nano = 10**17
        return usage, "out_of_range"
    if reason == "lease_overdrawn":
        usage = lease.usage(usage.request_id, output=1_000_000)
        lease.events -= 1
        return usage, "lease_overdrawn"
    if reason == "unknown_account":
        usage.account_id = "acct_nobody"
        return usage, "unknown_account"
    if reason == "unknown_price_version":
        usage.price_version = "pv_0"
        return usage, "unknown_price_version"
    usage.occurred_at += {"future_clock": HOUR_US, "too_old": -500 * 24 * HOUR_US}[reason]
    return usage, "future_clock: still" if reason == "future_clock" else None


@pytest.mark.parametrize(
    "reason",
    [
        "price_mismatch",
        "out_of_range",
        "lease_overdrawn",
        "unknown_account",
        "unknown_price_version",
        "future_clock",
        "too_old",
    ],
)
@pytest.mark.parametrize("end", ["replay", "dismiss"])
def test_every_reason_is_listed_and_comes_to_an_end(books, reason, end):
    account_id = books.account(10)
    lease = books.lease(account_id, 2 * USD)
    usage, why = _wrong(lease, reason)
    _feed(books, books.sql_records() + records([usage, *lease.pair(), lease.close()]))
    (row,) = DeadEvents(books.engine).listed(state="dead")
    assert (row.reason, row.event_id, row.held_nano) == (reason, usage.event_id, USD // 10)
    assert books.limits()["wallet", account_id] == (10 * USD, 4_500_000, 2 * USD - 4_500_000)
    if end == "replay" and why is not None:
        with pytest.raises(StillDead, match=why):
            _repair(books).replay(row.id)
        if reason == "future_clock":  # the operator trusts that clock, or waits
            reader = books.reader()
            reader.times = TimeLimits(future_max_us=2 * HOUR_US)
            repair = DeadRepair(books.engine, lambda: reader)
            assert repair.replay(row.id)
            why = None
    elif end == "replay":
        assert _repair(books).replay(row.id)
    if end == "dismiss" or why is not None:
        assert _repair(books).dismiss(row.id, note="given up")
    charged_nano = 4_500_000 * (2 if end == "replay" and why is None else 1)
    assert books.wallet(account_id) == 10 * USD - charged_nano
    assert books.limits()["wallet", account_id] == (10 * USD, charged_nano, 0)
    assert books.leases()[lease.lease_id][3] == "closed"
    books.check()


def test_numbers_that_do_not_exist(books):
    with pytest.raises(NoSuchDeadEvent):
        _repair(books).replay(1)
    with pytest.raises(NoSuchDeadEvent):
        _repair(books).dismiss(1)


# -- lost incarnations ---------------------------------------------------------------------------


def test_a_lost_incarnation_returns_its_money_and_its_late_events_are_our_loss(books):
    account_id = books.account(10)
    lease = books.lease(account_id, 2 * USD)
    _feed(books, books.sql_records() + records(lease.pair()))
    incarnations = Incarnations(books.engine, books.budgets)
    (listed,) = incarnations.listed()
    assert (listed.state, listed.leases) == ("open", 1)
    assert listed.leased_nano == 2 * USD - 4_500_000
    lost = incarnations.lose(books.incarnation)
    assert lost == (1, 2 * USD - 4_500_000)
    assert incarnations.lose(books.incarnation) == (0, 0)
    assert len(_audits(books, "incarnation.lost")) == 1
    assert incarnations.listed() == []
    assert [each.state for each in incarnations.listed(finished=True)] == ["lost"]
    assert books.limits()["wallet", account_id] == (10 * USD, 4_500_000, 0)
    assert books.budgets.sync(books.incarnation, []).state == "lost"

    failed = lease.request()
    events = [*lease.pair(), failed, lease.error(failed.request_id, provider_cost_nano=11)]
    _feed(books, records([*events, lease.close(), books.closed()]))
    assert books.wallet(account_id) == 10 * USD - 4_500_000, "never the customer's"
    assert books.balances()["loss"] == -4_500_000 - 11
    assert {reason for _, reason in books.dead()} == {"late"}
    assert [each.state for each in incarnations.listed(finished=True)] == ["lost"]
    books.check()
    with pytest.raises(NoSuchIncarnation):
        incarnations.lose("edge-0")


# -- all parts -----------------------------------------------------------------------------------


def test_reconciliation_holds_before_and_after(plant):
    books = plant.books
    leases = [books.lease(books.account(10), 2 * USD) for _ in range(3)]
    fixable = _under_other_prices(books, leases[0].usage(uuid7_text()))
    hopeless = msgspec.structs.replace(leases[1].usage(uuid7_text()), charged_nano=1)
    old = leases[1].usage(uuid7_text())
    old.occurred_at -= 500 * 86_400 * 1_000_000
    ended = [each.close() for each in leases[:2]]
    plant.write([fixable, hopeless, old, *leases[2].pair(), *ended])
    plant.catch_up()
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()
    assert report.clickhouse == report.ledger, "what was set aside shows no cost"
    assert report.set_aside.requests == 3
    books.catalog.import_prices(Overrides(models=_other_prices(books)[0].models), now_us())
    (number,) = _numbers(books, "unknown_price_version")
    assert _repair(books).replay(number)
    (number,) = _numbers(books, "too_old")
    assert _repair(books).replay(number)
    (number,) = _numbers(books, "price_mismatch")
    assert _repair(books).dismiss(number)
    plant.catch_up()
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()
    assert (report.clickhouse, report.set_aside.requests) == (report.ledger, 1)
    Incarnations(books.engine, books.budgets).lose(books.incarnation)
    failed = leases[2].request()
    late = [*leases[2].pair(), failed, leases[2].error(failed.request_id, provider_cost_nano=5)]
    plant.write(late)
    plant.catch_up()
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()
    assert report.dead == 1 + 4
    assert all(leased == 0 for _, _, leased in books.limits().values())
    assert books.balances()["loss"] == -4_500_000 - 5
    books.check()


# -- the command ---------------------------------------------------------------------------------


def _said(plant, monkeypatch, *arguments: str, exit_code: int = 0):
    monkeypatch.setattr(Cli, "config", lambda self: plant.config)
    done = CliRunner().invoke(dead, [*arguments, "--json"], obj=Cli())
    assert done.exit_code == exit_code, done.output
    return json.loads(done.stdout) if done.stdout else done.output


def test_the_list_tells_what_waits_and_what_the_relay_could_not_send(plant, monkeypatch):
    books = plant.books
    lease = books.lease(books.account(10), 2 * USD)
    wrong = lease.usage(uuid7_text())
    wrong.cost_nano = wrong.charged_nano = 1
    large, hopeless = lease.pair(), lease.pair()
    plant.write([wrong, large[0], hopeless[0]])
    plant.catch_up()
    store = RelayStore(plant.folder)
    body = encode(large[1])
    account_id = large[1].account_id
    damaged = b"{" + body
    store.add_dead(
        [
            Dead(books.incarnation, 3, large[1].event_id, "too_large", account_id, body, now_us()),
            Dead(books.incarnation, 4, "", "checksum", account_id, damaged, now_us()),
            Dead(
                books.incarnation,
                5,
                hopeless[1].event_id,
                "too_large",
                account_id,
                encode(hopeless[1]),
                now_us(),
            ),
        ]
    )
    store.close()
    listed = _said(plant, monkeypatch, "list")
    assert [(row["reason"], row["state"]) for row in listed] == [
        ("price_mismatch", "dead"),
        ("too_large", "dead"),
        ("checksum", "dead"),
        ("too_large", "dead"),
    ]
    assert listed[0]["held_usd"] == "0.1", "the hold of the request stays on its lease"
    number = listed[1]["id"]
    assert _said(plant, monkeypatch, "show", number)["body"] == body.decode()
    assert _said(plant, monkeypatch, "list", "--reason", "checksum") == listed[2:3]

    assert _said(plant, monkeypatch, "replay", number)[0]["result"] == "sent"
    plant.catch_up()
    assert _said(plant, monkeypatch, "replay", number)[0]["result"] == "sent before"
    assert [row["id"] for row in _said(plant, monkeypatch, "list", "--state", "replayed")] == [
        number
    ]
    refused = _said(plant, monkeypatch, "replay", listed[2]["id"], exit_code=1)
    assert "damaged" in refused[0]["result"]
    _said(plant, monkeypatch, "show", "relay-99", exit_code=1)
    refused = _said(plant, monkeypatch, "dismiss", number, exit_code=1)
    assert refused[0]["result"] == "refused: it was sent"

    before = books.leases()[lease.lease_id]
    for expected in ("dismissed", "dismissed before"):
        ids = [listed[2]["id"], listed[3]["id"]]
        done = _said(plant, monkeypatch, "dismiss", *ids, "--note", "of no use")
        assert [each["result"] for each in done] == [expected] * 2
    plant.catch_up()
    assert [row["id"] for row in _said(plant, monkeypatch, "list", "--state", "dismissed")] == ids
    assert [row["reason"] for row in _said(plant, monkeypatch, "list")] == ["price_mismatch"]
    (ended,) = [row for row in books.rows(settlement) if row.request_id == hopeless[1].request_id]
    assert (ended.outcome, ended.charged_nano) == ("abandoned", 0)
    after = books.leases()[lease.lease_id]
    assert after[2] == before[2] + 1, "its lease waits for it no longer"
    assert books.wallet(account_id) == 10 * USD - large[1].charged_nano
    store = RelayStore(plant.folder)
    assert store.dead_counts() == {"too_large": 1}, "the one that was sent after all"
    store.close()
    books.check()


def test_rows_damaged_on_disk_are_dismissed_and_their_money_returns(plant, monkeypatch):
    books = plant.books
    account_id = books.account(10)
    one, two = books.lease(account_id, 2 * USD), books.lease(account_id, USD)
    ended, begun, never, other = one.pair(), one.pair(), one.request(), two.pair()
    closed = [one.close(), two.close()]
    plant.write([*ended, *begun, never, *other, *closed])
    name, path = books.incarnation, plant.folder / f"{books.incarnation}-000001.db"
    plant.outbox.close()
    for damaged in (ended[1], begun[0], never, closed[1]):
        flip_bit(path, encode(damaged)[:60])
    flip_bit(path, f'"event_id":"{name}:closed"'.encode())
    plant.catch_up()
    found = _said(plant, monkeypatch, "list", "--reason", "checksum")
    assert len(found) == 5
    paid_nano = begun[1].charged_nano + other[1].charged_nano
    assert books.limits()["wallet", account_id][2] == 3 * USD - paid_nano

    refused = _said(plant, monkeypatch, "dismiss", "--all", exit_code=1)
    assert [each["result"][:17] for each in refused].count("refused: its work") == 1
    plant.catch_up()  # what stands for the worker's last word has come
    done = _said(plant, monkeypatch, "dismiss", "--all")
    assert [each["result"] for each in done] == ["dismissed"]
    plant.catch_up()
    assert books.limits()["wallet", account_id] == (10 * USD, paid_nano, 0)
    assert {state for *_, state in books.leases().values()} == {"closed"}
    outcomes = {row.request_id: row.outcome for row in books.rows(settlement)}
    assert outcomes == {
        ended[0].request_id: "abandoned",
        begun[0].request_id: "completed",
        never.request_id: "abandoned",
        other[0].request_id: "completed",
    }
    assert books.dead() == []
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()
    books.check()
