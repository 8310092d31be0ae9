"""The migrated database is what `tables.py` says, on both engines."""

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, exc, insert, inspect, select, update

from services.backends.sql import migrate
from services.backends.sql.engine import open_engine, read, write
from services.backends.sql.tables import (
    catalog_version,
    metadata,
    posting,
    price_version,
    routing_group,
)
from tests.parts.postgres import database_url, empty_url, engine  # noqa: F401


def test_upgrade_is_told_and_may_be_repeated(empty_url):  # noqa: F811
    assert migrate.current(empty_url) == ""
    assert migrate.upgrade(empty_url) == "0001"
    assert migrate.upgrade(empty_url) == "0001"
    assert migrate.current(empty_url) == "0001"


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
    assert answers == ["0001"] * 3


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
    assert migrate.upgrade("sqlite:///tollgate.db", tmp_path) == "0001"
    assert (tmp_path / "tollgate.db").exists()
    opened = open_engine("sqlite:///tollgate.db", Path(tmp_path))
    assert inspect(opened).has_table("limit_row")
