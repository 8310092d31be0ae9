"""Sealing the outbox of a dead worker, and what its rows leave undone."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from schemas.events import AnyEvent, Request, decode, encode
from services.backends.outbox_files import IncarnationFiles, Row, file_state, named
from services.backends.outbox_layout import (
    ballast_path,
    file_path,
    fsync_folder,
    lock_path,
    open_file,
    row_crc,
    sync_path,
)

_CLOSED_KEPT: Final = 10_000  # more than the ledger can be behind
_APPEND: Final = "INSERT INTO event VALUES (?,?,?,?,?,?,?,?)"


class Lease(msgspec.Struct):
    account_id: str
    key_id: str
    events: int


class OpenWork(msgspec.Struct):
    """What the rows seen so far have begun and not ended: requests without a terminal (their
    `request` bodies) and leases without `lease_closed`. `seq` is the last row seen; `over`: it was
    the incarnation's own last word."""

    seq: int = 0
    over: bool = False
    requests: dict[str, msgspec.Raw] = {}
    leases: dict[str, Lease] = {}
    closed: dict[str, None] = {}  # the latest leases that had their `lease_closed`

    def touch(self, lease_id: str, account_id: str, key_id: str) -> None:
        """Knows the lease from now on, with no event if no row named it; not if it was closed."""
        if lease_id not in self.closed:
            self.leases.setdefault(lease_id, Lease(account_id, key_id, 0))

    def next_lease_seq(self, request: Request) -> int:
        """Gives the next number of the request's lease; 0 when it has none."""
        if not request.lease_id:
            return 0
        owner = Lease(request.account_id, request.key_id, 0)
        lease = self.leases.setdefault(request.lease_id, owner)
        lease.events += 1
        return lease.events

    def see(self, row: Row) -> None:
        """Takes the next row into account; rows up to `seq` are ignored."""
        if row.seq <= self.seq:
            return
        self.seq = row.seq
        self.over = row.kind == "incarnation_closed"
        if row.kind == "request" and row.intact:
            self.requests[row.request_id] = msgspec.Raw(row.body)
        elif row.kind in ("usage", "error"):
            self.requests.pop(row.request_id, None)
        if row.kind == "lease_closed":
            self.leases.pop(row.lease_id, None)
            self.closed[row.lease_id] = None
            if len(self.closed) > _CLOSED_KEPT:
                del self.closed[next(iter(self.closed))]
        elif row.lease_id:
            # Counted, not read from the highest `lease_seq`: where an append found no space its
            # number was never written.
            lease = self.leases.get(row.lease_id)
            if lease is None:
                key_id = decode(row.body).key_id if row.intact else ""
                lease = self.leases[row.lease_id] = Lease(row.partition_key, key_id, 0)
            lease.events += 1


class SealedOutbox:
    """A dead incarnation whose lock we hold and whose files take no further row of its worker."""

    def __init__(self, files: IncarnationFiles, lock_fd: int, carried: OpenWork) -> None:
        self.incarnation = files.incarnation
        self._files = files
        self._lock_fd = lock_fd
        self._last = file_path(files.folder, files.incarnation, 1)
        self.ended = False
        self.last_seq = 0
        # The dead need their ballast no more; the rows to come may.
        ballast_path(files.folder, files.incarnation).unlink(missing_ok=True)
        for number in files.numbers() or [1]:
            self._seal_file(number)
        fsync_folder(files.folder)
        # A synced seq that is not there was lost by the disk: leave its number unused, so that
        # the gap shows.
        self.lost = max(0, files.synced_seq() - self.last_seq)
        self.last_seq += self.lost
        self.work = carried
        if not self.ended:  # else nothing is left undone
            for row in files.scan(carried.seq, self.last_seq):
                self.work.see(row)

    def _seal_file(self, number: int) -> None:
        path = file_path(self._files.folder, self.incarnation, number)
        with _opened(path, self.incarnation) as connection:
            state = file_state(connection)
            first_seq = connection.execute("SELECT first_seq FROM meta").fetchone()[0]
            self.ended = self.ended or state.ended
            if first_seq is not None:
                self.last_seq = max(self.last_seq, state.last_seq, first_seq - 1)
                self._last = path
            # The commit's fsync of the WAL makes every row before it durable as well.
            connection.execute("UPDATE meta SET sealed = 1")

    def open_requests(self) -> list[Request]:
        """The requests without a terminal, in the order they were admitted."""
        return [msgspec.json.decode(raw, type=Request) for raw in self.work.requests.values()]

    def append(self, events: Sequence[AnyEvent]) -> None:
        """Writes the last rows of the incarnation in one transaction and ends it: all files are
        finished, everything may be shipped. Sets `incarnation` and `seq` of each event."""
        rows = []
        for seq, event in enumerate(events, self.last_seq + 1):
            event.incarnation = self.incarnation
            event.seq = seq
            body, key = encode(event), event.account_id
            kind = event.__struct_config__.tag
            names = (event.request_id, event.lease_id, event.lease_seq)
            rows.append((seq, kind, *names, key, body, row_crc(body, key)))
        with _opened(self._last, self.incarnation) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_APPEND, rows)
            connection.execute(
                "UPDATE meta SET ended = 1, first_seq = coalesce(first_seq, ?)",
                (self.last_seq + 1,),
            )
            connection.execute("COMMIT")
        self.last_seq += len(rows)
        self.ended = True

    def publish(self) -> None:
        """Lets the relay ship and remove everything. May be repeated."""
        for number in self._files.numbers():
            path = file_path(self._files.folder, self.incarnation, number)
            with _opened(path, self.incarnation) as connection:
                connection.execute("UPDATE meta SET finished = 1")
        fd = os.open(sync_path(self._files.folder, self.incarnation), os.O_RDWR | os.O_CREAT, 0o640)
        try:
            os.pwrite(fd, self.last_seq.to_bytes(8, "little"), 0)
            os.fsync(fd)
        finally:
            os.close(fd)

    def release(self) -> None:
        os.close(self._lock_fd)


def seal(folder: Path, incarnation: str, carried: OpenWork | None = None) -> SealedOutbox | None:
    """Proves by the lock that the incarnation is dead and seals all its files; None while its
    process lives, or when nothing of it is left to seal. `carried` is what rows of files already
    removed left open.

    Call `release` on the result. Raises `OutboxCorrupt`, `NotReadable`."""
    files = IncarnationFiles(folder, incarnation)
    try:
        fd = os.open(lock_path(folder, incarnation), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # complete, shipped and being removed
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return SealedOutbox(files, fd, carried or OpenWork())
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise


@contextlib.contextmanager
def _opened(path: Path, incarnation: str) -> Iterator[sqlite3.Connection]:
    connection = None
    try:
        connection = open_file(path, incarnation)
        yield connection
    except sqlite3.DatabaseError as error:
        raise named(error, path) from error
    finally:
        if connection is not None:
            connection.close()
