"""The bus of one machine: an SQLite file with a table per partition, rowid = offset.

Any number of processes may send and read. A commit is one fsync'd transaction, so an offset that
was seen stays. Two consumers of one group exclude each other by a lock file: the first gets every
partition, the second waits for it to close or die.
"""

import contextlib
import fcntl
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from schemas.events import TOPIC
from services.backends.bus.port import (
    MAX_RECORD_BYTES,
    BusUnavailable,
    Message,
    OffsetOutOfRange,
    Record,
    RecordTooLarge,
    size_bytes,
)

_BUSY_S: Final = 5.0
_IDLE_MAX_S: Final = 0.05
_READ_CHUNK: Final = 1000

_DDL: Final = """
CREATE TABLE IF NOT EXISTS topic (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS group_offset (
    name TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (name, topic, partition)
) WITHOUT ROWID;
"""


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=_BUSY_S, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _table(topic_id: int, partition: int) -> str:
    return f"log_{topic_id}_{partition}"


class _Log:
    """One connection and what it knows of the topics. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.connection = _connect(path)
        self._topics: dict[str, tuple[int, int]] = {}

    def topic(self, name: str) -> tuple[int, int]:
        """(id, partitions). Raises `BusUnavailable` while nobody has made the topic."""
        known = self._topics.get(name)
        if known is None:
            row = self.connection.execute(
                "SELECT id, partitions FROM topic WHERE name = ?", (name,)
            ).fetchone()
            if row is None:
                raise BusUnavailable(f"topic {name} does not exist")
            known = self._topics[name] = (row[0], row[1])
        return known

    def bounds(self, topic_id: int, partition: int) -> tuple[int, int]:
        table = _table(topic_id, partition)  # two queries: SQLite seeks only for a lone min or max
        first, last = self.connection.execute(
            f"SELECT (SELECT min(offset) FROM {table}), (SELECT max(offset) FROM {table})"  # noqa: S608
        ).fetchone()
        return (0, 0) if last is None else (first, last + 1)

    def fetch(self, topic: str, partition: int, first: int, limit: int) -> list[Message]:
        topic_id, _ = self.topic(topic)
        rows = self.connection.execute(
            f"SELECT offset, key, value, at FROM {_table(topic_id, partition)}"  # noqa: S608
            " WHERE offset >= ? ORDER BY offset LIMIT ?",
            (first, limit),
        )
        return [Message(topic, partition, row[0], row[1], row[2], row[3]) for row in rows]

    def version(self) -> int:
        """Another number once somebody else has committed; far cheaper than looking for rows."""
        found: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
        return found

    def check(self, topic: str, partition: int, offset: int) -> None:
        """Raises `OffsetOutOfRange` unless `offset` is in the log or the next to come."""
        first, following = self.bounds(self.topic(topic)[0], partition)
        if not first <= offset <= following:
            raise OffsetOutOfRange(partition, offset, first, following)


class LocalProducer:
    def __init__(self, path: Path) -> None:
        self._log = _Log(path)

    def send(self, topic: str, records: Sequence[Record]) -> None:
        for index, record in enumerate(records):
            if size_bytes(record) > MAX_RECORD_BYTES:
                raise RecordTooLarge(index, size_bytes(record))
        try:
            self._write(topic, records)
        except sqlite3.OperationalError as error:
            raise BusUnavailable(f"local log: {error}") from error

    def _write(self, topic: str, records: Sequence[Record]) -> None:
        topic_id, partitions = self._log.topic(topic)
        connection = self._log.connection
        rows: dict[int, list[tuple[str, bytes]]] = {}
        for key, value in records:
            rows.setdefault(zlib.crc32(key.encode()) % partitions, []).append((key, value))
        connection.execute("BEGIN IMMEDIATE")
        try:
            at = time.time_ns() // 1000
            for partition, batch in rows.items():
                start = self._log.bounds(topic_id, partition)[1]
                connection.executemany(
                    f"INSERT INTO {_table(topic_id, partition)} VALUES (?, ?, ?, ?)",  # noqa: S608
                    [(start + i, key, value, at) for i, (key, value) in enumerate(batch)],
                )
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._log.connection.close()


class LocalConsumer:
    def __init__(self, path: Path, group: str) -> None:
        self._path = path
        self._group = group
        self._log = _Log(path)
        self._lock_fd = -1
        self._topic = ""
        self._wanted: dict[int, int] = {}  # partition -> next offset to hand out
        self._paused: set[int] = set()
        self._empty_at: int | None = None  # the log's version when all was read
        self._turn = 0
        self._on_assigned: Callable[[list[int]], dict[int, int]] | None = None
        self._on_revoked: Callable[[list[int]], None] | None = None

    def subscribe(
        self,
        topic: str,
        on_assigned: Callable[[list[int]], dict[int, int]],
        on_revoked: Callable[[list[int]], None],
    ) -> None:
        self._topic = topic
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    def poll(self, timeout_s: float, max_records: int) -> dict[int, list[Message]]:
        deadline = time.monotonic() + timeout_s
        idle_s = 0.002
        while True:
            found = self._poll_once(max_records)
            left_s = deadline - time.monotonic()
            if found or left_s <= 0:
                return found
            time.sleep(min(idle_s, left_s))
            idle_s = min(idle_s * 2, _IDLE_MAX_S)

    def _poll_once(self, max_records: int) -> dict[int, list[Message]]:
        try:
            if self._lock_fd < 0 and not self._join():
                return {}
            return self._fetch(max_records)
        except (sqlite3.OperationalError, BusUnavailable):
            return {}  # busy, or no topic yet: the caller polls again

    def _join(self) -> bool:
        """Takes the group's lock and the partitions; False while another member has them."""
        if self._on_assigned is None:
            return False
        _, partitions = self._log.topic(self._topic)
        name = f"{self._path.name}.{self._group}.{self._topic}.lock"
        fd = os.open(self._path.with_name(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        try:
            wanted = self._on_assigned(list(range(partitions)))
            for partition, offset in wanted.items():
                self._log.check(self._topic, partition, offset)
        except BaseException:
            os.close(fd)  # whoever polls next joins anew
            raise
        self._lock_fd = fd
        self._wanted, self._empty_at = dict(wanted), None
        return True

    def _fetch(self, max_records: int) -> dict[int, list[Message]]:
        found: dict[int, list[Message]] = {}
        version = self._log.version()  # before the rows: what comes meanwhile is seen the next time
        if version == self._empty_at:
            return found
        partitions = [p for p in self._wanted if p not in self._paused]
        self._turn += 1
        room = max_records
        for i in range(len(partitions)):  # another partition is first each time, so none starves
            partition = partitions[(self._turn + i) % len(partitions)]
            if room <= 0:
                break
            messages = self._log.fetch(self._topic, partition, self._wanted[partition], room)
            if messages:
                if messages[0].offset != self._wanted[partition]:
                    self._log.check(self._topic, partition, self._wanted[partition])
                self._wanted[partition] = messages[-1].offset + 1
                found[partition] = messages
                room -= len(messages)
        self._empty_at = None if found else version
        return found

    def commit(self, offsets: dict[int, int]) -> None:
        rows = [(self._group, self._topic, p, offset) for p, offset in offsets.items()]
        with contextlib.suppress(sqlite3.OperationalError):  # advisory
            self._log.connection.executemany(
                "INSERT OR REPLACE INTO group_offset VALUES (?, ?, ?, ?)", rows
            )

    def pause(self, partitions: list[int]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: list[int]) -> None:
        if not self._paused.isdisjoint(partitions):
            self._empty_at = None
        self._paused.difference_update(partitions)

    def close(self) -> None:
        if self._lock_fd >= 0:
            if self._on_revoked is not None:
                self._on_revoked(sorted(self._wanted))
            os.close(self._lock_fd)
            self._lock_fd = -1
        self._log.connection.close()


class LocalBus:
    """`path` is made if needed, with `partitions` per topic. Raises `BusUnavailable`."""

    def __init__(self, path: Path, partitions: int) -> None:
        self._path = path
        self._partitions = partitions
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(path)) as connection:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_DDL)
            except sqlite3.OperationalError as error:
                raise BusUnavailable(f"local log: {error}") from error

    def producer(self) -> LocalProducer:
        return LocalProducer(self._path)

    def consumer(self, group: str) -> LocalConsumer:
        return LocalConsumer(self._path, group)

    def read(self, topic: str, partition: int, first: int, last: int) -> Iterator[Message]:
        log = _Log(self._path)
        try:
            log.check(topic, partition, first)
            log.check(topic, partition, last + 1)
            while first <= last:
                messages = log.fetch(topic, partition, first, min(_READ_CHUNK, last - first + 1))
                yield from messages
                first = messages[-1].offset + 1
        finally:
            log.connection.close()

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        log = _Log(self._path)
        try:
            topic_id, partitions = log.topic(topic)
            return {p: log.bounds(topic_id, p) for p in range(partitions)}
        except sqlite3.OperationalError as error:
            raise BusUnavailable(f"local log: {error}") from error
        finally:
            log.connection.close()

    def forgets(self, topic: str) -> str:
        return ""

    def ensure_topics(self) -> None:
        with contextlib.closing(_connect(self._path)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._make_topic(connection, TOPIC)
                connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise BusUnavailable(f"local log: {error}") from error

    def _make_topic(self, connection: sqlite3.Connection, name: str) -> None:
        made = connection.execute(
            "INSERT OR IGNORE INTO topic (name, partitions) VALUES (?, ?)",
            (name, self._partitions),
        )
        if made.rowcount == 0:
            return
        for partition in range(self._partitions):
            connection.execute(
                f"CREATE TABLE {_table(made.lastrowid or 0, partition)}"
                " (offset INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB NOT NULL,"
                " at INTEGER NOT NULL)"
            )

    def close(self) -> None:
        """Producers and consumers are closed by whoever asked for them."""
