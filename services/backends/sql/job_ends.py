"""How a job ends: its terminal phase, its artifacts and its terminal event, in one transaction.

`usage` (and money) for a completed job, `error` (free) for every other end, then `lease_closed`:
the ledger returns what is left of the hold. Whichever end commits first stands.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, insert

from schemas import events
from schemas.errors import Outcome
from services.backends.lifecycle import crash_point
from services.backends.sql import outbox
from services.backends.sql.deliveries import plan
from services.backends.sql.engine import database_now_us
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.job_records import Attempt, Job, NewArtifact
from services.backends.sql.job_rows import Given, attempts_of, fenced, note, write_attempt
from services.backends.sql.job_tables import artifact
from services.core.ids import ulid
from services.core.jobs import AttemptState, Fault, Phase, ending, state_of

SOURCE: Final = "batch"
EVENTS: Final = 2  # of a job's lease: request and terminal
_TEXT_MAX: Final = 500
_NEW_ARTIFACT: Final = insert(artifact)


class Bill(NamedTuple):
    """What a completed job costs; `units` are what was delivered."""

    units: dict[str, int]
    cost_nano: int
    charged_nano: int
    provider_cost_nano: int
    multiplier_ppm: int


class Free(NamedTuple):
    """A free end. `message` is what the client reads, `detail` what stands at the attempt (empty:
    the same); `attempt`: what becomes of the present attempt; `provider_cost_nano` what the
    provider may still charge us; `watch_until`: a late result is looked for until then."""

    phase: Phase
    fault: Fault
    message: str
    attempt: AttemptState | None = None
    status: int = 0
    provider_cost_nano: int = 0
    watch_until: int | None = None
    cancel_outcome: str = ""
    detail: str = ""


CANCELLED: Final = Free(
    Phase.CANCELLED, Fault.CANCELLED_BY_USER, "cancelled before work", cancel_outcome="confirmed"
)


class JobEnds:
    """Over the SQL database. Both raise ClaimLost and DatabaseUnavailable."""

    def __init__(self, writes: GroupedWrites) -> None:
        self._writes = writes

    def complete(self, held: Job, delivered: Sequence[NewArtifact], bill: Bill) -> None:
        """Usable artifacts are stored: the job is completed and charged, or neither."""

        def fn(connection: Connection) -> None:
            _complete(connection, held, delivered, bill)
            crash_point("batch.complete.before_commit")

        self._writes.write(fn)
        crash_point("batch.complete.after_commit")

    def free(self, held: Job, end: Free) -> None:
        """The job ends without charge."""

        def fn(connection: Connection) -> None:
            end_free(connection, held, end)
            crash_point("batch.free.before_commit")

        self._writes.write(fn)
        crash_point("batch.free.after_commit")


def _complete(
    connection: Connection, held: Job, delivered: Sequence[NewArtifact], bill: Bill
) -> None:
    now = database_now_us(connection)
    ended = fenced(
        connection,
        held,
        **_terminal(Phase.COMPLETED, now),
        units=msgspec.json.encode(bill.units).decode(),
        charged_nano=bill.charged_nano,
        progress_ppm=1_000_000,
        cancel_outcome=Given.TOO_LATE,
    )
    add_artifacts(connection, held, delivered, now, first=0, late=False)
    write_attempt(
        connection,
        held.id,
        held.attempt_no,
        {
            "state": AttemptState.DONE.value,
            "ended_at": now,
            "provider_cost_nano": bill.provider_cost_nano,
        },
    )
    tried = attempts_of(connection, held.id)
    outbox.append(
        connection,
        events.Usage(
            event_id=f"{held.request_id}:usage",
            status=200,
            outcome=Outcome.COMPLETED,
            usage=bill.units,
            multiplier_ppm=bill.multiplier_ppm,
            cost_nano=bill.cost_nano,
            charged_nano=bill.charged_nano,
            written_off_nano=bill.cost_nano - bill.charged_nano,
            provider_cost_nano=bill.provider_cost_nano,
            job_state=state_of(Phase.COMPLETED).value,
            **_facts(held, tried, now),
        ),
    )
    _close_lease(connection, held, now)
    note(connection, held.id, ended.version, "state", {"state": "completed"}, now)
    plan(connection, held, "job.completed", now)


def end_free(connection: Connection, held: Job, end: Free) -> None:
    """In the caller's transaction."""
    now = database_now_us(connection)
    cancelled: dict[str, Any] = {"cancel_outcome": end.cancel_outcome} if end.cancel_outcome else {}
    ended = fenced(
        connection,
        held,
        **_terminal(end.phase, now),
        error_code=end.fault.value,
        error_message=end.message[:_TEXT_MAX],
        units="{}",
        **cancelled,
    )
    if end.attempt is not None and held.attempt_no:
        values = {
            "state": end.attempt.value,
            "message": (end.detail or end.message)[:_TEXT_MAX],
            "provider_cost_nano": end.provider_cost_nano,
            "watch_until": end.watch_until,
            "ended_at": None if end.attempt is AttemptState.WATCHING else now,
        }
        if end.status:
            values["status"] = end.status
        write_attempt(connection, held.id, held.attempt_no, values)
    code, stage, status, outcome = ending(end.fault)
    outbox.append(
        connection,
        events.Error(
            event_id=f"{held.request_id}:error",
            status=status,
            outcome=outcome,
            code=code,
            stage=stage,
            message=end.message[:_TEXT_MAX],
            provider_cost_nano=end.provider_cost_nano,
            job_state=state_of(end.phase).value,
            job_error=end.fault.value,
            **_facts(held, attempts_of(connection, held.id), now),
        ),
    )
    _close_lease(connection, held, now)
    data = {"state": state_of(end.phase).value, "error": end.fault.value}
    note(connection, held.id, ended.version, "state", data, now)
    plan(connection, held, f"job.{state_of(end.phase).value}", now)


def add_artifacts(
    connection: Connection,
    held: Job,
    delivered: Sequence[NewArtifact],
    now: int,
    *,
    first: int,
    late: bool,
) -> None:
    """Rows for what lies in the object store."""
    for place, each in enumerate(delivered, first):
        row = {
            "id": f"art_{ulid()}",
            "job_id": held.id,
            "place": place,
            **each._asdict(),
            "late": late,
            "created_at": now,
            "expires_at": now + held.retention_s * 1_000_000,
        }
        connection.execute(_NEW_ARTIFACT, row)


def _terminal(phase: Phase, now: int) -> dict[str, Any]:
    return {
        "phase": phase,
        "active": False,
        "claims": 0,
        "next_at": None,
        "finished_at": now,
    }


def _facts(held: Job, tried: Sequence[Attempt], now: int) -> dict[str, Any]:
    last = tried[-1] if tried else None
    return {
        "account_id": held.account_id,
        "key_id": held.key_id,
        "occurred_at": now,
        "source": SOURCE,
        "request_id": held.request_id,
        "lease_id": held.lease_id,
        "lease_seq": EVENTS,
        "dialect": "media",
        "path": held.source,
        "model": held.model,
        "priced_as": held.priced_as,
        "upstream_model": last.upstream_model if last else "",
        "channel": last.channel if last else "",
        "group": held.group_name,
        "price_version": held.price_version,
        "session_id": f"job_{held.id}",
        "hold_nano": held.hold_nano,
        "ttfb_ms": max(0, (held.started_at or now) - held.created_at) // 1000,
        "total_ms": max(0, now - held.created_at) // 1000,
        "attempts": [_told(each, now) for each in tried],
        "upstream_request_id": last.upstream_id[:1024] if last else "",
        "job_id": f"job_{held.id}",
        "job_kind": held.kind,
    }


def _told(tried: Attempt, now: int) -> events.Attempt:
    return events.Attempt(
        channel=tried.channel,
        status=tried.status,
        code=tried.state,
        upstream_request_id=tried.upstream_id[:1024],
        started_at=tried.sent_at,
        total_ms=max(0, (tried.ended_at or now) - tried.sent_at) // 1000,
    )


def _close_lease(connection: Connection, held: Job, now: int) -> None:
    outbox.append(
        connection,
        events.LeaseClosed(
            event_id=f"{held.lease_id}:lease_closed",
            account_id=held.account_id,
            key_id=held.key_id,
            occurred_at=now,
            source=SOURCE,
            lease_id=held.lease_id,
            events=EVENTS,
        ),
    )
