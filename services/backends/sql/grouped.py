"""Write transactions of many threads in one: who comes while one is under way shares the next.

The commit to disk and, on SQLite, the place of the only writer are paid once for all of them. Each
function runs in a savepoint of its own: one that fails changes nothing for the others.
"""

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection, Engine

from services.backends.sql.engine import TROUBLE, write

T = TypeVar("T")

_GROUP_MAX: Final = 32


class GroupedWrites:
    """The writing side of an engine. Safe in threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: list[_Call] = []

    def write(self, fn: Callable[[Connection], T]) -> T:
        """As `engine.write`: when it returns, what `fn` wrote is committed. Raises what `fn`
        raised, its writes undone, or DatabaseUnavailable."""
        call = _Call(fn)
        with self._lock:
            self._waiting.append(call)
        while not call.done:
            with self._turn:
                if not call.done:
                    self._commit()
        if call.error is not None:
            raise call.error
        return cast(T, call.value)

    def _commit(self) -> None:
        with self._lock:
            calls, self._waiting = self._waiting[:_GROUP_MAX], self._waiting[_GROUP_MAX:]
        try:
            write(self.engine, lambda connection: _run(connection, calls))
        except Exception as ex:
            for each in calls:
                each.error = ex
        for each in calls:
            each.done = True


class _Call:
    """One function that waits for its turn, and what came of it."""

    def __init__(self, fn: Callable[[Connection], Any]) -> None:
        self._fn = fn
        self.value: Any = None
        self.error: Exception | None = None
        self.done = False

    def run(self, connection: Connection) -> None:
        self.error = None  # it may run more than once
        self.value = self._fn(connection)

    def run_beside_others(self, connection: Connection) -> None:
        connection.exec_driver_sql("SAVEPOINT alone")
        try:
            self.run(connection)
        except TROUBLE:
            raise  # of the whole transaction
        except Exception as ex:
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT alone")
            self.error = ex
        connection.exec_driver_sql("RELEASE SAVEPOINT alone")


def _run(connection: Connection, calls: list[_Call]) -> None:
    if len(calls) == 1:
        calls[0].run(connection)
        return
    for each in calls:
        each.run_beside_others(connection)
