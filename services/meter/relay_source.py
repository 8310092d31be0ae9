"""One incarnation on its way to the bus: what is read, what was shipped, what may be removed."""

from collections.abc import Sequence

from services.backends.lifecycle import crash_point
from services.backends.outbox_files import IncarnationFiles, Row
from services.meter.consumer import Halt
from services.meter.relay_send import facts_of
from services.meter.relay_store import Position, RelayStore


def position_of(row: Row) -> Position:
    """The position after shipping `row`; a damaged row has no event_id to remember."""
    return Position(row.seq, facts_of(row.body).event_id if row.intact else "")


class Source:
    """Raises `Halt` when the files are not those that the position was kept for, `OutboxCorrupt`
    and `NotReadable` as its reader does."""

    def __init__(self, files: IncarnationFiles, store: RelayStore) -> None:
        self.name = files.incarnation
        self.position = store.position(self.name)
        self._files = files
        self._check()
        self._work = store.carried(self.name)
        for row in files.scan(self._work.seq, self.position.seq):
            self._work.see(row)
        self._damaged = {
            dead.seq
            for dead in store.dead()
            if dead.incarnation == self.name and dead.reason == "checksum"
        }

    def _check(self) -> None:
        """The row at our position must be the one that was shipped."""
        seq, event_id = self.position
        for row in self._files.rows(seq - 1, 1, 1, seq):
            found = position_of(row).event_id
            if event_id and found and found != event_id:
                raise Halt(
                    f"outbox {self.name}: row {seq} is event {found}, but {event_id} was shipped "
                    "from there: these are other files"
                )

    def read(self, limit: int, max_bytes: int) -> list[Row]:
        """The next rows that may leave the machine."""
        synced_seq = self._files.synced_seq()
        if synced_seq <= self.position.seq:
            return []
        return self._files.rows(self.position.seq, limit, max_bytes, synced_seq)

    def unshipped(self) -> int:
        """How many events may leave the machine and did not."""
        return max(0, self._files.synced_seq() - self.position.seq)

    def advance(self, position: Position, rows: Sequence[Row]) -> None:
        """`rows` are shipped or set aside, and the store knows it."""
        self.position = position
        self._damaged.update(row.seq for row in rows if not row.intact)
        for row in rows:
            self._work.see(row)

    def remove_shipped(self, store: RelayStore) -> bool:
        """Removes the files that nobody needs; True when the incarnation is gone.

        The file that says that the incarnation ended goes last: a crash in between leaves nothing
        that could be taken for a worker that died."""
        numbers = self._files.numbers()
        shipped: list[int] = []
        final: list[int] = []
        for number in numbers:
            state = self._files.state(number)
            if not state.finished or state.last_seq > self.position.seq:
                break
            (final if state.ended else shipped).append(number)
        complete = bool(final) and len(shipped) + len(final) == len(numbers)
        if not shipped and not complete:
            return False
        store.carry(self.name, self._work)
        crash_point("relay.after_carry")
        for number in shipped:
            self._remove(number)
        if not complete:
            return False
        self._files.remove_marks()
        crash_point("relay.after_marks")
        for number in final:
            self._remove(number)
        store.forget(self.name)
        return True

    def _remove(self, number: int) -> None:
        """A file with damaged rows is kept under another name, for a person."""
        if self._damaged:
            seqs = self._files.seq_range(number)
            if any(seq in seqs for seq in self._damaged):
                self._files.set_aside(number)
                return
        self._files.remove_file(number)
