"""Writes down what an upstream has told, however long the database is away, within reason: it may
be told once only."""

from collections.abc import Callable
from typing import Final, TypeVar

from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import get_logger
from services.batch.parts import Parts

T = TypeVar("T")

_FOR_S: Final = 60.0
_PAUSE_S: Final = 0.5


def insist(parts: Parts, step: Callable[[], T]) -> T:
    """What `step` returns. It may run again although it was committed: its fence tells. Raises
    DatabaseUnavailable after a minute, and what `step` raises."""
    until_s = parts.clock.monotonic_s() + _FOR_S
    while True:
        try:
            return step()
        except DatabaseUnavailable as ex:
            if parts.clock.monotonic_s() >= until_s:
                raise
            get_logger().warning("written_later", error=str(ex))
            parts.clock.sleep(_PAUSE_S)
