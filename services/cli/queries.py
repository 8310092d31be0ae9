"""Usage and SQL for commands: from the running meter, else from the files themselves."""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from schemas.config import Config
from services.backends.clickhouse.client import QueryLimits
from services.backends.clickhouse.embedded import EngineBusy
from services.backends.clickhouse.store import RequestStore, open_store
from services.backends.clock import SystemClock
from services.backends.query_client import QueryClient, QueryUnavailable
from services.meter.query_api import plain
from services.meter.query_params import window_us
from services.meter.sql_scope import reading_statement
from services.meter.usage_queries import Filter, usage_buckets, usage_rows

T = TypeVar("T")

_BUSY_S: Final = 20.0
_PAUSE_S: Final = 0.2


def rows(config: Config, account_id: str, limit: int) -> list[dict[str, Any]]:
    """The newest `limit` requests of an account, billed and failed."""
    answer = _ask(
        config,
        lambda client: client.get("/v1/usage", account_id, {"limit": str(limit)}),
        lambda store: usage_rows(store, Filter(account_id), limit=limit, cursor=None),
    )
    found: list[dict[str, Any]] = msgspec.to_builtins(answer)["data"]
    return found


def buckets(config: Config, account_id: str, group_by: tuple[str, ...]) -> dict[str, Any]:
    """What was billed in the last 30 days, summed up by `day`, `hour`, `model`, `api_key` or
    several of them."""
    since_us, _ = window_us({}, SystemClock().now_us())
    answer = _ask(
        config,
        lambda client: client.get("/api/v1/me/usage", account_id, {"group_by": ",".join(group_by)}),
        lambda store: usage_buckets(store, Filter(account_id, since_us=since_us), group_by),
    )
    found: dict[str, Any] = msgspec.to_builtins(answer)
    return found


def sql(config: Config, statement: str) -> dict[str, Any]:
    """`{"columns", "types", "rows"}` of one reading statement."""

    def from_store(store: RequestStore) -> dict[str, Any]:
        found = store.ask(reading_statement(statement), QueryLimits())
        values = [[plain(value) for value in row] for row in found.rows]
        return {"columns": list(found.columns), "types": list(found.types), "rows": values}

    return _ask(config, lambda client: client.sql(statement), from_store)


def _ask(
    config: Config,
    from_meter: Callable[[QueryClient], T],
    from_store: Callable[[RequestStore], T],
) -> T:
    """The answer of the running meter; when none answers, the store is opened here. A store that
    another process holds belongs to a meter that is starting, or to another command: tried again
    for a while. Raises EngineBusy after that."""
    client = QueryClient(config)
    deadline_s = time.monotonic() + _BUSY_S
    while True:
        try:
            return from_meter(client)
        except QueryUnavailable:
            pass  # none runs, or not yet
        try:
            store = open_store(config)
        except EngineBusy:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(_PAUSE_S)
            continue
        try:
            return from_store(store)
        finally:
            store.close()
