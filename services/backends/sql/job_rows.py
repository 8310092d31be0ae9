"""What every transaction on jobs does the same way: read a row, write under the fence, tell it."""

from typing import Any

import msgspec
from sqlalchemy import Connection, Select, insert, select, update

from services.backends.sql.job_records import Attempt, ClaimLost, Job
from services.backends.sql.job_tables import attempt, job, job_event
from services.core.jobs import Phase, check_move


def as_job(row: Any) -> Job:
    """A row of `job`."""
    return Job(**{**row._mapping, "phase": Phase(row.phase)})


def one_job(connection: Connection, query: Select[Any]) -> Job | None:
    """The only row of a query over `job`, if there is one."""
    row = connection.execute(query).one_or_none()
    return None if row is None else as_job(row)


def fresh(connection: Connection, job_id: str) -> Job:
    """The job as it stands now."""
    return as_job(connection.execute(select(job).where(job.c.id == job_id)).one())


def fenced(connection: Connection, held: Job, *, visible: bool = True, **changes: Any) -> int:
    """Changes a claimed job, if it is still the one that was claimed; `visible`: clients see a new
    version. Returns the version. Raises ClaimLost, IllegalMove."""
    phase = changes.get("phase")
    if phase is not None and phase is not held.phase:
        check_move(held.phase, phase)
    row = connection.execute(
        update(job)
        .where(job.c.id == held.id, job.c.epoch == held.epoch, job.c.phase == held.phase.value)
        .values(version=job.c.version + (1 if visible else 0), **changes)
        .returning(job.c.version)
    ).one_or_none()
    if row is None:
        raise ClaimLost(held.id)
    return int(row.version)


def note(
    connection: Connection, job_id: str, seq: int, kind: str, data: dict[str, Any], now: int
) -> None:
    """One visible change, in the transaction that makes it; `seq` is the version it made."""
    row = {
        "job_id": job_id,
        "seq": seq,
        "type": kind,
        "data": msgspec.json.encode(data).decode(),
        "created_at": now,
    }
    connection.execute(insert(job_event).values(row))


def write_attempt(connection: Connection, job_id: str, no: int, values: dict[str, Any]) -> None:
    """Changes one attempt; in a transaction that has passed the fence of its job."""
    connection.execute(
        update(attempt).where(attempt.c.job_id == job_id, attempt.c.no == no).values(values)
    )


def attempts_of(connection: Connection, job_id: str) -> list[Attempt]:
    """All attempts of a job, in order."""
    query = select(attempt).where(attempt.c.job_id == job_id).order_by(attempt.c.no)
    return [Attempt(**row._mapping) for row in connection.execute(query)]
