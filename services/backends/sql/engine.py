"""Transactions on the SQL database: SQLite (WAL, FULL) or PostgreSQL (psycopg 3).

`write` runs a short function in one write transaction and repeats it when the database says that
repeating helps; `read` runs one on a consistent snapshot. The function must do nothing but SQL: it
may run more than once. Times in the database are the database's own, through `now_us()`.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import BigInteger, Connection, Engine, create_engine, event, exc, make_url, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

T = TypeVar("T")

ATTEMPTS: Final = 10
PAUSE_S: Final = 0.002  # doubles from attempt to attempt, each with full jitter
PAUSE_MAX_S: Final = 0.2
BUSY_TIMEOUT_MS: Final = 3_000
LOCK_TIMEOUT_MS: Final = 5_000
STATEMENT_TIMEOUT_MS: Final = 60_000
LONG_TIMEOUT_MS: Final = 3_600_000  # of one that goes over whole tables
IDLE_TIMEOUT_MS: Final = 10_000  # a process that stands still in a transaction loses its locks

_WRITE: Final = "tollgate_write"
_IDLE_TOO_LONG: Final = "25P03"
_REPEAT_SQLSTATES: Final = frozenset({"40001", "40P01", "55P03", _IDLE_TOO_LONG})
TROUBLE: Final = (
    exc.OperationalError,
    exc.InterfaceError,
    exc.TimeoutError,
    exc.InternalError,  # one of them is: idle for too long
)
_REPEAT_SQLITE: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")


class DatabaseUnavailable(Exception):
    """The database cannot be reached or stays busy. Whether a commit that was under way took
    effect is unknown: read again before repeating what is not idempotent."""


class now_us(FunctionElement[int]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock: microseconds since the epoch, UTC."""

    type = BigInteger()
    inherit_cache = True


class statement_us(FunctionElement[int]):  # noqa: N801 - as `now_us`
    """`now_us` when the statement came, the same for all its rows: an index can be searched with
    it. For what is due; what waited for a lock asks `now_us`."""

    type = BigInteger()
    inherit_cache = True


_NOW: Final = select(now_us())


@compiles(statement_us, "sqlite")
@compiles(now_us, "sqlite")
def _now_us_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) * 1000 AS INTEGER)"


@compiles(now_us, "postgresql")
def _now_us_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(statement_us, "postgresql")
def _statement_us_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS BIGINT)"


def open_engine(url: str, data_dir: Path) -> Engine:
    """The engine of `url`; a relative SQLite path is relative to `data_dir`.

    Open it after a fork, once per process. Connects at first use."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        file = data_dir / (parsed.database or "tollgate.db")
        file.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed.set(database=str(file)), pool_size=8, max_overflow=8)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() != "postgresql":
        raise ValueError(f"no such database: {parsed.get_backend_name()} (sqlite or postgresql)")
    options = (
        f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS}"
        f" -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS}"
    )
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=8,
        connect_args={
            "options": options,
            "connect_timeout": 5,
            "application_name": "tollgate",
        },
    )


def _configure_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _begin_sqlite does
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def write(engine: Engine, fn: Callable[[Connection], T]) -> T:
    """`fn(connection)` in one write transaction, committed when it returns.

    Repeats it on serialization failure, deadlock and busy, at most ATTEMPTS times. An exception of
    `fn` rolls back and passes. Raises DatabaseUnavailable."""
    pause_s = PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with engine.connect() as connection:
                connection = connection.execution_options(**{_WRITE: True})
                with connection.begin():
                    return fn(connection)
        except TROUBLE as ex:
            if _at_fault(ex):
                raise
            if attempt == ATTEMPTS or not _worth_repeating(ex):
                raise DatabaseUnavailable(_first_line(ex)) from ex
        time.sleep(random.uniform(0, pause_s))
        pause_s = min(pause_s * 2, PAUSE_MAX_S)
    raise AssertionError("unreachable")


def read_long(engine: Engine, fn: Callable[[Connection], T]) -> T:
    """As `read`, for audits and copies: each statement may go over all that there is."""

    def patiently(connection: Connection) -> T:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {LONG_TIMEOUT_MS}")
        return fn(connection)

    return read(engine, patiently)


def read(engine: Engine, fn: Callable[[Connection], T]) -> T:
    """`fn(connection)` on one consistent snapshot. Raises DatabaseUnavailable."""
    try:
        with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            with connection.begin():
                return fn(connection)
    except TROUBLE as ex:
        if _at_fault(ex):
            raise
        raise DatabaseUnavailable(_first_line(ex)) from ex


def database_now_us(connection: Connection) -> int:
    """The database's clock, microseconds (SQLite: to the millisecond)."""
    return int(connection.execute(_NOW).scalar_one())


def _worth_repeating(ex: Exception) -> bool:
    cause = getattr(ex, "orig", None)
    if getattr(cause, "sqlstate", None) in _REPEAT_SQLSTATES:
        return True
    return str(getattr(cause, "sqlite_errorname", "")).startswith(_REPEAT_SQLITE)


def _at_fault(ex: Exception) -> bool:
    cause = getattr(ex, "orig", None)
    if isinstance(ex, exc.InternalError):
        return getattr(cause, "sqlstate", None) != _IDLE_TOO_LONG
    # A wrong statement (no such table) is an OperationalError too, on SQLite only.
    return getattr(cause, "sqlite_errorname", "") == "SQLITE_ERROR"


def _first_line(ex: Exception) -> str:
    return str(getattr(ex, "orig", None) or ex).strip().partition("\n")[0]
