"""How far the relay of this host has come: its own small SQLite file beside the outboxes.

Losing it costs repeats, never an event; what it keeps of a dead incarnation's open work is used
by the reaper. One process at a time (the relay's guard) uses it.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from services.backends.ballast import Ballast
from services.backends.outbox_seal import OpenWork

FILE: Final = "relay.db"
BALLAST: Final = "relay.ballast"
BALLAST_BYTES: Final = 1024 * 1024

_DDL: Final = """
CREATE TABLE IF NOT EXISTS position (
    incarnation TEXT PRIMARY KEY, seq INTEGER NOT NULL, event_id TEXT NOT NULL, carried BLOB
);
CREATE TABLE IF NOT EXISTS dead (
    id INTEGER PRIMARY KEY, incarnation TEXT NOT NULL, seq INTEGER NOT NULL, event_id TEXT NOT NULL,
    reason TEXT NOT NULL, partition_key TEXT NOT NULL, body BLOB NOT NULL, at INTEGER NOT NULL,
    beside TEXT NOT NULL DEFAULT '', UNIQUE (incarnation, seq, event_id)
);
CREATE TABLE IF NOT EXISTS dismissed (id INTEGER PRIMARY KEY);  -- of dead, by people
"""

_WIDEN: Final = "ALTER TABLE dead ADD COLUMN beside TEXT NOT NULL DEFAULT ''"

_ADVANCE: Final = """
INSERT INTO position (incarnation, seq, event_id) VALUES (?, ?, ?)
ON CONFLICT (incarnation) DO UPDATE SET seq = excluded.seq, event_id = excluded.event_id
"""
_ADD_DEAD: Final = """
INSERT OR IGNORE INTO dead (incarnation, seq, event_id, reason, partition_key, body, at, beside)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

_COUNT_DEAD: Final = """
SELECT reason, count(*) FROM dead WHERE id NOT IN (SELECT id FROM dismissed) GROUP BY reason
"""


class Position(NamedTuple):
    """The last row shipped and the event_id it had; (0, "") before the first."""

    seq: int
    event_id: str


class Dead(NamedTuple):
    """A row that cannot be sent. `reason`: checksum | too_large. `seq` 0: from the SQL outbox.
    `beside`: of damaged bytes, what the outbox says of them beside (`Beside` as JSON)."""

    incarnation: str
    seq: int
    event_id: str
    reason: str
    partition_key: str
    body: bytes
    at: int  # microseconds
    beside: str = ""


class Beside(msgspec.Struct):
    """What an outbox says of an event beside its bytes."""

    kind: str
    request_id: str
    lease_id: str
    lease_seq: int


class StoreFull(Exception):
    """The disk is full and the ballast used: repeat when there is space."""


class RelayStore:
    """With `ballast_bytes` it keeps a ballast file: on a full disk it is the relay that frees
    space, and for that it must write its positions."""

    def __init__(self, folder: Path, ballast_bytes: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(
            folder / FILE, isolation_level=None, timeout=5.0, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA wal_autocheckpoint = 50")
        self._connection.executescript(_DDL)
        self._widen()
        self._ballast = Ballast(folder / BALLAST, ballast_bytes)
        self.keep_ballast()

    def _widen(self) -> None:
        """A file of a version before has no column `beside`."""
        columns = [each[1] for each in self._connection.execute("PRAGMA table_info(dead)")]
        if "beside" not in columns:
            with contextlib.suppress(sqlite3.OperationalError):  # another process has just done it
                self._connection.execute(_WIDEN)

    def keep_ballast(self) -> None:
        """Reserves the ballast again once there is space."""
        self._ballast.reserve()

    def _write(self, *statements: tuple[str, Sequence[Any]]) -> None:
        """Each statement for each of its rows, in one transaction. Raises `StoreFull`."""
        for attempt in (1, 2):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for statement, rows in statements:
                    self._connection.executemany(statement, rows)
                self._connection.execute("COMMIT")
                return
            except sqlite3.OperationalError as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
                if attempt == 2:
                    raise StoreFull(str(error)) from error
                self._ballast.drop()

    def position(self, incarnation: str) -> Position:
        row = self._connection.execute(
            "SELECT seq, event_id FROM position WHERE incarnation = ?", (incarnation,)
        ).fetchone()
        return Position(0, "") if row is None else Position(*row)

    def advance(self, incarnation: str, position: Position, dead: Sequence[Dead]) -> None:
        """The rows up to `position` are on the bus, or among `dead`; one transaction."""
        self._write((_ADVANCE, [(incarnation, *position)]), (_ADD_DEAD, dead))

    def add_dead(self, dead: Sequence[Dead]) -> None:
        if dead:
            self._write((_ADD_DEAD, dead))

    def dead(self) -> list[Dead]:
        """Everything set aside, oldest first."""
        return [
            Dead(*row)
            for row in self._connection.execute(
                "SELECT incarnation, seq, event_id, reason, partition_key, body, at, beside"
                " FROM dead ORDER BY id"
            )
        ]

    def dead_counts(self) -> dict[str, int]:
        """How many were set aside and not dismissed, by reason."""
        return dict(self._connection.execute(_COUNT_DEAD))

    def carried(self, incarnation: str) -> OpenWork:
        """What the rows of removed files left open, as of the last `carry`."""
        row = self._connection.execute(
            "SELECT carried FROM position WHERE incarnation = ?", (incarnation,)
        ).fetchone()
        if row is None or row[0] is None:
            return OpenWork()
        return msgspec.json.decode(zlib.decompress(row[0]), type=OpenWork)

    def carry(self, incarnation: str, work: OpenWork) -> None:
        """Call before files that hold rows up to `work.seq` are removed. Compressed: thousands of
        open requests must fit the ballast when the disk is full."""
        self._write(
            (
                "UPDATE position SET carried = ? WHERE incarnation = ?",
                [(zlib.compress(msgspec.json.encode(work), 1), incarnation)],
            )
        )

    def forget(self, incarnation: str) -> None:
        """The incarnation has no file any more."""
        self._write(("DELETE FROM position WHERE incarnation = ?", [(incarnation,)]))

    def close(self) -> None:
        self._connection.close()
