"""Tells how many events of the bus a sink has not stored yet."""

import threading
from collections.abc import Callable, Mapping
from typing import Final

from schemas.events import TOPIC
from services.backends.bus.port import Bus, BusUnavailable
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import metric

_EVERY_S: Final = 10.0


class Lag:
    """Sets the gauge `name` every ten seconds. `positions` gives the next offset of each partition
    that has one."""

    def __init__(self, bus: Bus, name: str, positions: Callable[[], Mapping[int, int]]) -> None:
        self._bus = bus
        self._name = name
        self._positions = positions

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(_EVERY_S):
            try:
                metric(self._name).set(self.events())
            except (BusUnavailable, DatabaseUnavailable):
                pass  # the sink's own log tells; the last value stays

    def events(self) -> int:
        """Raises BusUnavailable, DatabaseUnavailable."""
        at = self._positions()
        return sum(
            max(0, end - max(first, at.get(partition, 0)))
            for partition, (first, end) in self._bus.bounds(TOPIC).items()
        )
