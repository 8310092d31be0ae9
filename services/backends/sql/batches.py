"""Batches as clients make and see them. The engine's side is `batch_claims` and `batch_lines`."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Select, case, func, insert, select, tuple_, update

from services.backends.sql.batch_records import Batch, TooManyBatches, as_batch
from services.backends.sql.batch_tables import batch
from services.backends.sql.engine import database_now_us, now_us, read, write
from services.backends.sql.tables import account
from services.core.batches import ENDED, MESSAGES, WINDOW_S, Phase
from services.core.ids import ulid

_ENDED: Final = tuple(each.value for each in ENDED)


class Page(NamedTuple):
    batches: list[Batch]
    more: bool


class Batches:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable. `messages`:
    those of Anthropic's route, else those of OpenAI's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self,
        account_id: str,
        key_id: str,
        endpoint: str,
        *,
        input_id: str,
        lines_id: str,
        headers: Mapping[str, str],
        extra: Mapping[str, str],
        total: int,
        keep_s: int,
        open_max: int,
    ) -> Batch:
        """`total` lines when they are counted already, else 0. Raises TooManyBatches."""
        batch_id = ulid()

        def fn(connection: Connection) -> Batch:
            one = select(account.c.id).where(account.c.id == account_id)
            connection.execute(one.with_for_update(key_share=True))
            waiting = select(func.count()).where(
                batch.c.account_id == account_id, batch.c.next_at.is_not(None)
            )
            if connection.execute(waiting).scalar_one() >= open_max:
                raise TooManyBatches
            now = database_now_us(connection)
            made = Batch(
                id=batch_id,
                account_id=account_id,
                key_id=key_id,
                endpoint=endpoint,
                input_id=input_id,
                lines_id=lines_id,
                headers=msgspec.json.encode(headers).decode(),
                extra=msgspec.json.encode(extra).decode(),
                phase=Phase.VALIDATING,
                epoch=0,
                claims=0,
                next_at=now,
                total=total,
                succeeded=0,
                errored=0,
                canceled=0,
                expired=0,
                errors="[]",
                output_id="",
                error_id="",
                keep_s=keep_s,
                created_at=now,
                expires_at=now + WINDOW_S * 1_000_000,
                started_at=None,
                cancel_at=None,
                finishing_at=None,
                ended_at=None,
                deleted_at=None,
            )
            connection.execute(insert(batch).values(msgspec.to_builtins(made)))
            return made

        return write(self._engine, fn)

    def get(self, account_id: str, batch_id: str, *, messages: bool) -> Batch | None:
        """The account's batch of that id, which was not deleted."""
        query = self._own(account_id, messages=messages).where(batch.c.id == batch_id)
        row = read(self._engine, lambda connection: connection.execute(query).one_or_none())
        return None if row is None else as_batch(row)

    def by_id(self, batch_id: str) -> Batch | None:
        """The batch of that id, whosever it is, also one that was deleted."""
        query = select(batch).where(batch.c.id == batch_id)
        row = read(self._engine, lambda connection: connection.execute(query).one_or_none())
        return None if row is None else as_batch(row)

    def listed(
        self,
        account_id: str,
        limit: int,
        *,
        messages: bool,
        after: Batch | None = None,
        before: Batch | None = None,
    ) -> Page:
        """Newest first, of those older than `after` or newer than `before`."""
        query = self._own(account_id, messages=messages)
        place = tuple_(batch.c.created_at, batch.c.id)
        columns = (batch.c.created_at, batch.c.id)
        if after is not None:
            query = query.where(place < tuple_(after.created_at, after.id))
        if before is not None:
            query = query.where(place > tuple_(before.created_at, before.id))
        order = columns if before is not None else [each.desc() for each in columns]
        query = query.order_by(*order).limit(limit + 1)
        found = read(self._engine, lambda c: [as_batch(row) for row in c.execute(query)])
        page = found[:limit] if before is None else found[:limit][::-1]
        return Page(page, len(found) > limit)

    def cancel(self, batch_id: str) -> None:
        """No further line is sent. One that has ended stays as it is."""
        statement = (
            update(batch)
            .where(
                batch.c.id == batch_id, batch.c.cancel_at.is_(None), batch.c.phase.not_in(_ENDED)
            )
            .values(
                cancel_at=now_us(),
                next_at=case((batch.c.claims == 0, now_us()), else_=batch.c.next_at),
            )
        )
        write(self._engine, lambda connection: connection.execute(statement))

    def delete(self, ended: Batch) -> None:
        """Takes a batch that has ended out of sight."""
        statement = update(batch).where(batch.c.id == ended.id).values(deleted_at=now_us())
        write(self._engine, lambda connection: connection.execute(statement))

    @staticmethod
    def _own(account_id: str, *, messages: bool) -> Select[Any]:
        endpoint = batch.c.endpoint == MESSAGES if messages else batch.c.endpoint != MESSAGES
        return select(batch).where(
            batch.c.account_id == account_id, batch.c.deleted_at.is_(None), endpoint
        )
