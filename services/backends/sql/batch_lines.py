"""What becomes of one line of a batch, each step under the line's own fence: the number of its try.

The rule that no line is sent twice (docs/batches.md): a try is written down before it is sent; the
edge worker that is about to admit it writes its incarnation beside it, in a transaction that names
the try. A try that nobody took when its sender died can never be admitted after `left` has seen it,
for the line then stands at `queued`; one that was taken is judged by what the books say of it.
"""

from collections.abc import Sequence
from functools import partial

from sqlalchemy import ColumnElement, Connection, Engine, Update, select, update

from schemas.errors import BILLED, Outcome
from services.backends.sql.batch_claims import fenced
from services.backends.sql.batch_records import Batch, Line, as_line, request_of
from services.backends.sql.batch_tables import batch, batch_line
from services.backends.sql.engine import write
from services.backends.sql.lease_reads import LIVE
from services.backends.sql.tables import dead_event, incarnation, lease, settlement
from services.core.batches import LineState, Lost


class BatchLines:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, held: Batch, count: int) -> list[Line]:
        """The next `count` queued lines, from now on `sending`. Raises BatchLost."""
        chosen = (
            select(batch_line.c.no)
            .where(batch_line.c.batch_id == held.id, batch_line.c.state == LineState.QUEUED.value)
            .order_by(batch_line.c.no)
            .limit(count)
        )
        statement = (
            update(batch_line)
            .where(batch_line.c.batch_id == held.id, batch_line.c.no.in_(chosen))
            .values(state=LineState.SENDING.value, try_no=batch_line.c.try_no + 1, taken_by="")
            .returning(batch_line)
        )

        def fn(connection: Connection) -> list[Line]:
            fenced(connection, held)
            return [as_line(row) for row in connection.execute(statement)]

        return write(self._engine, fn)

    def take(self, batch_id: str, no: int, try_no: int, incarnation_id: str) -> bool:
        """An edge worker is about to admit this try. False: it may not, not any more."""
        statement = (
            _of(batch_id, no, try_no)
            .where(batch_line.c.taken_by == "")
            .values(taken_by=incarnation_id)
        )
        return write(self._engine, lambda connection: connection.execute(statement).rowcount == 1)

    def back(self, line: Line) -> None:
        """The try was refused, or surely not sent: to the queue again."""
        statement = _of(line.batch_id, line.no, line.try_no).values(state=LineState.QUEUED.value)
        write(self._engine, lambda connection: connection.execute(statement))

    def end(
        self, line: Line, state: LineState, *, status: int = 0, answer: str = "", code: str = ""
    ) -> bool:
        """The line has its result; counted in its batch. False: it had one already."""
        one = select(batch.c.id).where(batch.c.id == line.batch_id).with_for_update()

        def fn(connection: Connection) -> bool:
            connection.execute(one)  # first, as everywhere: two that lock never wait in a ring
            return _end(connection, line, state, status, answer, code)

        return write(self._engine, fn)

    def left(self, held: Batch, lines: Sequence[Line], *, over: bool) -> int:
        """Settles lines whose sender is gone without an answer; returns how many have to wait until
        it is known what became of them. `over`: nothing is waited for any more."""
        settle = partial(_settle, held=held, over=over)
        return sum(not write(self._engine, partial(settle, line=each)) for each in lines)


def _settle(connection: Connection, *, held: Batch, line: Line, over: bool) -> bool:
    """False: it is not known yet. In this order, for the books may move on meanwhile: once the
    worker and its leases are closed, all that it did for the account is settled."""
    fenced(connection, held)
    mine = select(batch_line.c.taken_by).where(*_is(line.batch_id, line.no, line.try_no))
    row = connection.execute(mine.with_for_update()).one_or_none()
    if row is None:
        return True
    again = _of(line.batch_id, line.no, line.try_no).values(state=LineState.QUEUED.value)
    if not row.taken_by:
        connection.execute(again)
        return True
    state = connection.execute(
        select(incarnation.c.state).where(incarnation.c.id == row.taken_by)
    ).scalar_one_or_none()
    open_leases = select(lease.c.id).where(
        lease.c.incarnation_id == row.taken_by,
        lease.c.account_id == held.account_id,
        LIVE,
    )
    closed = state == "closed" and connection.execute(open_leases.limit(1)).first() is None
    lost = _how_it_ended(connection, request_of(held, line))
    if lost is None and (over or state == "lost"):
        lost = Lost.UNKNOWN
    if lost is not None:
        _end(connection, line, LineState.ERRORED, 0, "", lost.value)
        return True
    if closed:
        connection.execute(again)
    return closed


def _how_it_ended(connection: Connection, request_id: str) -> Lost | None:
    """What the books know of the terminal of a request, also of one that they set aside."""
    settled = select(settlement.c.outcome, settlement.c.charged_nano)
    row = connection.execute(settled.where(settlement.c.request_id == request_id)).first()
    if row is not None:
        if row.charged_nano or row.outcome in BILLED:
            return Lost.CHARGED
        return Lost.FAILED if row.outcome == Outcome.FAILED else Lost.INTERRUPTED
    ends = (f"{request_id}:usage", f"{request_id}:error")
    dead = select(dead_event.c.id).where(dead_event.c.event_id.in_(ends))
    return Lost.UNKNOWN if connection.execute(dead.limit(1)).first() is not None else None


def _end(
    connection: Connection, line: Line, state: LineState, status: int, answer: str, code: str
) -> bool:
    ended = _of(line.batch_id, line.no, line.try_no).values(
        state=state.value, status=status, answer=answer, code=code
    )
    if not connection.execute(ended).rowcount:
        return False
    connection.execute(
        update(batch)
        .where(batch.c.id == line.batch_id)
        .values({state.value: batch.c[state.value] + 1})
    )
    return True


def _is(batch_id: str, no: int, try_no: int) -> tuple[ColumnElement[bool], ...]:
    return (
        batch_line.c.batch_id == batch_id,
        batch_line.c.no == no,
        batch_line.c.try_no == try_no,
        batch_line.c.state == LineState.SENDING.value,
    )


def _of(batch_id: str, no: int, try_no: int) -> Update:
    return update(batch_line).where(*_is(batch_id, no, try_no))
