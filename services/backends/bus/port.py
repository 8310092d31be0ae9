"""The bus: topics of ordered, numbered records, one partition per key.

Two adapters: `local.LocalBus` (one SQLite file) and `kafka.KafkaBus`. `tests/contract/test_bus.py`
holds both to this page. Sending is at-least-once: a send whose result is unknown is repeated by the
caller, and readers drop repeats by event id. Offsets committed to the bus are advisory; whoever
must be exact keeps its position beside its results and seeks on assignment.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

MAX_RECORD_BYTES: Final = 1_000_000  # what a Kafka topic takes unless configured otherwise


class Record(NamedTuple):
    key: str
    value: bytes


def size_bytes(record: Record) -> int:
    """What `MAX_RECORD_BYTES` bounds."""
    return len(record.key.encode()) + len(record.value)


class Message(NamedTuple):
    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    timestamp_us: int  # when the bus took it, microseconds UTC


class BusUnavailable(Exception):
    """The bus cannot be reached or its answer is unknown: do the same again later."""


class RecordTooLarge(Exception):
    """`records[index]` can never be sent: put it aside and send the others (again)."""

    def __init__(self, index: int, size_bytes: int) -> None:
        super().__init__(f"record {index} of {size_bytes} bytes is larger than the topic takes")
        self.index = index
        self.size_bytes = size_bytes


class OffsetOutOfRange(Exception):
    """The log does not hold this offset (truncated, or made anew): halt and call a person."""

    def __init__(self, partition: int, offset: int, first: int, next_offset: int) -> None:
        super().__init__(
            f"partition {partition}: offset {offset} is outside of {first}..{next_offset}"
        )
        self.partition = partition
        self.offset = offset
        self.first = first
        self.next_offset = next_offset


class Producer(Protocol):
    """Used by one thread."""

    def send(self, topic: str, records: Sequence[Record]) -> None:
        """Returns when every record is durable, in order per key.

        Raises `BusUnavailable` (some, all or none are there: send all again) or `RecordTooLarge`.
        """

    def close(self) -> None: ...


class Consumer(Protocol):
    """One member of a group, used by one thread. Each partition has one member at a time."""

    def subscribe(
        self,
        topic: str,
        on_assigned: Callable[[list[int]], dict[int, int]],
        on_revoked: Callable[[list[int]], None],
    ) -> None:
        """Callbacks run inside `poll` (and `close`). `on_assigned` returns for every given
        partition the offset of the first record wanted."""

    def poll(self, timeout_s: float, max_records: int) -> dict[int, list[Message]]:
        """The next records by partition, in offset order; empty at the timeout, and while the
        bus cannot be reached. Raises `OffsetOutOfRange`."""

    def commit(self, offsets: dict[int, int]) -> None:
        """Tells the bus the next wanted offset per partition. Advisory: errors are dropped."""

    def pause(self, partitions: list[int]) -> None:
        """`poll` leaves these out but keeps the membership alive."""

    def resume(self, partitions: list[int]) -> None: ...

    def close(self) -> None: ...


class Bus(Protocol):
    def producer(self) -> Producer: ...

    def consumer(self, group: str) -> Consumer: ...

    def read(self, topic: str, partition: int, first: int, last: int) -> Iterator[Message]:
        """The records with first <= offset <= last, without membership in any group.

        Raises `OffsetOutOfRange` when the log does not hold the range, `BusUnavailable`."""

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """(first offset, next offset) of every partition. Raises `BusUnavailable`."""

    def forgets(self, topic: str) -> str:
        """The settings by which the log drops records in time, as people write them; empty: it
        keeps them all. Raises `BusUnavailable`."""

    def ensure_topics(self) -> None:
        """Makes the topics of `schemas.events` if the configuration allows it; an existing topic
        stays as it is. Raises `BusUnavailable`."""

    def close(self) -> None: ...
