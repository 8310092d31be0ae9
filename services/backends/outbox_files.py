"""Reading the outbox files of other processes.

Readers open read-only snapshots: they never checkpoint, never truncate and never remove a WAL, so
a living worker does not notice them. What may leave the machine ends at the `.sync` number, for
the living and the dead alike.
"""

import contextlib
import re
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from services.backends.outbox_layout import ballast_path, file_path, lock_path, sync_path

_FILE_NAME: Final = re.compile(r"(?P<incarnation>.+)-(?P<number>\d{6,})\.db")
_COLUMNS: Final = "seq, kind, request_id, lease_id, lease_seq, partition_key, body, crc32"
_SCAN_ROWS: Final = 1000
_SCAN_BYTES: Final = 8 * 1024 * 1024


class OutboxCorrupt(Exception):
    """SQLite cannot read a file: leave it in place, carry on with the others, call a person."""


class NotReadable(Exception):
    """The file is being made, moved or is out of space: ask again later."""


class Row(NamedTuple):
    seq: int
    kind: str
    request_id: str
    lease_id: str
    lease_seq: int
    partition_key: str
    body: bytes
    intact: bool  # False: the body does not match its checksum


class FileState(NamedTuple):
    started: bool  # False: a spare that holds no rows
    finished: bool  # no row will follow in this file
    ended: bool  # no row will follow in this incarnation
    last_seq: int  # 0 when there is no row


class IncarnationFiles:
    """The files of one incarnation, seen from another process."""

    def __init__(self, folder: Path, incarnation: str) -> None:
        self.folder = folder
        self.incarnation = incarnation
        self._begin = (0, 0)  # rows above this seq are in files from this number on

    def numbers(self) -> list[int]:
        """The numbers of the files that are there, in order."""
        found = []
        for path in self.folder.glob(f"{self.incarnation}-*.db"):
            match = _FILE_NAME.fullmatch(path.name)
            if match is not None and match["incarnation"] == self.incarnation:
                found.append(int(match["number"]))
        return sorted(found)

    def synced_seq(self) -> int:
        """The last seq that may leave the machine."""
        try:
            data = sync_path(self.folder, self.incarnation).read_bytes()
        except FileNotFoundError:
            return 0
        return int.from_bytes(data[:8], "little")

    def rows(self, after_seq: int, limit: int, max_bytes: int, upto_seq: int) -> list[Row]:
        """Rows with after_seq < seq <= upto_seq in order, at most `limit`, and no further row
        once their bodies pass `max_bytes`. Raises `OutboxCorrupt`, `NotReadable`."""
        rows: list[Row] = []
        size = 0
        seq, first = self._begin
        for number in self.numbers():
            if number < first and after_seq >= seq:
                continue  # read before; a file that has a successor with rows gets no more
            if len(rows) == limit or size >= max_bytes:
                break
            with self._open(number) as connection:
                if connection is None:
                    continue
                cursor = connection.execute(
                    f"SELECT {_COLUMNS} FROM event"  # noqa: S608
                    " WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                    (after_seq, upto_seq, limit - len(rows)),
                )
                for values in cursor:
                    if not rows:
                        self._begin = (after_seq, number)
                    rows.append(_row(values))
                    size += len(values[6])
                    if size >= max_bytes:
                        break
        return rows

    def scan(self, after_seq: int, upto_seq: int) -> Iterator[Row]:
        """All rows with after_seq < seq <= upto_seq, in bounded memory."""
        while True:
            rows = self.rows(after_seq, _SCAN_ROWS, _SCAN_BYTES, upto_seq)
            if not rows:
                return
            yield from rows
            after_seq = rows[-1].seq

    def state(self, number: int) -> FileState:
        """Raises `OutboxCorrupt`, `NotReadable`."""
        with self._open(number) as connection:
            if connection is None:
                return FileState(started=False, finished=False, ended=False, last_seq=0)
            return file_state(connection)

    def seq_range(self, number: int) -> range:
        """The seqs between the first and the last row of a file. Raises as `state`."""
        with self._open(number) as connection:
            if connection is None:
                return range(0)
            first, last = connection.execute("SELECT min(seq), max(seq) FROM event").fetchone()
            return range(first, last + 1) if last else range(0)

    def ended(self) -> bool:
        """Whether the incarnation is complete: closed by its worker or by a seal."""
        states = (self.state(number) for number in reversed(self.numbers()))
        return next((state.ended for state in states if state.started), False)

    @contextlib.contextmanager
    def _open(self, number: int) -> Iterator[sqlite3.Connection | None]:
        """A snapshot reader; None for a file whose making was interrupted."""
        path = file_path(self.folder, self.incarnation, number)
        connection = None
        try:
            connection, made = _connect(path)
            yield connection if made else None
        except sqlite3.DatabaseError as error:
            raise named(error, path) from error
        finally:
            if connection is not None:
                connection.close()

    def set_aside(self, number: int) -> None:
        """Renames a finished and shipped file that a person must look at."""
        path = file_path(self.folder, self.incarnation, number)
        for tail in ("-wal", "-shm", ""):
            part = Path(f"{path}{tail}")
            if part.exists():
                part.rename(f"{path.with_suffix('.quarantined')}{tail}")

    def remove_file(self, number: int) -> None:
        """Removes one file that is finished and shipped."""
        path = file_path(self.folder, self.incarnation, number)
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            name.unlink(missing_ok=True)

    def remove_marks(self) -> None:
        """Removes everything but the numbered files. The last of those, which says that the
        incarnation ended, goes after this: a crash between them leaves nothing to misread."""
        for name in (ballast_path, sync_path, lock_path):
            name(self.folder, self.incarnation).unlink(missing_ok=True)


def list_incarnations(folder: Path) -> list[IncarnationFiles]:
    """Every incarnation with a file in `folder`, by name (so by age within a role)."""
    names = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _FILE_NAME.fullmatch(path.name)
        if match is not None:
            names.add(match["incarnation"])
        elif path.suffix == ".lock":
            names.add(path.stem)
    return [IncarnationFiles(folder, name) for name in sorted(names)]


def remove_orphans(folder: Path) -> None:
    """Removes what a crash inside `remove_file` leaves. It drops, and SQLite makes, the main file
    of a database first; so the others without it belong to nobody."""
    for path in folder.glob("*.db-*"):
        if not path.with_name(path.name.rpartition("-")[0]).exists():
            path.unlink(missing_ok=True)


def _connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A read-only connection, and whether the file has its tables.

    A file without a WAL was closed by its writer: read as it is, it needs no index of the WAL,
    for which a full disk has no room."""
    if path.exists() and not Path(f"{path}-wal").exists():
        try:
            return _try(path, "mode=ro&immutable=1")
        except sqlite3.DatabaseError:
            pass  # it is being made or moved: read it under its locks
    return _try(path, "mode=ro")


def _try(path: Path, options: str) -> tuple[sqlite3.Connection, bool]:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None, timeout=1.0
    )
    connection.text_factory = bytes  # a damaged text must not make a row unreadable
    try:
        made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection, made is not None


def named(error: sqlite3.DatabaseError, path: Path) -> Exception:
    """What the reader of an outbox file does next."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return OutboxCorrupt(f"{path.name}: {error}")
    return NotReadable(f"{path.name}: {error}")


def file_state(connection: sqlite3.Connection) -> FileState:
    first_seq, finished, ended = connection.execute(
        "SELECT first_seq, finished, ended FROM meta"
    ).fetchone()
    last = connection.execute("SELECT max(seq) FROM event").fetchone()[0]
    return FileState(first_seq is not None, bool(finished), bool(ended), last or 0)


def _row(values: tuple[int, bytes, bytes, bytes, int, bytes, bytes, int]) -> Row:
    seq, kind, request_id, lease_id, lease_seq, key, body, crc = values
    return Row(
        seq,
        kind.decode("utf-8", "replace"),
        request_id.decode("utf-8", "replace"),
        lease_id.decode("utf-8", "replace"),
        lease_seq,
        key.decode("utf-8", "replace"),
        body,
        intact=zlib.crc32(key, zlib.crc32(body)) == crc,
    )
