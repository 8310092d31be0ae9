"""The engine's side of jobs: claim what is due, write each step's result under its fence.

A claim is short-lived (prolonged while the step runs) and fenced: it raises `epoch`,
and a write that names an older one changes nothing and raises ClaimLost.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    Connection,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from services.backends.sql.deliveries import plan
from services.backends.sql.engine import database_now_us, now_us, read, statement_us
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.job_records import Attempt, Job
from services.backends.sql.job_rows import (
    Due,
    Given,
    Wait,
    as_job,
    fenced,
    note,
    write_attempt,
)
from services.backends.sql.job_tables import IS_ACTIVE, attempt, job
from services.backends.sql.tables import account
from services.backends.sql.tables import channel as channels
from services.core.jobs import AttemptState, Phase
from services.core.webhooks import PROGRESS

POSTPONED_US: Final = 1_000_000
_TEXT_MAX: Final = 500

_CLAIM_US: Final = bindparam("claim_us", type_=BigInteger())
_OVER: Final = or_(
    job.c.deadline_at <= statement_us(),
    and_(job.c.phase == Phase.QUEUED.value, job.c.start_by <= statement_us()),
)
_DUE: Final = select(job.c.id).where(
    job.c.next_at <= statement_us(),
    or_(job.c.channel.not_in(bindparam("full", expanding=True)), _OVER),
)
_ANY_DUE: Final = _DUE.limit(1)
_CLAIM: Final = (
    update(job)
    .where(
        job.c.id.in_(
            _DUE.order_by(job.c.next_at).limit(bindparam("most")).with_for_update(skip_locked=True)
        )
    )
    .values(epoch=job.c.epoch + 1, claims=job.c.claims + 1, next_at=now_us() + _CLAIM_US)
    .returning(job)
)
_PROLONG: Final = (
    update(job)
    .where(
        tuple_(job.c.id, job.c.epoch).in_(bindparam("ours", expanding=True)),
        job.c.next_at.is_not(None),
        job.c.claims > 0,
    )
    .values(next_at=now_us() + _CLAIM_US)
)
_POSTPONED_MAX: Final = 1_000
_LOOKS: Final = [each.value for each in (Phase.UNKNOWN, Phase.POLLING, Phase.FETCHING)]
_LATER: Final = now_us() + bindparam("wait_us", type_=BigInteger())
_POSTPONE: Final = (
    update(job)
    .where(
        job.c.id.in_(
            select(job.c.id)
            .where(
                job.c.next_at <= statement_us(),
                job.c.channel == bindparam("by_channel"),
                job.c.claims == 0,
                job.c.cancel_at.is_(None),
                job.c.phase.in_(_LOOKS),
            )
            .order_by(job.c.next_at)
            .limit(_POSTPONED_MAX)
            .with_for_update(skip_locked=True)
        )
    )
    .values(next_at=case((job.c.deadline_at < _LATER, job.c.deadline_at), else_=_LATER))
)
_PRESENT: Final = select(attempt).where(
    tuple_(attempt.c.job_id, attempt.c.no).in_(bindparam("begun", expanding=True))
)
_NEW_ATTEMPT: Final = insert(attempt)
_ACTIVE: Final = select(func.count()).select_from(job).where(IS_ACTIVE)
_ACTIVE_OF_ACCOUNT: Final = _ACTIVE.where(
    job.c.account_id == bindparam("account"),
    job.c.next_at.is_not(None),  # so they are; else SQLite takes the index of all its jobs
)
_ACTIVE_OF_CHANNEL: Final = _ACTIVE.where(job.c.channel == bindparam("channel"))
_ACCOUNT: Final = (
    select(account.c.id).where(account.c.id == bindparam("account")).with_for_update(key_share=True)
)
_CHANNEL: Final = (
    select(channels.c.name)
    .where(channels.c.name == bindparam("channel"))
    .with_for_update(key_share=True)
)


class Claimed(NamedTuple):
    """A job for one step, and its present attempt, if there was one."""

    job: Job
    tried: Attempt | None


class JobClaims:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable; writes raise
    ClaimLost."""

    def __init__(self, writes: GroupedWrites, claim_s: float) -> None:
        self._writes = writes
        self._claim_us = round(claim_s * 1_000_000)

    def claim(self, limit: int, full: Sequence[str] = ()) -> list[Claimed]:
        """Up to `limit` due jobs, the longest due first, for a step each; of the channels `full`
        only those whose time is over."""
        left_out = {"full": list(full)}

        def fn(connection: Connection) -> list[Claimed]:
            asked = {"most": limit, "claim_us": self._claim_us, **left_out}
            rows = connection.execute(_CLAIM, asked).all()
            jobs = [as_job(row) for row in rows]
            tried = _present(connection, jobs)
            return [Claimed(each, tried.get(each.id)) for each in jobs]

        if read(self._writes.engine, lambda c: c.execute(_ANY_DUE, left_out).first() is None):
            return []
        return self._writes.write(fn)

    def postpone(self, channel: str, wait_s: float) -> None:
        """Many jobs that an upstream is to be asked for are due after `wait_s`, at their deadline
        at the latest."""
        given = {"by_channel": channel, "wait_us": round(wait_s * 1_000_000)}
        self._writes.write(lambda connection: connection.execute(_POSTPONE, given))

    def hint(self, job_id: str) -> bool:
        """The upstream may have news of it: it is due now, unless it is being looked at. False:
        there is no such job, or it is not waited for. Nobody vouches for who asks: so he costs no
        write."""
        waits = (job.c.claims == 0, job.c.next_at > now_us())
        looks = job.c.phase.in_((Phase.POLLING.value, Phase.UNKNOWN.value))
        chosen = (job.c.id == job_id, looks, *waits)
        query = select(job.c.id).where(*chosen)
        if read(self._writes.engine, lambda c: c.execute(query).first() is None):
            return False
        statement = update(job).where(*chosen).values(next_at=now_us())
        self._writes.write(lambda connection: connection.execute(statement))
        return True

    def prolong(self, held: Sequence[Job]) -> None:
        """The steps of `held` still run. Those that were taken over meanwhile are left alone."""
        if not held:
            return
        ours = [(each.id, each.epoch) for each in held]
        given = {"ours": ours, "claim_us": self._claim_us}
        self._writes.write(lambda connection: connection.execute(_PROLONG, given))

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
            begun = fenced(
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
            connection.execute(_NEW_ATTEMPT, msgspec.structs.asdict(row))
            if held.started_at is None:
                note(connection, held.id, begun.version, "state", {"state": "running"}, now)
                plan(connection, held, "job.running", now)
            return begun, row

        return self._writes.write(fn)

    def taken(
        self, held: Job, tried: Attempt, upstream_id: str, links: Mapping[str, str], wait_s: float
    ) -> None:
        """The upstream has it; asked for again after `wait_s`."""
        values = {
            "state": AttemptState.RUNNING.value,
            "upstream_id": upstream_id,
            "links": msgspec.json.encode(dict(links)).decode(),
            "taken_at": Given.NOW,
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
            "ended_at": Given.NOW,
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
                "polls": Given.ONE_MORE,
                "status": status,
                "message": message[:_TEXT_MAX],
                "gone": gone,
                "gone_at": Given.KEPT_OR_NOW if gone else None,
            }
            write_attempt(connection, tried.job_id, tried.no, values)
            told = progress_ppm is not None and progress_ppm != held.progress_ppm
            changes: dict[str, Any] = {"progress_ppm": progress_ppm} if told else {}
            put = fenced(connection, held, visible=told, **_next(held, wait_s), **changes)
            if told:
                now = database_now_us(connection)
                data = {"progress": (progress_ppm or 0) / 1_000_000}
                note(connection, held.id, put.version, "progress", data, now)
                plan(connection, held, PROGRESS, now)

        self._writes.write(fn)

    def fetching(self, held: Job) -> Job:
        """The upstream finished; its results are copied now."""

        def fn(connection: Connection) -> Job:
            copied = fenced(connection, held, visible=False, phase=Phase.FETCHING)
            write_attempt(connection, held.id, held.attempt_no, {"ended_at": Given.NOW})
            return copied

        return self._writes.write(fn)

    def later(self, held: Job, wait_s: float, **changes: Any) -> None:
        """Nothing happened: due again after `wait_s`."""

        def fn(connection: Connection) -> None:
            fenced(connection, held, visible=False, **_next(held, wait_s), **changes)

        self._writes.write(fn)

    def _step(
        self, held: Job, tried: Attempt, values: dict[str, Any], wait_s: float, **changes: Any
    ) -> None:
        def fn(connection: Connection) -> None:
            write_attempt(connection, tried.job_id, tried.no, values)
            fenced(connection, held, visible=False, **_next(held, wait_s), **changes)

        self._writes.write(fn)


def put_off(connection: Connection, held: Job, wait_us: int) -> None:
    """Due again after `wait_us`; it did not get its turn."""
    fenced(connection, held, visible=False, claims=0, next_at=Wait(wait_us))


def _next(held: Job, wait_s: float) -> dict[str, Any]:
    """Free again, due after `wait_s`; at once when its end was asked for meanwhile, and never
    after its deadline."""
    wait_us = max(0, round(wait_s * 1_000_000))
    return {"claims": 0, "next_at": Wait(wait_us) if held.cancel_at is not None else Due(wait_us)}


def _present(connection: Connection, jobs: Sequence[Job]) -> dict[str, Attempt]:
    """The present attempts, by the ids of their jobs."""
    begun = [(each.id, each.attempt_no) for each in jobs if each.attempt_no]
    if not begun:
        return {}
    rows = connection.execute(_PRESENT, {"begun": begun})
    found = (Attempt(**row._mapping) for row in rows)
    return {each.job_id: each for each in found}


def _is_full(
    connection: Connection, account_id: str, account_max: int, channel: str, channel_max: int
) -> bool:
    theirs, there = {"account": account_id}, {"channel": channel}
    # One after the other, so that two do not both take the last place.
    if account_max:
        connection.execute(_ACCOUNT, theirs)
        if connection.execute(_ACTIVE_OF_ACCOUNT, theirs).scalar_one() >= account_max:
            return True
    if not channel_max:
        return False
    connection.execute(_CHANNEL, there)
    return bool(connection.execute(_ACTIVE_OF_CHANNEL, there).scalar_one() >= channel_max)
