"""What the batch service does now and then: who leads, what is over, what may be deleted."""

from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, func, or_, select, update

from services.backends.sql.bulk import insert_new
from services.backends.sql.engine import database_now_us, now_us, read, statement_us, write
from services.backends.sql.job_ends import add_artifacts
from services.backends.sql.job_records import Attempt, Job, NewArtifact
from services.backends.sql.job_rows import as_job, write_attempt
from services.backends.sql.job_tables import (
    artifact,
    attempt,
    delivery,
    idempotency,
    job,
    job_event,
    leader,
    upload,
)
from services.core.jobs import AttemptState

_EVENTS_KEPT_US = 24 * 3600 * 1_000_000
_DELIVERIES_KEPT_US = 30 * 86_400 * 1_000_000


class Watched(NamedTuple):
    """A job that has ended while its upstream may still work."""

    job: Job
    attempt: Attempt


class Housekeeping:
    """Over the SQL database; every step is bounded and may be repeated. Every method may raise
    DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def lead(self, name: str, holder: str, seconds: int) -> bool:
        """Takes or keeps the leadership for `seconds`; False: another one has it."""

        def fn(connection: Connection) -> bool:
            row = {"name": name, "holder": "", "until_at": 0}
            connection.execute(insert_new(connection, leader).values(row))
            now = database_now_us(connection)
            changed = connection.execute(
                update(leader)
                .where(
                    leader.c.name == name,
                    or_(leader.c.holder == holder, leader.c.until_at <= now),
                )
                .values(holder=holder, until_at=now + seconds * 1_000_000)
            )
            return changed.rowcount > 0

        return write(self._engine, fn)

    def watched(self, limit: int) -> list[Watched]:
        """Attempts whose upstream is asked for a late result, the longest unasked first."""
        query = (
            select(job)
            .join(attempt, (attempt.c.job_id == job.c.id) & (attempt.c.no == job.c.attempt_no))
            .where(attempt.c.watch_until.is_not(None))
            .order_by(attempt.c.polls, attempt.c.sent_at)
            .limit(limit)
        )

        def fn(connection: Connection) -> list[Watched]:
            found = []
            for row in connection.execute(query).all():
                each = as_job(row)
                one = select(attempt).where(
                    attempt.c.job_id == each.id, attempt.c.no == each.attempt_no
                )
                tried = Attempt(**connection.execute(one).one()._mapping)
                found.append(Watched(each, tried))
            return found

        return read(self._engine, fn)

    def looked(self, seen: Watched) -> None:
        """Asked, and not finished; after its time nobody asks again."""
        now_over = attempt.c.watch_until <= now_us()
        statement = (
            update(attempt)
            .where(attempt.c.job_id == seen.job.id, attempt.c.no == seen.attempt.no, now_over)
            .values(watch_until=None, state=AttemptState.LOST.value, ended_at=now_us())
        )
        counted = (
            update(attempt)
            .where(attempt.c.job_id == seen.job.id, attempt.c.no == seen.attempt.no)
            .values(polls=attempt.c.polls + 1)
        )

        def fn(connection: Connection) -> None:
            connection.execute(counted)
            connection.execute(statement)

        write(self._engine, fn)

    def late(self, seen: Watched, state: AttemptState, attached: list[NewArtifact]) -> None:
        """The upstream ended after the job had; what it made is attached free of charge."""

        def fn(connection: Connection) -> None:
            now = database_now_us(connection)
            still = select(attempt.c.watch_until).where(
                attempt.c.job_id == seen.job.id, attempt.c.no == seen.attempt.no
            )
            if connection.execute(still.with_for_update()).scalar_one() is None:
                return
            values = {"state": state.value, "watch_until": None, "ended_at": now}
            write_attempt(connection, seen.job.id, seen.attempt.no, values)
            add_artifacts(connection, seen.job, attached, now, first=0, late=True)

        write(self._engine, fn)

    def expired_blobs(self, limit: int) -> list[str]:
        """Marks artifacts and uploads that were kept as long as promised as deleted; returns the
        hashes whose bytes nothing names any more."""

        def fn(connection: Connection) -> list[str]:
            hashes: set[str] = set()
            for table in (artifact, upload):
                over = (
                    select(table.c.id)
                    .where(table.c.expires_at <= statement_us(), table.c.deleted_at.is_(None))
                    .limit(limit)
                )
                rows = connection.execute(
                    update(table)
                    .where(table.c.id.in_(over))
                    .values(deleted_at=now_us())
                    .returning(table.c.sha256)
                )
                hashes.update(row.sha256 for row in rows)
            return [each for each in hashes if not _named(connection, each)]

        return write(self._engine, fn)

    def purge(self, idempotency_us: int, limit: int) -> int:
        """Deletes names of submissions, events of jobs and deliveries that are old enough."""

        def fn(connection: Connection) -> int:
            now = database_now_us(connection)
            old = (
                select(idempotency.c.job_id)
                .join(job, job.c.id == idempotency.c.job_id)
                .where(idempotency.c.created_at < now - idempotency_us, job.c.next_at.is_(None))
                .limit(limit)
            )
            gone = connection.execute(
                delete(idempotency).where(
                    idempotency.c.job_id.in_(old), idempotency.c.created_at < now - idempotency_us
                )
            ).rowcount
            gone += connection.execute(delete(job_event).where(chosen)).rowcount
            oldest = f"whd_{(now - _DELIVERIES_KEPT_US) // 1000:012x}"  # ids begin with their time
            sent = (
                select(delivery.c.id)
                .where(delivery.c.id < oldest, delivery.c.next_at.is_(None))
                .limit(limit)
            )
            return (
                gone + connection.execute(delete(delivery).where(delivery.c.id.in_(sent))).rowcount
            )

        # Looked for beforehand: it may take long, and a write transaction keeps others waiting.
        seen = (
            select(job_event.c.id)
            .join(job, job.c.id == job_event.c.job_id)
            .where(job.c.finished_at < statement_us() - _EVENTS_KEPT_US)
            .order_by(job_event.c.id)
            .limit(limit)
        )
        chosen = job_event.c.id.in_(read(self._engine, lambda c: c.execute(seen).scalars().all()))
        return write(self._engine, fn)


def _named(connection: Connection, sha256: str) -> bool:
    for table in (artifact, upload):
        query = select(func.count()).where(table.c.sha256 == sha256, table.c.deleted_at.is_(None))
        if connection.execute(query).scalar_one():
            return True
    return False
