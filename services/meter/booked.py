"""Which terminals of the log become rows of the analytics tables: those that the ledger booked.

The tables follow the ledger, never overtake it: what it set aside has no row, whatever the reason.
A terminal that was replayed (`tollgate dead`) comes again at the end of the log; its row then
stands at the place where the event stood first, as if it had been booked at once.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Engine

from schemas.events import TOPIC, AnyEvent, Error, Usage
from services.backends.bus.port import Message
from services.backends.clickhouse.rows import Place, Stored
from services.backends.sql.dead_events import REPLAYED, DeadEvents
from services.backends.sql.ledger import LedgerStore
from services.meter.dead import Poison, event_id_of, read_event


class Fates(NamedTuple):
    """Of messages that the ledger has taken. `set_aside`: offsets of those that it did not book;
    `places`: offset of a repeated one -> where the event, set aside at first, stood before."""

    set_aside: frozenset[int] = frozenset()
    places: Mapping[int, int] = {}


class Terminal(NamedTuple):
    message: Message
    row: Stored


NOTHING_DEAD: Final = Fates()


class Booked:
    """Over the SQL database. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine, topic: str = TOPIC) -> None:
        self._ledger = LedgerStore(engine)
        self._dead = DeadEvents(engine)
        self._topic = topic

    def reached(self, partition: int) -> int:
        """The offset behind everything that the ledger has taken of the partition."""
        at = self._ledger.positions(self._topic).get(partition)
        return 0 if at is None else at.next_offset

    def fates(self, partition: int, messages: Sequence[Message]) -> Fates:
        """Of messages below `reached`."""
        if not self._dead.any_of(self._topic, partition):
            return NOTHING_DEAD
        ids = {message.offset: event_id_of(message.value) for message in messages}
        found = self._dead.by_event_id(self._topic, partition, set(ids.values()))
        set_aside: set[int] = set()
        places: dict[int, int] = {}
        for message in messages:
            for dead in found.get(ids[message.offset], ()):
                if dead.body != message.value:
                    continue
                if dead.state != REPLAYED:
                    set_aside.add(message.offset)
                elif dead.offset != message.offset:
                    places[message.offset] = dead.offset
        return Fates(frozenset(set_aside), places)


def terminals(
    messages: Iterable[Message], fates: Fates, dropped: Collection[str] = ()
) -> list[Terminal]:
    """The booked terminals among `messages`, each event once, without the events of `dropped`."""
    found: list[Terminal] = []
    seen = set(dropped)
    for message in messages:
        if message.offset in fates.set_aside:
            continue
        event: AnyEvent | None
        try:
            event = read_event(message.value)
        except Poison as ex:
            event = ex.event
        if isinstance(event, Usage | Error) and event.event_id not in seen:
            seen.add(event.event_id)
            place = Place(fates.places.get(message.offset, message.offset), message.timestamp_us)
            found.append(Terminal(message, Stored(event, place)))
    return found
