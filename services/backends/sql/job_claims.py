"""The engine's side of jobs: claim what is due, write each step's result under its fence.

A claim is short-lived (prolonged while the step runs) and fenced: it raises `epoch`,
and a write that names an older one changes nothing and raises ClaimLost.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, case, func, insert, select, tuple_, update

from services.backends.sql.engine import database_now_us, now_us, read, write
from services.backends.sql.job_records import Attempt, Job
from services.backends.sql.job_rows import as_job, fenced, fresh, note, write_attempt
from services.backends.sql.job_tables import attempt, job
from services.backends.sql.tables import account
from services.core.jobs import AttemptState, Phase

POSTPONED_US: Final = 1_000_000
_TEXT_MAX: Final = 500


class JobClaims:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable; writes raise
    ClaimLost."""

    def __init__(self, engine: Engine, claim_s: float) -> None:
        self._engine = engine
        self._claim_us = round(claim_s * 1_000_000)

    def claim(self, limit: int) -> list[Job]:
        """Up to `limit` due jobs, the longest due first, for a step each."""

        def fn(connection: Connection) -> list[Job]:
            due = (
                select(job.c.id)
                .where(job.c.next_at <= now_us())
                .order_by(job.c.next_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            rows = connection.execute(
                update(job)
                .where(job.c.id.in_(due))
                .values(
                    epoch=job.c.epoch + 1,
                    claims=job.c.claims + 1,
                    next_at=now_us() + self._claim_us,
                )
                .returning(job)
            )
            return [as_job(row) for row in rows]

        if read(self._engine, _none_due):
            return []
        return write(self._engine, fn)

    def hint(self, job_id: str) -> None:
        """The upstream may have news of it: it is due now, unless it is being looked at."""
        waits = (job.c.claims == 0, job.c.next_at > now_us())
        looks = job.c.phase.in_((Phase.POLLING.value, Phase.UNKNOWN.value))
        statement = update(job).where(job.c.id == job_id, looks, *waits).values(next_at=now_us())
        write(self._engine, lambda connection: connection.execute(statement))

    def prolong(self, held: Sequence[Job]) -> None:
        """The steps of `held` still run. Those that were taken over meanwhile are left alone."""
        if not held:
            return
        ours = [(each.id, each.epoch) for each in held]
        statement = (
            update(job)
            .where(tuple_(job.c.id, job.c.epoch).in_(ours), job.c.next_at.is_not(None))
            .where(job.c.claims > 0)
            .values(next_at=now_us() + self._claim_us)
        )
        write(self._engine, lambda connection: connection.execute(statement))

    def begin_attempt(
        self,
        held: Job,
        channel: str,
        upstream_model: str,
        *,
        account_max: int,
        channel_max: int,
    ) -> tuple[Job, Attempt] | None:
        """Commits, before anything is sent, that it will be sent to `channel`. None: as many jobs
        of the account or the channel run as may (0: any number); it was put off."""

        def fn(connection: Connection) -> tuple[Job, Attempt] | None:
            if _is_full(connection, held.account_id, account_max, channel, channel_max):
                put_off(connection, held, POSTPONED_US)
                return None
            now = database_now_us(connection)
            no = held.attempt_no + 1
            version = fenced(
                connection,
                held,
                phase=Phase.SUBMITTING,
                active=True,
                channel=channel,
                attempt_no=no,
                started_at=held.started_at or now,
                next_at=now + self._claim_us,
                claims=1,
            )
            row = Attempt(
                job_id=held.id,
                no=no,
                channel=channel,
                upstream_model=upstream_model,
                client_ref=f"{held.id}-{no}",
                state=AttemptState.SENDING,
                upstream_id="",
                links="{}",
                polls=0,
                gone=0,
                gone_at=None,
                status=0,
                message="",
                provider_cost_nano=0,
                watch_until=None,
                sent_at=now,
                taken_at=None,
                ended_at=None,
            )
            connection.execute(insert(attempt).values(msgspec.structs.asdict(row)))
            if held.started_at is None:
                note(connection, held.id, version, "state", {"state": "running"}, now)
            return fresh(connection, held.id), row

        return write(self._engine, fn)

    def taken(
        self, held: Job, tried: Attempt, upstream_id: str, links: Mapping[str, str], wait_s: float
    ) -> None:
        """The upstream has it; asked for again after `wait_s`."""
        values = {
            "state": AttemptState.RUNNING.value,
            "upstream_id": upstream_id,
            "links": msgspec.json.encode(dict(links)).decode(),
            "taken_at": now_us(),
        }
        self._step(held, tried, values, wait_s, phase=Phase.POLLING)

    def unknown(self, held: Job, tried: Attempt, status: int, message: str, wait_s: float) -> None:
        """The create may have landed."""
        values = {
            "state": AttemptState.UNKNOWN.value,
            "status": status,
            "message": message[:_TEXT_MAX],
        }
        self._step(held, tried, values, wait_s, phase=Phase.UNKNOWN)

    def back(
        self,
        held: Job,
        tried: Attempt,
        state: AttemptState,
        status: int,
        message: str,
        wait_s: float,
    ) -> None:
        """Surely nothing was made: to the queue again."""
        values = {
            "state": state.value,
            "status": status,
            "message": message[:_TEXT_MAX],
            "ended_at": now_us(),
        }
        self._step(
            held,
            tried,
            values,
            wait_s,
            phase=Phase.QUEUED,
            active=False,
            not_sent=held.not_sent + (state is AttemptState.NOT_SENT),
        )

    def polled(
        self,
        held: Job,
        tried: Attempt,
        wait_s: float,
        *,
        status: int = 0,
        message: str = "",
        gone: int = 0,
        progress_ppm: int | None = None,
    ) -> None:
        """Asked, and not finished. `gone`: times in a row that the upstream did not know it."""

        def fn(connection: Connection) -> None:
            values = {
                "polls": attempt.c.polls + 1,
                "status": status,
                "message": message[:_TEXT_MAX],
                "gone": gone,
                "gone_at": case((attempt.c.gone_at.is_(None), now_us()), else_=attempt.c.gone_at)
                if gone
                else None,
            }
            write_attempt(connection, tried.job_id, tried.no, values)
            told = progress_ppm is not None and progress_ppm != held.progress_ppm
            changes: dict[str, Any] = {"progress_ppm": progress_ppm} if told else {}
            version = fenced(connection, held, visible=told, **_next(held, wait_s), **changes)
            if told:
                now = database_now_us(connection)
                data = {"progress": (progress_ppm or 0) / 1_000_000}
                note(connection, held.id, version, "progress", data, now)

        write(self._engine, fn)

    def fetching(self, held: Job) -> Job:
        """The upstream finished; its results are copied now."""

        def fn(connection: Connection) -> Job:
            fenced(connection, held, visible=False, phase=Phase.FETCHING)
            write_attempt(connection, held.id, held.attempt_no, {"ended_at": now_us()})
            return fresh(connection, held.id)

        return write(self._engine, fn)

    def later(self, held: Job, wait_s: float, **changes: Any) -> None:
        """Nothing happened: due again after `wait_s`."""

        def fn(connection: Connection) -> None:
            fenced(connection, held, visible=False, **_next(held, wait_s), **changes)

        write(self._engine, fn)

    def attempt(self, held: Job) -> Attempt:
        """The present attempt."""
        query = select(attempt).where(attempt.c.job_id == held.id, attempt.c.no == held.attempt_no)
        row = read(self._engine, lambda connection: connection.execute(query).one())
        return Attempt(**row._mapping)

    def _step(
        self, held: Job, tried: Attempt, values: dict[str, Any], wait_s: float, **changes: Any
    ) -> None:
        def fn(connection: Connection) -> None:
            write_attempt(connection, tried.job_id, tried.no, values)
            fenced(connection, held, visible=False, **_next(held, wait_s), **changes)

        write(self._engine, fn)


def put_off(connection: Connection, held: Job, wait_us: int) -> None:
    """Due again after `wait_us`; it did not get its turn."""
    fenced(connection, held, visible=False, claims=0, next_at=now_us() + wait_us)


def _next(held: Job, wait_s: float) -> dict[str, Any]:
    """Free again, due after `wait_s`; at once when its end was asked for meanwhile, and never
    after its deadline."""
    due = now_us() + max(0, round(wait_s * 1_000_000))
    bounded = case((due > held.deadline_at, held.deadline_at), else_=due)
    if held.cancel_at is not None:
        return {"claims": 0, "next_at": bounded}
    asked = job.c.cancel_at.is_not(None)  # while the step ran
    return {"claims": 0, "next_at": case((asked, now_us()), else_=bounded)}


def _none_due(connection: Connection) -> bool:
    query = select(job.c.id).where(job.c.next_at <= now_us()).limit(1)
    return connection.execute(query).first() is None


def _is_full(
    connection: Connection, account_id: str, account_max: int, channel: str, channel_max: int
) -> bool:
    active = select(func.count()).where(job.c.active)
    if account_max:  # one after the other, so that two do not both take the last place
        one = select(account.c.id).where(account.c.id == account_id)
        connection.execute(one.with_for_update(key_share=True))
        theirs = active.where(job.c.account_id == account_id)
        if connection.execute(theirs).scalar_one() >= account_max:
            return True
    if channel_max:
        there = active.where(job.c.channel == channel)
        if connection.execute(there).scalar_one() >= channel_max:
            return True
    return False
