"""Usage and SQL for commands: from the running meter, else from the files themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from schemas.config import Config
from services.backends.clickhouse.client import QueryLimits
from services.backends.clickhouse.store import RequestStore, open_store
from services.backends.query_client import QueryClient, QueryUnavailable
from services.meter.query_api import plain
from services.meter.sql_scope import reading_statement
from services.meter.usage_queries import Filter, usage_buckets, usage_rows


def rows(config: Config, account_id: str, limit: int) -> list[dict[str, Any]]:
    """The newest `limit` requests of an account, billed and failed."""
    try:
        params = {"limit": str(limit)}
        answer = QueryClient(config).get("/v1/usage", account_id, params)
    except QueryUnavailable:
        with _store(config) as store:
            answer = usage_rows(store, Filter(account_id), limit=limit, cursor=None)
    found: list[dict[str, Any]] = msgspec.to_builtins(answer)["data"]
    return found


def buckets(config: Config, account_id: str, group_by: str) -> dict[str, Any]:
    """What was billed in the last 30 days, summed up by `day`, `hour`, `model`, `api_key` or
    several of them, comma-separated."""
    try:
        params = {"group_by": group_by}
        answer = QueryClient(config).get("/api/v1/me/usage", account_id, params)
    except QueryUnavailable:
        with _store(config) as store:
            answer = usage_buckets(store, Filter(account_id), tuple(group_by.split(",")))
    found: dict[str, Any] = msgspec.to_builtins(answer)
    return found


def sql(config: Config, statement: str) -> dict[str, Any]:
    """`{"columns", "types", "rows"}` of one reading statement."""
    try:
        answer: dict[str, Any] = QueryClient(config).sql(statement)
    except QueryUnavailable:
        with _store(config) as store:
            found = store.ask(reading_statement(statement), QueryLimits())
            values = [[plain(value) for value in row] for row in found.rows]
            answer = {"columns": list(found.columns), "types": list(found.types), "rows": values}
    return answer


@contextmanager
def _store(config: Config) -> Iterator[RequestStore]:
    store = open_store(config)
    try:
        yield store
    finally:
        store.close()
