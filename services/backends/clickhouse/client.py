"""One ClickHouse behind one class: in this process (`chdb:///path`) or served (`http://host/db`).

Statements run on a small pool of clients, one thread at a time each. Every insert is sent
synchronously, with deduplication on and a token, so that sending it again after an unknown result
stores nothing twice. Questions of people run on a client of their own with limits that its session
cannot lift: in the embedded engine a read-only session stays read-only for good, so that client is
thrown away after one statement.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from services.backends.clickhouse.embedded import EmbeddedEngine

_IDLE_CLIENTS: Final = 8
_CONNECT_TIMEOUT_S: Final = 5
_EXCHANGE_TIMEOUT_S: Final = 60  # below the bus's longest pause between two polls
_QUERY_BYTES: Final = 4 * 1024 * 1024
_DRIVER_LOG: Final = logging.getLogger("clickhouse_connect")
_NAME: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
_INSERT_SETTINGS: Final = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}
# What the server says when it means "not now": timeouts, memory, too many queries or parts,
# network, shutting down. Any other number is an answer.
_TRANSIENT_CODES: Final = frozenset({159, 198, 202, 209, 210, 236, 241, 242, 252, 319, 425, 516})


class ClickHouseUnavailable(Exception):
    """No answer, or "not now": what was asked may or may not have happened. Ask the same again."""


class QueryRefused(Exception):
    """The statement gets no answer as it stands; `code` is ClickHouse's error number or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class QueryLimits(NamedTuple):
    """What one question of a person may cost."""

    execution_s: float = 10.0
    result_rows: int = 10_000
    memory_bytes: int = 1024 * 1024 * 1024


class Rows(NamedTuple):
    """A result: names and ClickHouse types of the columns, and the rows."""

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]


class ClickHouse:
    """One database of one ClickHouse. Safe for threads; close it once.

    `dsn`: `chdb:///path` (a folder that this process then owns; relative to `folder`, absolute
    with a fourth slash) or `http(s)://user:password@host:port[/database]`. A database named by the
    DSN goes before `database`. Raises EngineBusy when another process owns the folder, and
    ClickHouseUnavailable when the server does not answer."""

    def __init__(
        self,
        dsn: str,
        database: str,
        *,
        folder: Path = Path("."),
        exchange_timeout_s: int = _EXCHANGE_TIMEOUT_S,
    ) -> None:
        parts = urlsplit(dsn)
        if parts.scheme not in ("chdb", "http", "https"):
            raise ValueError(f"clickhouse.dsn: {parts.scheme or dsn!r} is no scheme of ours")
        self._options: dict[str, Any] = {"show_clickhouse_errors": "scrub"}
        self._engine: EmbeddedEngine | None = None
        if parts.scheme == "chdb":
            self._engine = EmbeddedEngine(folder / parts.path[1:])
            self._dsn = f"chdb://{self._engine.path}"
            self.database = database
        else:
            self.database = parts.path.strip("/") or database
            self._dsn = parts._replace(path="").geturl()
            self._options |= {
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "send_receive_timeout": exchange_timeout_s,
                "query_retries": 0,
                "autogenerate_session_id": False,
            }
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._closed = False
        try:
            if not _NAME.match(self.database):
                raise ValueError(f"clickhouse.database: {self.database!r} is no plain name")
            self._create_database()
        except BaseException:
            self.close()
            raise

    @property
    def embedded(self) -> bool:
        """Whether the engine lives in this process."""
        return self._engine is not None

    def command(self, sql: str) -> None:
        """Runs one statement that returns nothing. Raises as `select`."""
        with self._client() as client:
            client.command(sql)

    def select(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Rows:
        """The rows of a query of ours; `parameters` are bound as `{name:Type}`.

        Raises ClickHouseUnavailable or QueryRefused."""
        with self._client() as client:
            return _rows(client.query(sql, parameters=dict(parameters or {})))

    def insert(
        self,
        table: str,
        names: Sequence[str],
        types: Sequence[str],
        columns: Sequence[Sequence[Any]],
        token: str,
    ) -> None:
        """Stores `columns` (one sequence each, equal lengths) as one block under `token`.

        Returns once the rows are stored, now or by an earlier insert with this token. Raises
        ClickHouseUnavailable: unknown, insert the same again; QueryRefused: not stored."""
        with self._client() as client:
            client.insert(
                table,
                columns,
                column_names=list(names),
                column_type_names=list(types),
                database=self.database,
                column_oriented=True,
                settings={**_INSERT_SETTINGS, "insert_deduplication_token": token},
            )

    def ask(self, sql: str, limits: QueryLimits) -> Rows:
        """The answer to a statement of a person, read-only and within `limits`.

        Raises ClickHouseUnavailable or QueryRefused (also for passed limits)."""
        settings: dict[str, Any] = {
            "max_execution_time": limits.execution_s,
            "max_result_rows": limits.result_rows,
            "max_memory_usage": limits.memory_bytes,
            "result_overflow_mode": "throw",
            "readonly": 1,
        }
        try:
            with _errors():
                client = self._connect(self.database, settings)
                try:
                    return _rows(client.query(sql))
                finally:
                    client.close()
        except _PassedLimit as ex:
            raise QueryRefused(str(ex), ex.code) from ex

    def close(self) -> None:
        """Closes the clients and gives the folder up. Harmless when done twice."""
        if self._closed:
            return
        self._closed = True
        for client in self._idle:
            client.close()
        self._idle.clear()
        if self._engine is not None:
            self._engine.release()

    # -- clients -----------------------------------------------------------------------------

    def _create_database(self) -> None:
        with _errors():
            client = self._connect(None, {})
            try:
                client.command(f"CREATE DATABASE IF NOT EXISTS {self.database}")
            finally:
                client.close()

    def _connect(self, database: str | None, settings: dict[str, Any]) -> Any:
        import clickhouse_connect  # a quarter of what a command that asks the meter takes to start

        _DRIVER_LOG.setLevel(logging.CRITICAL)  # what it would say is in its exceptions
        return clickhouse_connect.get_client(
            dsn=self._dsn, database=database, settings=settings, **self._options
        )

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        """A client of the pool; one that met an error other than an answer is thrown away."""
        from clickhouse_connect.driver import exceptions

        with _errors():
            client = self._take()
            try:
                yield client
            except exceptions.DatabaseError as ex:
                (self._give if ex.code else _discard)(client)
                raise
            except BaseException:
                _discard(client)
                raise
            self._give(client)

    def _take(self) -> Any:
        with self._lock:
            if self._closed:
                raise ClickHouseUnavailable("closed")
            if self._idle:
                return self._idle.pop()
        return self._connect(self.database, {"max_query_size": _QUERY_BYTES})

    def _give(self, client: Any) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE_CLIENTS:
                self._idle.append(client)
                return
        _discard(client)


class _PassedLimit(ClickHouseUnavailable):
    """A time or memory limit was passed: for a question of a person that is the answer."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """The driver's and the socket's exceptions as the two of ours."""
    from clickhouse_connect.driver import exceptions

    try:
        yield
    except exceptions.Error as ex:
        message, code = _first_line(ex), ex.code or 0
        if code in (159, 241):
            raise _PassedLimit(message, code) from ex
        # Without a number: the driver's own, about what it was given, or it happened on the way.
        mistakes = (
            exceptions.ProgrammingError,
            exceptions.DataError,
            exceptions.NotSupportedError,
        )
        if code in _TRANSIENT_CODES or (not code and not isinstance(ex, mistakes)):
            raise ClickHouseUnavailable(message) from ex
        raise QueryRefused(message, code) from ex
    except OSError as ex:
        raise ClickHouseUnavailable(f"{type(ex).__name__}: {ex}") from ex


def _first_line(ex: Exception) -> str:
    """What went wrong; on the way to the server, also why."""
    told = str(ex)
    on_the_way = getattr(ex.__cause__, "reason", None)
    if isinstance(on_the_way, Exception):
        told += f": {on_the_way}"
    return told.strip().split("\n", 1)[0][:1000]


def _discard(client: Any) -> None:
    with contextlib.suppress(Exception):
        client.close()


def _rows(result: Any) -> Rows:
    return Rows(
        columns=list(result.column_names),
        types=[str(t.name) for t in result.column_types],
        rows=[tuple(row) for row in result.result_rows],
    )
