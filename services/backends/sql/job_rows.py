"""What every transaction on jobs does the same way: read a row, write under the fence, tell it.

Statements are built once for each set of columns: building one costs more than running it."""

import functools
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Table,
    Update,
    bindparam,
    case,
    insert,
    select,
    update,
)

from services.backends.sql.engine import now_us
from services.backends.sql.job_records import Attempt, ClaimLost, Job
from services.backends.sql.job_tables import attempt, job, job_event
from services.core.jobs import Phase, check_move


class Given(Enum):
    """Values that the database finds."""

    NOW = "now"
    ONE_MORE = "one more"
    KEPT_OR_NOW = "as it is, or now"
    TOO_LATE = "too_late if its end was asked for"


class Due(int):
    """For `next_at`: microseconds from now, never after the deadline; at once when its end was
    asked for while the step ran."""


class Wait(int):
    """For `next_at`: microseconds from now, never after the deadline."""


BY_ID: Final = select(job).where(job.c.id == bindparam("id"))
BY_ID_LOCKED: Final = BY_ID.with_for_update()
_ATTEMPTS: Final = select(attempt).where(attempt.c.job_id == bindparam("id")).order_by(attempt.c.no)
_NOTE: Final = insert(job_event)


def as_job(row: Any) -> Job:
    """A row of `job`."""
    return Job(**{**row._mapping, "phase": Phase(row.phase)})


def one_job(connection: Connection, query: Select[Any]) -> Job | None:
    """The only row of a query over `job`, if there is one."""
    row = connection.execute(query).one_or_none()
    return None if row is None else as_job(row)


def job_by_id(connection: Connection, job_id: str, *, lock: bool = False) -> Job | None:
    """The job as it stands now."""
    row = connection.execute(BY_ID_LOCKED if lock else BY_ID, {"id": job_id}).one_or_none()
    return None if row is None else as_job(row)


def fenced(connection: Connection, held: Job, *, visible: bool = True, **changes: Any) -> Job:
    """Changes a claimed job, if it is still the one that was claimed; `visible`: clients see a new
    version. Returns the job as it is now. Raises ClaimLost, IllegalMove."""
    phase = changes.get("phase")
    if phase is not None and phase is not held.phase:
        check_move(held.phase, phase)
    if visible:
        changes["version"] = Given.ONE_MORE
    shape, values = _shape(changes)
    fence = {"by_id": held.id, "by_epoch": held.epoch, "by_phase": held.phase.value}
    row = connection.execute(_fenced(shape), fence | values).one_or_none()
    if row is None:
        raise ClaimLost(held.id)
    return as_job(row)


def write_attempt(connection: Connection, job_id: str, no: int, changes: Mapping[str, Any]) -> None:
    """Changes one attempt; in a transaction that passes the fence of its job."""
    shape, values = _shape(changes)
    connection.execute(_attempt(shape), {"by_id": job_id, "by_no": no} | values)


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
    connection.execute(_NOTE, row)


def attempts_of(connection: Connection, job_id: str) -> list[Attempt]:
    """All attempts of a job, in order."""
    return [Attempt(**row._mapping) for row in connection.execute(_ATTEMPTS, {"id": job_id})]


def storable(value: Any) -> Any:
    """A text without NUL, which PostgreSQL does not take; what upstreams and receivers say may hold
    any byte."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


_Shape = tuple[tuple[str, Given | type], ...]


def _shape(changes: Mapping[str, Any]) -> tuple[_Shape, dict[str, Any]]:
    """Which columns change, and how; and the parameters."""
    shape: list[tuple[str, Given | type]] = []
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if isinstance(value, Given):
            shape.append((name, value))
            continue
        shape.append((name, type(value) if isinstance(value, Due | Wait) else object))
        values["to_" + name] = storable(value.value if isinstance(value, Enum) else value)
    return tuple(shape), values


@functools.lru_cache(maxsize=256)
def _fenced(shape: _Shape) -> Any:
    return (
        update(job)
        .where(
            job.c.id == bindparam("by_id"),
            job.c.epoch == bindparam("by_epoch"),
            job.c.phase == bindparam("by_phase"),
        )
        .values(_values(job, shape))
        .returning(job)
    )


@functools.lru_cache(maxsize=256)
def _attempt(shape: _Shape) -> Update:
    chosen = attempt.c.job_id == bindparam("by_id"), attempt.c.no == bindparam("by_no")
    return update(attempt).where(*chosen).values(_values(attempt, shape))


def _values(table: Table, shape: Sequence[tuple[str, Given | type]]) -> dict[str, Any]:
    return {name: _value(table.c[name], how) for name, how in shape}


def _value(column: Any, how: Given | type) -> ColumnElement[Any]:
    given = bindparam("to_" + column.name, type_=column.type)
    if how is Given.NOW:
        return now_us()
    if how is Given.ONE_MORE:
        return column + 1  # type: ignore[no-any-return]
    if how is Given.KEPT_OR_NOW:
        return case((column.is_(None), now_us()), else_=column)
    if how is Given.TOO_LATE:
        return case((job.c.cancel_at.is_not(None), "too_late"), else_="none")
    if how in (Due, Wait):
        due = now_us() + bindparam("to_" + column.name, type_=BigInteger())
        asked = [(job.c.cancel_at.is_not(None), now_us())] if how is Due else []
        return case(*asked, (due > job.c.deadline_at, job.c.deadline_at), else_=due)
    return given
