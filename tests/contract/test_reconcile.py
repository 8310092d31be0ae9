"""Reconciliation on the embedded parts, and on Kafka, PostgreSQL and ClickHouse over HTTP."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, update

from schemas.events import TOPIC
from services.backends.sql.tables import applied, balance, lease, limit_row, posting, settlement
from services.core.ids import uuid7_text
from services.meter import reconcile_hours
from services.meter.replay import replay
from tests.parts.books import USD, record, records
from tests.parts.plant import EMBEDDED

pytest_plugins = ["tests.parts.clickhouse_fixtures", "tests.parts.plant_fixture"]

TOLLGATE = Path(sys.executable).parent / "tollgate"


def _story(plant, accounts: int = 4, pairs: int = 5):
    """Billed and failed requests, closed leases and one request in flight; the leases."""
    books = plant.books
    leases = [books.lease(books.account(10), 2 * USD) for _ in range(accounts)]
    for _ in range(pairs):
        for each in leases:
            plant.write(each.pair())
    for each in leases[1:]:
        failed = each.request()
        plant.write([failed, each.error(failed.request_id, provider_cost_nano=5), each.close()])
    partly = leases[0].usage(leases[0].request().request_id, written_off_nano=100_000)
    plant.write([partly, leases[0].request()])
    return leases


# -- equal ---------------------------------------------------------------------------------------


def test_all_parts_are_equal_also_after_a_replay(plant):
    leases = _story(plant)
    plant.catch_up()
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()
    assert report.log == report.ledger == report.clickhouse
    charged_nano = sum(each.spent_nano for each in leases)
    assert (report.log.requests, report.log.charged_nano) == (24, charged_nano)
    assert (report.log.written_off_nano, report.in_flight, report.dead) == (100_000, 1, 0)
    assert "equal" in report.text()

    sent = replay(plant.bus)
    assert sent.events == report.events
    assert plant.reconcile().exit_code == 2
    before = plant.books.state()
    plant.catch_up()
    again = plant.reconcile()
    assert again.exit_code == 0, again.text()
    assert (again.log, again.repeated) == (report.log, report.events)
    assert plant.books.state() == before


def test_events_that_come_meanwhile_are_not_compared(plant):
    leases = _story(plant)
    plant.catch_up()
    stop = threading.Event()

    def keep_writing():
        while not stop.is_set():
            plant.write(leases[0].pair(input=10))
            time.sleep(0.005)

    writer = threading.Thread(target=keep_writing)
    with plant.working(
        ["relay", "ledger"] if _embedded(plant) else ["relay", "ledger", "clickhouse"]
    ):
        writer.start()
        time.sleep(0.5)
        report = plant.reconcile(0.0 if _embedded(plant) else 20.0)
        stop.set()
        writer.join()
    if _embedded(plant):
        assert report.exit_code == 2, report.text()  # its one owner of ClickHouse does not run
    else:
        assert report.exit_code == 0, report.text()
    plant.catch_up()
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()


def _embedded(plant) -> bool:
    return plant.config.clickhouse.dsn.startswith("chdb")


def test_dead_events_are_told_and_no_difference(plant):
    leases = _story(plant)
    plant.catch_up()
    wrong = leases[0].usage(uuid7_text())
    wrong.cost_nano = wrong.charged_nano = 1
    plant.write([wrong, *leases[0].pair()])
    producer = plant.bus.producer()
    producer.send(TOPIC, [record(leases[1].request())._replace(value=b"no event")])
    producer.close()
    plant.catch_up()
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()
    assert (report.dead, report.set_aside.requests, report.set_aside.charged_nano) == (2, 1, 1)
    assert report.clickhouse == report.log == report.ledger, "what is set aside has no row"


# -- not caught up -------------------------------------------------------------------------------


def test_what_lags_is_named(plant):
    _story(plant)
    report = plant.reconcile(0.3)
    assert report.exit_code == 2
    assert {each.split(":")[0] for each in report.lagging} == {"relay"}
    with plant.working(["relay"]):
        deadline = time.monotonic() + 30
        while any(each.startswith("relay") for each in plant.reconcile().lagging):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert {each.split(":")[0] for each in plant.reconcile().lagging} == {"ledger", "clickhouse"}
    with plant.working(["ledger"]):
        deadline = time.monotonic() + 30
        while any(each.startswith("ledger") for each in plant.reconcile().lagging):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    report = plant.reconcile()
    assert report.exit_code == 2
    assert {each.split(":")[0] for each in report.lagging} == {"clickhouse"}
    assert "not caught up" in report.text()


# -- seeded differences --------------------------------------------------------------------------


def _differences(plant) -> list[tuple[str, str, str]]:
    report = plant.reconcile()
    assert report.exit_code == (1 if report.differences else 0), report.text()
    return [(each.pair, each.subject, each.detail) for each in report.differences]


def _usage_ids(plant) -> list[str]:
    rows = plant.books.rows(settlement, settlement.c.event_id)
    return sorted(row.event_id for row in rows if row.event_id.endswith(":usage"))


def test_clickhouse_lacks_a_row(plant):
    _story(plant)
    plant.catch_up()
    event_id = _usage_ids(plant)[3]
    plant.clickhouse(f"DELETE FROM requests WHERE event_id = '{event_id}'")
    assert _differences(plant) == [("log-clickhouse", event_id, "missing in ClickHouse")]


def test_clickhouse_has_rows_too_many(plant):
    _story(plant)
    plant.catch_up()
    request_id = _usage_ids(plant)[3].removesuffix(":usage")
    places = ["", ", 'elsewhere' AS log_topic", ", 999999 AS log_offset", ", 99 AS log_partition"]
    plant.clickhouse(
        *(
            f"INSERT INTO requests SELECT * REPLACE ('extra-{at}' AS event_id{place}) "
            f"FROM requests WHERE request_id = '{request_id}' AND kind = 'usage'"
            for at, place in enumerate(places)
        )
    )
    expected = [("log-clickhouse", f"extra-{at}", "only in ClickHouse") for at in range(4)]
    assert sorted(_differences(plant)) == expected


def test_clickhouse_tells_otherwise(plant):
    _story(plant)
    plant.catch_up()
    changes = {
        "cost_nano": "cost_nano + 1 AS cost_nano",
        "account_id": "'acct_other' AS account_id",
        "outcome": "'failed' AS outcome",
        "occurred_at": "occurred_at + INTERVAL 1 HOUR AS occurred_at",
    }
    changed = dict(zip(changes, _usage_ids(plant)[4:], strict=False))
    for at, (name, event_id) in enumerate(changed.items()):
        plant.clickhouse(
            f"CREATE TABLE other_{at} ENGINE = Memory AS SELECT * REPLACE ({changes[name]}) "
            f"FROM requests WHERE event_id = '{event_id}'",
            f"DELETE FROM requests WHERE event_id = '{event_id}'",
            f"INSERT INTO requests SELECT * FROM other_{at}",
        )
    found = {(subject, detail.split()[0]) for _, subject, detail in _differences(plant)}
    assert found == {(event_id, name) for name, event_id in changed.items()}


def test_the_ledger_lacks_an_event(plant):
    _story(plant)
    plant.catch_up()
    event_id = _usage_ids(plant)[2]
    plant.sql(delete(applied).where(applied.c.event_id == event_id))
    found = _differences(plant)
    assert {subject for _, subject, _ in found} == {event_id}
    assert any(pair == "bus-ledger" and "not in the ledger" in text for pair, _, text in found)


def test_the_ledger_has_an_event_too_many(plant):
    _story(plant)
    plant.catch_up()
    row = plant.books.rows(applied)[0]
    plant.sql(insert(applied).values({**row._mapping, "event_id": "extra:usage"}))
    assert [(pair, subject) for pair, subject, _ in _differences(plant)] == [
        ("bus-ledger", "extra:usage")
    ]


def test_a_settlement_is_missing(plant):
    _story(plant)
    plant.catch_up()
    event_id = _usage_ids(plant)[2]
    plant.sql(delete(settlement).where(settlement.c.event_id == event_id))
    found = _differences(plant)
    assert ("bus-ledger", event_id, "no settlement") in found
    assert {pair for pair, _, _ in found} == {
        "bus-ledger",
        "settlements-limit",
        "settlements-leases",
    }


def test_a_settlement_charges_something_else(plant):
    _story(plant)
    plant.catch_up()
    event_id = _usage_ids(plant)[2]
    less = {"charged_nano": settlement.c.charged_nano - 1}
    plant.sql(update(settlement).where(settlement.c.event_id == event_id).values(less))
    named = [text for pair, subject, text in _differences(plant) if subject == event_id]
    assert len(named) == 1
    assert "charged_nano" in named[0]


def test_the_account_and_hour_of_a_difference_are_told(plant, monkeypatch):
    """In which hour of whom ledger and ClickHouse tell other sums than the log; rows are asked for
    by ranges of accounts, so that each is read once however many there are."""
    monkeypatch.setattr(reconcile_hours, "_SPAN", 1)
    asked = []
    pages = reconcile_hours.HoursPass._range

    def noted(self, partition, first, end, within):
        found = list(pages(self, partition, first, end, within))
        asked.append((partition, within, {account for (account, _), _ in found}))
        return found

    monkeypatch.setattr(reconcile_hours.HoursPass, "_range", noted)
    leases = _story(plant)
    plant.catch_up()
    clean = plant.reconcile()
    assert clean.hour_differences == []
    assert clean.account_hours >= len(leases)
    accounts = [account for _, _, found in asked for account in found]
    assert len(accounts) == len(set(accounts)) >= len(leases)
    assert all(len(found) <= 2 for _, _, found in asked)
    rows = {row.account_id: row for row in plant.books.rows(settlement) if row.charged_nano}
    first, second = sorted(rows)[:2]
    less = {"charged_nano": settlement.c.charged_nano - 1}
    of_event = settlement.c.event_id == rows[first].event_id
    plant.sql(update(settlement).where(of_event).values(less))
    plant.clickhouse(f"DELETE FROM requests WHERE event_id = '{rows[second].event_id}'")
    report = plant.reconcile()
    assert report.exit_code == 1
    told = {text.split()[0]: text for text in report.hour_differences}
    assert told.keys() == {first, second}
    assert ": ledger " in told[first]
    assert ": ClickHouse " in told[second]
    assert report.hour_differences[0] in report.text()


def test_a_posting_too_many(plant):
    _story(plant)
    plant.catch_up()
    event_id = _usage_ids(plant)[2]
    row = {"ledger_account": "revenue", "amount_nano": 7, "occurred_at": 1}
    plant.sql(insert(posting).values({**row, "event_id": event_id, "line": 99}))
    plant.sql(insert(posting).values({**row, "event_id": "extra:usage", "line": 1}))
    found = _differences(plant)
    assert {subject for pair, subject, _ in found if pair == "bus-ledger"} == {
        event_id,
        "extra:usage",
    }
    assert ("postings", "trial balance", "14") in found


def test_a_sum_is_wrong(plant):
    leases = _story(plant)
    plant.catch_up()
    account, key, ours = leases[0].account_id, leases[0].key_id, leases[0].lease_id
    where = {
        balance: balance.c.ledger_account == f"wallet:{account}",
        limit_row: (limit_row.c.kind == "wallet") & (limit_row.c.subject == account),
        lease: lease.c.id == ours,
    }
    for table, column, pair in (
        (balance, "amount_nano", "postings-balance"),
        (limit_row, "settled_nano", "settlements-limit"),
        (limit_row, "limit_nano", "movements-wallet"),
        (limit_row, "leased_nano", "leases-limit"),
        (lease, "amount_nano", "leases-limit"),
        (lease, "consumed_nano", "settlements-leases"),
    ):
        row = update(table).where(where[table])
        plant.sql(row.values({column: table.c[column] + 1}))
        found = _differences(plant)
        assert pair in {each for each, _, _ in found}
        assert all(account in subject or key in subject for _, subject, _ in found), found
        plant.sql(row.values({column: table.c[column] - 1}))
    assert _differences(plant) == []


# -- what must be complete -----------------------------------------------------------------------


def test_a_gap_in_a_workers_numbers_is_named(plant):
    books = plant.books
    _story(plant)
    plant.catch_up()
    books.incarnation = "edge-elsewhere"
    books.budgets.open_incarnation("edge-elsewhere", "edge", "there")
    other = books.lease(books.account(10))
    books.seq = 0
    one, lost, two = other.pair(), other.pair(), other.pair()
    producer = plant.bus.producer()
    producer.send(TOPIC, records([*one, lost[1], *two, books.closed()]))
    producer.close()
    plant.catch_up()
    assert _differences(plant) == [("outbox-bus", "edge-elsewhere:3", "not in the log")]


def test_a_request_of_an_ended_worker_has_an_end(plant):
    leases = _story(plant)
    forgotten = leases[0].request()
    plant.write([forgotten])
    plant.outbox.close()
    plant.catch_up()
    found = _differences(plant)
    assert ("log", forgotten.event_id, "a request without an end") in found
    assert {pair for pair, _, _ in found} == {"log"}


# -- beside a running meter ----------------------------------------------------------------------


@pytest.mark.part("chdb")
@pytest.mark.parametrize("plant", [EMBEDDED], indirect=True)
def test_the_running_analytics_process_is_asked(plant, tmp_path):
    plant.leave_engine()
    plant.config.clickhouse.dsn = "chdb:///clickhouse"
    _story(plant)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("TOLLGATE_")},
        "TOLLGATE_DATA_DIR": plant.config.data_dir,
        "TOLLGATE_CLICKHOUSE__DATABASE": plant.config.clickhouse.database,
        "TOLLGATE_BUS__PARTITIONS": "3",
    }
    with (tmp_path / "meter.log").open("wb") as log:
        process = subprocess.Popen(
            [TOLLGATE, "meter", "--live"], env=environment, stdout=subprocess.PIPE, stderr=log
        )
    try:
        report = plant.reconcile(30.0)
        assert report.exit_code == 0, report.text() + (tmp_path / "meter.log").read_text()[-9000:]
        assert report.clickhouse.requests == 24
    finally:
        process.terminate()
        shown, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = shown.decode().splitlines()
    assert len(lines) == 24
    assert sum("free: upstream_error" in line for line in lines) == 3
    assert sum("balance $9.9" in line for line in lines) == 24
    assert plant.reconcile().exit_code == 0, "and with none running it is opened here"
