"""The outbox of one worker: its events, durable before anything leaves the machine.

One incarnation (one run of one worker) owns, in a folder on a local file system:

    <incarnation>.lock         held by flock for as long as the process lives
    <incarnation>-000001.db    SQLite WAL files, numbered; rows stay in seq order across them
    <incarnation>.sync         8 bytes: the highest seq that a finished fsync covers
    <incarnation>.ballast      space kept back for the events of requests already admitted

Three threads of thought meet here. The worker appends (in the gevent hub: microseconds, no fsync,
no checkpoint). A real thread calls `sync` on a timer: fsync, new files, old files, disk space.
Another process reads (`outbox_files`) and, once the lock is free, seals. SQLite guards its files
with POSIX locks, which vanish when the process closes *any* descriptor of the same file; so the
only descriptor opened beside SQLite's own is that of the `-wal` file, which carries no lock.
"""

import errno
import fcntl
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from schemas import config as schema
from schemas.events import AnyEvent, IncarnationClosed, encode
from services.backends.ballast import Ballast
from services.backends.clock import Clock
from services.backends.lifecycle import crash_point
from services.backends.outbox_layout import (
    ballast_path,
    file_path,
    fsync_folder,
    lock_path,
    open_file,
    row_crc,
    sync_path,
)
from services.backends.telemetry import metric

_APPEND: Final = "INSERT INTO event SELECT ?,?,?,?,?,?,?,? FROM meta WHERE sealed = 0"
_ROTATE_CHECK_ROWS: Final = 64  # between two looks at the file's size
_SPACE_CHECK_S: Final = 1.0
_SMALL_FILE: Final = 64 * 1024  # not worth rotating, whatever the need


class DiskFull(Exception):
    """Nothing was written: refuse new requests, finish the admitted ones with `append_last`."""


class Sealed(Exception):
    """The reaper took this incarnation for dead: cut the streams and exit."""


class OutboxFailed(Exception):
    """The file can no longer be trusted: admit nothing, exit; never write to it again."""


class _File:
    """One open file of the writer."""

    __slots__ = ("connection", "number", "path", "wal_fd")

    def __init__(self, folder: Path, incarnation: str, number: int, sync: str) -> None:
        self.number = number
        self.path = file_path(folder, incarnation, number)
        self.connection = open_file(self.path, incarnation)
        if sync == "interval":
            self.connection.execute("PRAGMA synchronous = NORMAL")
        self.wal_fd = os.open(f"{self.path}-wal", os.O_RDONLY)

    def close(self) -> None:
        """Closes; SQLite moves the WAL into the main file, a fraction of its size. Blocks."""
        self.connection.close()
        os.close(self.wal_fd)


class Outbox:
    """The writer. `append*` and `close` belong to the worker's thread, `sync` to another one."""

    def __init__(
        self, folder: Path, incarnation: str, settings: schema.Outbox, clock: Clock, lock_fd: int
    ) -> None:
        self.incarnation = incarnation
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._lock_fd = lock_fd
        self._seq = 0
        self._failed = ""
        self._over_limit = False
        self._full = False  # the last append found no space
        self._ballast = Ballast(ballast_path(folder, incarnation), settings.ballast_bytes)
        self._space_checked_s = 0.0
        self._sync_fd = os.open(
            sync_path(folder, incarnation), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640
        )
        self._retired: deque[_File] = deque()
        self._spare: _File | None = None
        self._file = _File(folder, incarnation, 1, settings.sync)
        self._start_file(self._file)
        if not self._ballast.reserve():
            raise OSError(errno.ENOSPC, "no space for the ballast")
        self._publish(0)
        fsync_folder(folder)

    @classmethod
    def create(
        cls, folder: Path, incarnation: str, settings: schema.Outbox, clock: Clock
    ) -> "Outbox":
        """Takes the lock and makes the first file; blocks for some fsyncs. Call it in the process
        that appends, after any fork. Raises `DiskFull`, `OutboxFailed`."""
        folder.mkdir(parents=True, exist_ok=True)
        # The name appears only once the lock is held, so that no reaper sees a free one.
        path = lock_path(folder, incarnation)
        newborn = path.with_suffix(".newborn")
        lock_fd = os.open(newborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(newborn, path)
        try:
            return cls(folder, incarnation, settings, clock, lock_fd)
        except sqlite3.Error as error:
            raise _named(error) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(str(error)) from error
            raise OutboxFailed(str(error)) from error

    @property
    def last_seq(self) -> int:
        """The seq of the last event appended; 0 before the first."""
        return self._seq

    def append(self, event: AnyEvent) -> None:
        """Writes the event that admits a request; sets its `incarnation` and `seq`.

        When this returns the event survives the death of the process. Raises `DiskFull` (also at
        `max_bytes`, and while the ballast is in use), `Sealed`, `OutboxFailed`."""
        self.require_space()
        self.append_group((event,))

    def append_last(self, event: AnyEvent) -> None:
        """Writes an event of work already admitted: it may use the ballast. Raises as `append`;
        `DiskFull` only when the ballast is used up too."""
        try:
            self.append_group((event,))
        except DiskFull:
            if not self._ballast.drop():
                raise
            self.append_group((event,))

    def require_space(self) -> None:
        """Raises `DiskFull` while no new request may be admitted, `OutboxFailed`."""
        if self._failed:
            raise OutboxFailed(self._failed)
        if self._full or self._over_limit or not self._ballast.held:
            # A file can be shipped and removed only once another takes its place.
            self._rotate_if_due(min(_SMALL_FILE, self._settings.rotate_bytes))
        if self._over_limit or not self._ballast.held:
            raise DiskFull("the outbox is full" if self._over_limit else "the ballast is in use")

    def append_group(self, events: Sequence[AnyEvent]) -> None:
        """Writes the events in this order in one transaction: all of them or, when it raises,
        none. A row of a group costs a fraction of a row alone."""
        if self._failed:
            raise OutboxFailed(self._failed)
        crash_point("outbox.before_append")
        first = self._seq + 1
        rows = [self._row(event, seq) for seq, event in enumerate(events, first)]
        if self._write(rows) != len(rows):
            self._failed = "sealed"
            raise Sealed(self.incarnation)
        # Only now: `sync` must not take a row for covered that was not committed when it began.
        self._seq += len(rows)
        crash_point("outbox.after_append")
        if first // _ROTATE_CHECK_ROWS != (self._seq + 1) // _ROTATE_CHECK_ROWS:
            self._rotate_if_due(self._settings.rotate_bytes)

    def _row(self, event: AnyEvent, seq: int) -> tuple[Any, ...]:
        event.incarnation = self.incarnation
        event.seq = seq
        body = encode(event)
        key = event.account_id
        kind = event.__struct_config__.tag
        crc = row_crc(body, key)
        return (seq, kind, event.request_id, event.lease_id, event.lease_seq, key, body, crc)

    def _write(self, rows: list[tuple[Any, ...]]) -> int:
        """How many rows were written: all, or 0 when the file is sealed."""
        connection = self._file.connection
        try:
            if len(rows) == 1:
                return connection.execute(_APPEND, rows[0]).rowcount
            connection.execute("BEGIN IMMEDIATE")
            written = connection.executemany(_APPEND, rows).rowcount
            connection.execute("COMMIT")
            return written
        except sqlite3.Error as error:
            named = _named(error)
            if isinstance(named, OutboxFailed):
                self._failed = str(error)
            self._full = isinstance(named, DiskFull)
            if connection.in_transaction:
                connection.rollback()
            raise named from error

    def _rotate_if_due(self, size: int) -> None:
        if os.fstat(self._file.wal_fd).st_size < size:
            return
        spare = self._spare
        if spare is None:
            return  # `sync` has not made one yet; this file may grow meanwhile
        try:
            self._start_file(spare)
        except sqlite3.Error:
            return  # disk full: stay where rows may still fit
        # `sync` reads _seq, _file and _retired in this order: each row is in a file it sees.
        self._retired.append(self._file)
        self._file = spare
        self._spare = None

    def _start_file(self, file: _File) -> None:
        file.connection.execute("UPDATE meta SET first_seq = ?", (self._seq + 1,))

    def sync(self) -> None:
        """Makes every event appended before the call safe against a power cut and publishes that.

        Blocks on the disk: call it from a real thread, each `sync_interval_s`. Raises
        `OutboxFailed` on a failed fsync: whether the rows are on disk is then unknown for ever."""
        if self._failed:
            raise OutboxFailed(self._failed)
        seq = self._seq
        current = self._file
        retired = len(self._retired)
        try:
            for index in range(retired):
                os.fdatasync(self._retired[index].wal_fd)
            os.fdatasync(current.wal_fd)
            self._publish(seq)
        except OSError as error:
            self._failed = f"fsync: {error}"
            metric("tollgate_outbox_fsync_errors_total").inc()
            raise OutboxFailed(self._failed) from error
        for _ in range(retired):
            if not self._with_room(lambda: self._finish(self._retired[0])):
                break  # the next call tries again
            self._retired.popleft().close()
        self._keep_spare()
        self._watch_space()

    def _publish(self, seq: int) -> None:
        os.pwrite(self._sync_fd, seq.to_bytes(8, "little"), 0)

    def _with_room(self, step: Callable[[], None]) -> bool:
        """Does what frees space in the end, with the ballast's space when there is no other."""
        try:
            step()
            return True
        except (sqlite3.OperationalError, OSError):
            if not self._ballast.drop():
                return False
        try:
            step()
            return True
        except (sqlite3.OperationalError, OSError):
            return False

    def _finish(self, file: _File) -> None:
        file.connection.execute("UPDATE meta SET finished = 1")

    def _keep_spare(self) -> None:
        """A file is shipped and removed only once the next one takes its place: so that one must
        be there before the disk is full."""
        if self._spare is not None:
            return
        try:
            self._make_spare()
        except (sqlite3.OperationalError, OSError):
            half_full = os.fstat(self._file.wal_fd).st_size * 2 >= self._settings.rotate_bytes
            if half_full or self._full or not self._ballast.held:
                self._with_room(self._make_spare)

    def _make_spare(self) -> None:
        number = self._file.number + 1
        spare = _File(self._folder, self.incarnation, number, self._settings.sync)
        # Its first row then overwrites the log's blocks and needs no new ones.
        spare.connection.execute("PRAGMA wal_checkpoint(RESTART)")
        fsync_folder(self._folder)
        self._spare = spare

    def _watch_space(self) -> None:
        now = time.monotonic()
        if now - self._space_checked_s < _SPACE_CHECK_S:
            return
        self._space_checked_s = now
        with os.scandir(self._folder) as entries:
            used = sum(_size(entry) for entry in entries if not entry.name.endswith(".ballast"))
        self._over_limit = used > self._settings.max_bytes
        if not self._ballast.held and self._ballast.reserve():
            self._full = False

    def close(self) -> None:
        """Ends the incarnation: nothing follows. Blocks for fsyncs. No thread may be in `sync`, and
        every lease must have had its `lease_closed`. Raises as `append_last`."""
        self.append_last(
            IncarnationClosed(
                event_id=f"{self.incarnation}:closed",
                account_id="-",
                occurred_at=self._clock.now_us(),
                source="edge",
            )
        )
        crash_point("outbox.before_end")
        self._file.connection.execute("UPDATE meta SET finished = 1, ended = 1")
        self.sync()
        os.fsync(self._sync_fd)
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
            spare.path.unlink()
        self._file.close()
        self._failed = "closed"
        os.close(self._sync_fd)
        self._ballast.drop()
        os.close(self._lock_fd)


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # the relay removed it meanwhile
        return 0


def _named(error: sqlite3.Error) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
        return DiskFull(str(error))
    return OutboxFailed(str(error))
