"""docs/sql.md tells the truth about the database, column by column, and its examples run."""

import re

import pytest

from services.backends.clickhouse.client import QueryLimits
from services.backends.clickhouse.rows import Place, Stored
from services.backends.clickhouse.schema import migrate
from services.backends.clickhouse.store import RequestStore
from services.meter.sql_scope import reading_statement
from tests.parts.clickhouse import CHDB, ROOT
from tests.parts.terminals import error, usage

pytest_plugins = ["tests.parts.clickhouse_fixtures"]

PAGE = (ROOT / "docs" / "sql.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", re.MULTILINE)


def documented():
    """View -> its columns: (name, type, meaning) in order."""
    sections = re.split(r"^## (\w+)$", PAGE, flags=re.MULTILINE)
    return {name: ROW.findall(text) for name, text in zip(sections[1::2], sections[2::2])}  # noqa: B905


@pytest.fixture
def migrated(clickhouse):
    migrate(clickhouse)
    return clickhouse


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_every_view_and_column_is_documented_with_its_type(migrated):
    views = migrated.select(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View'"
    ).rows
    pages = documented()
    assert set(pages) == {name for (name,) in views}
    for view, columns in pages.items():
        described = [(row[0], row[1]) for row in migrated.select(f"DESCRIBE {view}").rows]
        assert [(name, kind) for name, kind, _ in columns] == described, view
        assert all(meaning.strip() for _, _, meaning in columns)


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_money_columns_say_their_unit(migrated):
    for view, columns in documented().items():
        for name, _, meaning in columns:
            if name.endswith("_nano"):
                assert "nano-USD" in meaning, f"{view}.{name}"
            if name.endswith(("_ms", "_ms_avg")):
                assert "milliseconds" in meaning, f"{view}.{name}"


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_the_examples_run_as_printed(migrated):
    store = RequestStore(migrated)
    events = [usage(1, tags={"batch": "batch_1", "line": "1"}), error(2)]
    store.insert("t", 0, [Stored(e, Place(n, 0)) for n, e in enumerate(events)], "t")
    (block,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    examples = [text for text in block.split(";\n") if text.strip()]
    assert len(examples) == 5
    for example in examples:
        store.ask(reading_statement(example), QueryLimits())
    (row,) = store.ask(reading_statement(examples[3]), QueryLimits()).rows
    assert row[:2] == ("batch_1", 1)


@pytest.mark.parametrize("clickhouse", [CHDB], indirect=True)
def test_the_limits_are_the_ones_printed(migrated):
    limits = QueryLimits()
    assert f"at most {limits.execution_s:.0f} s" in PAGE
    assert f"at most {limits.result_rows:,} rows" in PAGE
    assert limits.memory_bytes == 1024**3
    assert "at most 1 GB of memory" in PAGE
