"""Declares workers lost whose host did not come back.

Every relay tells the database whose files it has. When nobody has had a worker's files for long,
what they held will not come; its leases must not keep the customer's money for ever. Only after the
books have taken all that was on the bus at the moment of judgement: what the worker sent before
must not become late by a ledger that was away itself.

Each ledger process may do this: the incarnation's row is locked, and the first one does it.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from schemas.events import TOPIC
from services.backends.bus.port import Bus, BusUnavailable
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.incarnations import Incarnations
from services.backends.telemetry import get_logger, metric

_LOOK_S: Final = 60.0
_LOOKS_PER_LOSS: Final = 10


class _Mark(NamedTuple):
    ends: dict[int, int]  # of the partitions
    now_us: int


class LostHosts:
    """A loop of the role `ledger`. `positions` tells how far the books are, by partition."""

    def __init__(
        self,
        bus: Bus,
        positions: Callable[[], Mapping[int, int]],
        incarnations: Incarnations,
        lost_after_s: float,
    ) -> None:
        self._bus = bus
        self._positions = positions
        self._incarnations = incarnations
        self._lost_after_s = lost_after_s
        self._mark: _Mark | None = None
        self._log = get_logger()

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(min(_LOOK_S, self._lost_after_s / _LOOKS_PER_LOSS)):
            try:
                self.look()
            except (BusUnavailable, DatabaseUnavailable) as error:
                self._log.warning("lost_hosts_postponed", error=str(error))

    def look(self) -> None:
        """Judges as of the last look, once the books have reached what was on the bus then.
        Raises `BusUnavailable`, `DatabaseUnavailable`."""
        mark, at = self._mark, self._positions()
        if mark is not None:
            if any(at.get(partition, 0) < end for partition, end in mark.ends.items()):
                return
            self._judge(mark.now_us - round(self._lost_after_s * 1e6))
        now_us = self._incarnations.now_us()
        self._mark = _Mark({p: end for p, (_, end) in self._bus.bounds(TOPIC).items()}, now_us)

    def _judge(self, since_us: int) -> None:
        for name in self._incarnations.unseen(since_us):
            lost = self._incarnations.lose(name, actor="ledger", unseen_since_us=since_us)
            metric("tollgate_incarnations_lost_total").inc()
            self._log.critical(
                "incarnation_lost",
                incarnation=name,
                leases=lost.leases,
                returned_nano=lost.returned_nano,
            )
