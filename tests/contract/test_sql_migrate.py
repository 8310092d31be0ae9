"""The migrated database is what `tables.py` says, on both engines."""

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, exc, insert, inspect, select, text, update

from services.backends.sql import (  # noqa: F401 - parts of the metadata
    batch_tables,
    job_tables,
    migrate,
    rate_tables,
)
from services.backends.sql.budgets import Budgets
from services.backends.sql.catalog import Catalog
from services.backends.sql.engine import open_engine, read, write
from services.backends.sql.tables import (
    catalog_version,
    lease,
    metadata,
    posting,
    price_version,
    routing_group,
)
from tests.parts.postgres import database_url, empty_url, engine  # noqa: F401

HEAD = max(
    file.stem[1:] for file in Path(migrate.__file__).parent.glob("migrations/versions/r*.py")
)


def test_upgrade_is_told_and_may_be_repeated(empty_url):  # noqa: F811
    assert migrate.current(empty_url) == ""
    assert migrate.upgrade(empty_url) == HEAD
    assert migrate.upgrade(empty_url) == HEAD
    assert migrate.current(empty_url) == HEAD


def test_processes_that_start_at_once(empty_url):  # noqa: F811
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(migrate.upgrade(empty_url)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [HEAD] * 3


def test_metadata_and_database_agree(engine):  # noqa: F811
    def differences(connection):
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, metadata)

    assert read(engine, differences) == []
    checks = {
        table: {check["name"] for check in inspect(engine).get_check_constraints(table)}
        for table in ("limit_row", "lease", "settlement")
    }
    assert checks == {
        "limit_row": {"ck_limit_row_settled", "ck_limit_row_leased"},
        "lease": {"ck_lease_consumed"},
        "settlement": {"ck_settlement_charged"},
    }


def test_every_column_has_a_comment(engine):  # noqa: F811
    for table in metadata.tables.values():
        for column in table.columns:
            assert column.comment, f"{table.name}.{column.name}"
    if engine.dialect.name == "postgresql":
        for name, table in metadata.tables.items():
            for column in inspect(engine).get_columns(name):
                assert column["comment"] == table.c[column["name"]].comment


def test_what_an_empty_database_holds(engine):  # noqa: F811
    groups = read(engine, lambda c: c.execute(select(routing_group)).all())
    assert [tuple(row) for row in groups] == [("default", 1_000_000, "[]")]
    assert read(engine, lambda c: c.execute(select(catalog_version)).all()) == [(1, 1)]


@pytest.mark.parametrize("change", [update(posting).values(amount_nano=2), delete(posting)])
def test_postings_cannot_be_changed(engine, change):  # noqa: F811
    row = {
        "event_id": "e",
        "line": 1,
        "ledger_account": "revenue",
        "amount_nano": 1,
        "occurred_at": 1,
    }
    write(engine, lambda c: c.execute(insert(posting).values(row)))
    with pytest.raises(exc.DBAPIError, match="append-only"):
        write(engine, lambda c: c.execute(change))


def test_price_versions_cannot_be_changed(engine):  # noqa: F811
    row = {"id": "pv_1", "body": "{}", "created_at": 1}
    write(engine, lambda c: c.execute(insert(price_version).values(row)))
    with pytest.raises(exc.DBAPIError, match="append-only"):
        write(engine, lambda c: c.execute(update(price_version).values(body="{ }")))


def test_a_relative_path_is_in_the_data_folder(tmp_path):
    assert migrate.upgrade("sqlite:///tollgate.db", tmp_path) == HEAD
    assert (tmp_path / "tollgate.db").exists()
    opened = open_engine("sqlite:///tollgate.db", Path(tmp_path))
    assert inspect(opened).has_table("limit_row")


def test_a_database_with_data_from_the_first_revision(empty_url, tmp_path):  # noqa: F811
    """The second step keeps what is there: keys go on with their quota and wallet alone."""
    opened = open_engine(empty_url, tmp_path)
    write(opened, lambda connection: migrate._upgrade(connection, "0001"))
    for statement in OLD_ROWS:
        write(opened, lambda connection, text_=statement: connection.execute(text(text_)))
    assert migrate.upgrade(empty_url) == HEAD
    catalog = Catalog(opened, bytes(32))
    (key,) = catalog.keys()
    assert key.limit_ids == ("lim_q", "lim_w")
    assert (key.quota_nano, key.parent_id, key.ip_allow, key.concurrency) == (70, None, (), 0)
    assert catalog.account("someone").concurrency == 0
    budgets = Budgets(opened)
    budgets.open_incarnation("edge-1", "edge", "here")
    assert budgets.grant("lease_new", 1, "edge-1", "key_1", 10, 10).total_nano == 10
    assert read(opened, lambda c: c.execute(select(lease.c.model)).scalars().all()) == ["", ""]
    opened.dispose()


OLD_ROWS = (
    "INSERT INTO limit_row (id, kind, subject, limit_nano, settled_nano, leased_nano) VALUES "
    "('lim_q', 'key_quota', 'key_1', 70, 5, 20), ('lim_w', 'wallet', 'acct_1', 100, 5, 20)",
    "INSERT INTO account (id, name, kind, status, wallet_limit_id, created_at) "
    "VALUES ('acct_1', 'someone', 'individual', 'active', 'lim_w', 1)",
    "INSERT INTO api_key (id, account_id, name, masked, secret_sha256, secret_sealed, group_name, "
    "status, quota_limit_id, created_at) "
    "VALUES ('key_1', 'acct_1', 'old', 'sk', 'ab', '', 'default', 'active', 'lim_q', 1)",
    "INSERT INTO incarnation (id, role, host, state, opened_at) "
    "VALUES ('edge-0', 'edge', 'here', 'open', 1)",
    "INSERT INTO lease (id, incarnation_id, account_id, key_id, limit_ids, amount_nano, "
    "consumed_nano, reserved_nano, spent_nano, events_applied, grant_no, grant_nano, give_no, "
    "state, opened_at) VALUES ('lease_old', 'edge-0', 'acct_1', 'key_1', "
    "'[\"lim_q\",\"lim_w\"]', 25, 5, 0, 0, 1, 1, 25, 0, 'open', 1)",
)
