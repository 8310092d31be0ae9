"""The engine's side of batches: claim one, write what became of it under its fence.

One batch of an account is worked on at a time, in all processes, so that an account's share is the
same however many batches it has.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, case, delete, func, insert, select, tuple_, update

from services.backends.lifecycle import crash_point
from services.backends.sql.batch_records import Batch, BatchLost, Line, NewLine, as_batch, as_line
from services.backends.sql.batch_tables import batch, batch_line
from services.backends.sql.deliveries import plan_batch
from services.backends.sql.engine import database_now_us, now_us, read, statement_us, write
from services.backends.sql.job_tables import upload
from services.backends.sql.tables import account
from services.backends.sql.uploads import Upload
from services.core.batches import LineState, Phase

_PUT_OFF_US: Final = 1_000_000
_TRIES: Final = 8
_PAGE: Final = 1000


class BatchClaims:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable; writes raise
    BatchLost."""

    def __init__(self, engine: Engine, claim_s: float) -> None:
        self._engine = engine
        self._claim_us = round(claim_s * 1_000_000)

    # -- claims -------------------------------------------------------------------------------

    def claim(self) -> Batch | None:
        """The batch that is due for longest and whose account has none under way."""
        for _ in range(_TRIES):
            if read(self._engine, _none_due):
                return None
            found = write(self._engine, self._claim)
            if found is not None:
                return found
        return None

    def _claim(self, connection: Connection) -> Batch | None:
        due = select(batch.c.id, batch.c.account_id).where(batch.c.next_at <= statement_us())
        first = due.order_by(batch.c.next_at).limit(1).with_for_update(skip_locked=True)
        row = connection.execute(first).one_or_none()
        if row is None:
            return None
        mine = update(batch).where(batch.c.id == row.id)
        one = select(account.c.id).where(account.c.id == row.account_id)
        connection.execute(one.with_for_update(key_share=True))
        others = select(func.count()).where(
            batch.c.account_id == row.account_id,
            batch.c.id != row.id,
            batch.c.claims > 0,
            batch.c.next_at > now_us(),
        )
        if connection.execute(others).scalar_one():
            connection.execute(mine.values(next_at=now_us() + _PUT_OFF_US))
            return None
        taken = mine.values(
            epoch=batch.c.epoch + 1,
            claims=batch.c.claims + 1,
            next_at=now_us() + self._claim_us,
        )
        return as_batch(connection.execute(taken.returning(batch)).one())

    def prolong(self, held: Sequence[Batch]) -> None:
        """`held` are still worked on. Those that were taken over meanwhile are left alone."""
        if not held:
            return
        ours = [(each.id, each.epoch) for each in held]
        statement = (
            update(batch)
            .where(tuple_(batch.c.id, batch.c.epoch).in_(ours), batch.c.claims > 0)
            .values(next_at=now_us() + self._claim_us)
        )
        write(self._engine, lambda connection: connection.execute(statement))

    def give_back(self, held: Batch, wait_s: float) -> None:
        """Due again after `wait_s`, at once when its end was asked for meanwhile, never after it
        expires."""
        due = now_us() + max(0, round(wait_s * 1_000_000))
        bounded = case((due > held.expires_at, held.expires_at), else_=due)
        asked = batch.c.cancel_at.is_not(None) & (held.cancel_at is None)
        self.move(held, claims=0, next_at=case((asked, now_us()), else_=bounded))

    def now(self, held: Batch) -> Batch:
        """The batch as it stands. Raises BatchLost."""
        query = select(batch).where(batch.c.id == held.id, batch.c.epoch == held.epoch)
        row = read(self._engine, lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise BatchLost(held.id)
        return as_batch(row)

    def now_us(self) -> int:
        """The database's clock, microseconds."""
        return read(self._engine, database_now_us)

    def move(self, held: Batch, **changes: Any) -> Batch:
        """Changes a claimed batch; returns it as it is then."""
        return write(self._engine, lambda connection: fenced(connection, held, **changes))

    # -- its life -----------------------------------------------------------------------------

    def failed(self, held: Batch, errors: Sequence[dict[str, Any]]) -> None:
        """Its input cannot be sent: nothing was."""

        def fn(connection: Connection) -> None:
            told = msgspec.json.encode(errors).decode()
            ended = fenced(connection, held, phase=Phase.FAILED, errors=told, ended_at=now_us())
            plan_batch(connection, ended, database_now_us(connection))

        write(self._engine, fn)

    def start(self, held: Batch, lines: Sequence[NewLine]) -> Batch:
        """Its lines are written down, page by page; what an earlier try wrote goes first."""

        def clear(connection: Connection) -> None:
            fenced(connection, held)
            connection.execute(delete(batch_line).where(batch_line.c.batch_id == held.id))

        def add(connection: Connection, *, at: int) -> None:
            fenced(connection, held)
            connection.execute(insert(batch_line), _rows(held.id, lines, at))

        write(self._engine, clear)
        for at in range(0, len(lines), _PAGE):
            write(self._engine, partial(add, at=at))
        return self.move(held, phase=Phase.RUNNING, total=len(lines), started_at=now_us())

    def end_queued(self, held: Batch, state: LineState) -> Batch:
        """Lines that were not sent end so; the batch as it is then."""

        def fn(connection: Connection) -> Batch:
            fenced(connection, held)
            ended = connection.execute(
                update(batch_line)
                .where(
                    batch_line.c.batch_id == held.id,
                    batch_line.c.state == LineState.QUEUED.value,
                )
                .values(state=state.value)
            ).rowcount
            return fenced(connection, held, **{state.value: batch.c[state.value] + ended})

        return write(self._engine, fn)

    def end(
        self,
        held: Batch,
        phase: Phase,
        output: Upload | None,
        error: Upload | None,
        *,
        model: str = "",
        usage: Mapping[str, Any] = {},
    ) -> None:
        """Its files are there: both rows and the end in one transaction, with what its answers
        used."""

        def fn(connection: Connection) -> None:
            for each in (output, error):
                if each is not None:
                    connection.execute(insert(upload).values(msgspec.structs.asdict(each)))
            ended = fenced(
                connection,
                held,
                phase=phase.value,
                output_id=output.id if output else "",
                error_id=error.id if error else "",
                model=model,
                usage=msgspec.json.encode(usage).decode(),
                ended_at=now_us(),
            )
            plan_batch(connection, ended, database_now_us(connection))
            crash_point("batch.file.before_commit")

        write(self._engine, fn)

    # -- its lines ----------------------------------------------------------------------------

    def page(
        self, held: Batch, states: Sequence[LineState], after: int, limit: int = _PAGE
    ) -> list[Line]:
        """Lines in one of `states` behind number `after`, in their order."""
        query = (
            select(batch_line)
            .where(
                batch_line.c.batch_id == held.id,
                batch_line.c.no > after,
                batch_line.c.state.in_([each.value for each in states]),
            )
            .order_by(batch_line.c.no)
            .limit(limit)
        )
        return read(self._engine, lambda c: [as_line(row) for row in c.execute(query)])

    def forget(self, held: Batch, lines: Sequence[Line]) -> None:
        """Takes away lines whose answers lie in the batch's files."""
        numbers = [each.no for each in lines]
        gone = delete(batch_line).where(
            batch_line.c.batch_id == held.id, batch_line.c.no.in_(numbers)
        )

        def fn(connection: Connection) -> None:
            fenced(connection, held)
            connection.execute(gone)

        write(self._engine, fn)


def fenced(connection: Connection, held: Batch, **changes: Any) -> Batch:
    """Changes a claimed batch, if it is still the one that was claimed. Raises BatchLost."""
    row = connection.execute(
        update(batch)
        .where(batch.c.id == held.id, batch.c.epoch == held.epoch)
        .values(epoch=batch.c.epoch, **changes)
        .returning(batch)
    ).one_or_none()
    if row is None:
        raise BatchLost(held.id)
    return as_batch(row)


def _rows(batch_id: str, lines: Sequence[NewLine], at: int) -> list[dict[str, Any]]:
    return [
        {
            "batch_id": batch_id,
            "no": at + place,
            "custom_id": each.custom_id,
            "place": each.place,
            "bytes": each.bytes,
            "state": LineState.QUEUED.value,
            "try_no": 0,
            "taken_by": "",
            "status": 0,
            "answer": "",
            "code": "",
        }
        for place, each in enumerate(lines[at : at + _PAGE], start=1)
    ]


def _none_due(connection: Connection) -> bool:
    query = select(batch.c.id).where(batch.c.next_at <= statement_us()).limit(1)
    return connection.execute(query).first() is None
