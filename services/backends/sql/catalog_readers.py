"""Which workers have read which version of the catalog, so that a change can be answered when all
of them act on it."""

import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import Engine, func, select, update

from services.backends.sql.catalog_changes import present_version
from services.backends.sql.engine import read, write
from services.backends.sql.tables import incarnation

PATIENCE_S: Final = 1.0  # a worker that is gone must not hold up a change
_PAUSE_S: Final = 0.02


class CatalogReaders:
    """Over the SQL database. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def confirm(self, incarnation_id: str, version: int) -> None:
        """The worker acts on this version of the catalog from now on."""
        write(
            self._engine,
            lambda connection: connection.execute(
                update(incarnation)
                .where(incarnation.c.id == incarnation_id)
                .values(catalog_version=version)
            ),
        )

    def version(self) -> int:
        """The catalog's present version."""
        return read(self._engine, present_version)

    def behind(self, version: int) -> int:
        """How many open edge workers have not read `version` yet."""
        query = (
            select(func.count())
            .select_from(incarnation)
            .where(
                incarnation.c.role == "edge",
                incarnation.c.state == "open",
                incarnation.c.catalog_version < version,
            )
        )
        return int(read(self._engine, lambda connection: connection.execute(query).scalar_one()))


def wait_for_readers(behind: Callable[[], int], sleep: Callable[[float], object]) -> None:
    """Returns when nobody is `behind` any more, after a second at the latest."""
    deadline_s = time.monotonic() + PATIENCE_S
    while behind() and time.monotonic() < deadline_s:
        sleep(_PAUSE_S)
