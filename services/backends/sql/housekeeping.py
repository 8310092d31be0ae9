"""What the batch service does now and then: who leads, what is over, what may be deleted."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import (
    Connection,
    Engine,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)

from services.backends.sql.bulk import among, insert_new
from services.backends.sql.deliveries import row_of
from services.backends.sql.endpoints import Endpoint, wanting
from services.backends.sql.engine import database_now_us, now_us, read, statement_us, write
from services.backends.sql.job_ends import add_artifacts
from services.backends.sql.job_records import ERASED, Attempt, Job, NewArtifact
from services.backends.sql.job_rows import as_job, note, write_attempt
from services.backends.sql.job_tables import (
    DELIVERIES,
    artifact,
    attempt,
    delivery,
    endpoint,
    idempotency,
    job,
    job_event,
    leader,
    upload,
)
from services.core.jobs import AttemptState
from services.core.webhooks import EXPIRING

_EVENTS_KEPT_US = 24 * 3600 * 1_000_000
_DELIVERIES_KEPT_US = 30 * 86_400 * 1_000_000
_WARNING_US = 86_400 * 1_000_000  # before an artifact is over


class Watched(NamedTuple):
    """A job that has ended while its upstream may still work."""

    job: Job
    attempt: Attempt


class Over(NamedTuple):
    """Bytes of the store by their hash; `wanted`: something that is kept names them too."""

    sha256: str
    wanted: bool


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

    def watched(self, limit: int, full: Sequence[str] = ()) -> list[Watched]:
        """Attempts whose upstream is asked for a late result, those least asked for first; none of
        the channels `full`."""
        query = (
            select(job)
            .join(attempt, (attempt.c.job_id == job.c.id) & (attempt.c.no == job.c.attempt_no))
            .where(attempt.c.watch_until.is_not(None), attempt.c.channel.not_in(full))
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
        """The upstream ended after the job had; what it made is attached free of charge, unless
        the job was erased meanwhile."""

        def fn(connection: Connection) -> None:
            now = database_now_us(connection)
            still = select(attempt.c.watch_until).where(
                attempt.c.job_id == seen.job.id, attempt.c.no == seen.attempt.no
            )
            if connection.execute(still.with_for_update()).scalar_one() is None:
                return
            values = {"state": state.value, "watch_until": None, "ended_at": now}
            write_attempt(connection, seen.job.id, seen.attempt.no, values)
            if attached:
                _attach(connection, seen.job, attached, now)

        write(self._engine, fn)

    def over(self, limit: int) -> list[Over]:
        """Bytes of artifacts and uploads that were kept as long as promised, the longest over
        first."""

        def fn(connection: Connection) -> list[Over]:
            hashes: dict[str, None] = {}
            for table in (artifact, upload):
                query = (
                    select(table.c.sha256)
                    .where(table.c.expires_at <= statement_us(), table.c.deleted_at.is_(None))
                    .order_by(table.c.expires_at)
                    .limit(limit)
                )
                hashes.update(dict.fromkeys(connection.execute(query).scalars()))
            return [Over(each, _wanted(connection, each)) for each in hashes]

        return read(self._engine, fn)

    def let_go(self, sha256: str) -> None:
        """The rows of these bytes that are over say so from now on."""

        def fn(connection: Connection) -> None:
            for table in (artifact, upload):
                mine = (table.c.sha256 == sha256, table.c.deleted_at.is_(None))
                statement = update(table).where(*mine, table.c.expires_at <= now_us())
                connection.execute(statement.values(deleted_at=now_us()))

        write(self._engine, fn)

    def announce(self, limit: int) -> int:
        """Tells endpoints that want to know it of jobs whose artifacts are over within a day,
        unless they were kept for no longer; how many were told."""
        # Looked for beforehand, as in `purge`.
        found = read(self._engine, lambda c: _expiring(c, limit))
        if not found:
            return 0

        def fn(connection: Connection) -> int:
            now = database_now_us(connection)
            told = _told(connection, {job_id for job_id, _ in found})
            rows = [
                row_of(each, EXPIRING, now, job_id=job_id)
                for job_id, each in found
                if (job_id, each.id) not in told
            ]
            if rows:
                connection.execute(insert(delivery), rows)
            return len(rows)

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
            for table in DELIVERIES:
                sent = (
                    select(table.c.id)
                    .where(table.c.id < oldest, table.c.next_at.is_(None))
                    .limit(limit)
                )
                gone += connection.execute(delete(table).where(table.c.id.in_(sent))).rowcount
            return gone

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


def _attach(connection: Connection, ended: Job, made: list[NewArtifact], now: int) -> None:
    """Late artifacts are a visible change of their job; one that was erased has none."""
    statement = (
        update(job)
        .where(job.c.id == ended.id, job.c.params != ERASED)
        .values(version=job.c.version + 1)
        .returning(job.c.version)
    )
    version = connection.execute(statement).scalar_one_or_none()
    if version is not None:
        add_artifacts(connection, ended, made, now, first=0, late=True)
        note(connection, ended.id, version, "artifact", {"late": len(made)}, now)


def _expiring(connection: Connection, limit: int) -> list[tuple[str, Endpoint]]:
    """Jobs, and endpoints that were not told of them yet. From what expires to who wants to know,
    in one question: there may be thousands of endpoints, or of artifacts."""
    wanting_it = {each.id: each for each in wanting(connection, EXPIRING)}
    if not wanting_it:
        return []
    now = database_now_us(connection)
    told = exists().where(
        delivery.c.job_id == artifact.c.job_id,
        delivery.c.endpoint_id == endpoint.c.id,
        delivery.c.type == EXPIRING,
    )
    query = (
        select(artifact.c.job_id, endpoint.c.id)
        .join(job, job.c.id == artifact.c.job_id)
        .join(endpoint, endpoint.c.account_id == job.c.account_id)
        .where(
            endpoint.c.id.in_(among(connection, wanting_it)),
            artifact.c.expires_at > now,
            artifact.c.expires_at <= now + _WARNING_US,
            artifact.c.expires_at - artifact.c.created_at > _WARNING_US,
            ~told,
        )
        .distinct()
        .limit(limit)
    )
    rows = connection.execute(query)
    return [(job_id, wanting_it[endpoint_id]) for job_id, endpoint_id in rows]


def _told(connection: Connection, job_ids: set[str]) -> set[tuple[str, str]]:
    query = select(delivery.c.job_id, delivery.c.endpoint_id).where(
        delivery.c.job_id.in_(among(connection, job_ids)), delivery.c.type == EXPIRING
    )
    return {(row.job_id, row.endpoint_id) for row in connection.execute(query)}


def _wanted(connection: Connection, sha256: str) -> bool:
    for table in (artifact, upload):
        mine = (table.c.sha256 == sha256, table.c.expires_at > now_us())
        if connection.execute(select(table.c.id).where(*mine).limit(1)).first() is not None:
            return True
    return False
