"""Jobs as clients make and see them: submit, cancel, read, list. The engine's side is
`job_claims` and `job_ends`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection, bindparam, case, func, insert, select, tuple_, update

from schemas import events
from services.backends.lifecycle import crash_point
from services.backends.sql import outbox
from services.backends.sql.budgets import Budgets, Shortfall
from services.backends.sql.bulk import insert_new
from services.backends.sql.deliveries import plan
from services.backends.sql.engine import database_now_us, now_us, read
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.job_ends import CANCELLED, SOURCE, end_free
from services.backends.sql.job_records import (
    ERASED,
    Artifact,
    Attempt,
    FingerprintConflict,
    Job,
    JobEvent,
    NewJob,
    QueueFull,
    Submitted,
)
from services.backends.sql.job_rows import as_job, job_by_id, note, one_job
from services.backends.sql.job_tables import (
    artifact,
    attempt,
    idempotency,
    job,
    job_event,
    upload,
)
from services.backends.sql.uploads import JOB_INPUT
from services.core.ids import new_id, uuid7_text
from services.core.jobs import TERMINAL, Phase

T = TypeVar("T")

INCARNATION: Final = "batch"  # holds every job's lease: a job outlives the process that took it
_HEAD_START_US: Final = 60 * 1_000_000  # of one step of priority


class Idempotence(NamedTuple):
    """Under which names a submission is known. `scope` is whose names they are."""

    scope: str
    names: tuple[str, ...]


class Page(NamedTuple):
    jobs: list[Job]
    more: bool


class Jobs:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable."""

    def __init__(self, writes: GroupedWrites, budgets: Budgets) -> None:
        self._writes = writes
        self._budgets = budgets

    # -- making -------------------------------------------------------------------------------

    def submit(self, new: NewJob, known_as: Idempotence, queue_max: int) -> Submitted:
        """Job, names, hold and `request` event in one transaction; or the job that the same
        submission made before.

        Raises FingerprintConflict, QueueFull, Shortfall, KeyNotActive, IncarnationNotOpen."""
        while True:
            try:
                made = self._writes.write(lambda c: self._submit(c, new, known_as, queue_max))
            except _Raced:
                continue  # somebody submitted the same at the same moment: now it is there
            if isinstance(made, Shortfall):
                raise made
            crash_point("batch.submit.after_commit")
            return made

    def _submit(
        self, connection: Connection, new: NewJob, known_as: Idempotence, queue_max: int
    ) -> Submitted | Shortfall:
        before = _known(connection, new, known_as)
        if before is not None:
            return Submitted(before, replayed=True)
        if connection.execute(_OPEN, {"account": new.account_id}).scalar_one() >= queue_max:
            raise QueueFull
        now = database_now_us(connection)
        lease_id = new_id("lease")
        granted = self._budgets.grant_in(
            connection,
            lease_id,
            1,
            INCARNATION,
            new.key_id,
            new.hold_nano,
            new.hold_nano,
            new.capped_model,
        )
        if isinstance(granted, Shortfall):
            return granted
        self._budgets.reserve_in(connection, lease_id)
        for name in known_as.names:
            row = {
                "scope": known_as.scope,
                "name": name,
                "fingerprint": new.fingerprint,
                "job_id": new.id,
                "created_at": now,
            }
            if connection.execute(_new_name(connection), row).first() is None:
                raise _Raced
        made = _row(new, lease_id, now)
        connection.execute(_NEW_JOB, msgspec.to_builtins(made))
        note(connection, made.id, 1, "state", {"state": "queued"}, now)
        plan(connection, made, "job.queued", now)
        outbox.append(connection, _request(made, new, now))
        crash_point("batch.submit.before_commit")
        return Submitted(made, replayed=False)

    def cancel(self, job_id: str) -> Job | None:
        """Asks for the end of a job: at once and free while nothing was sent, else through the
        worker that has it or takes it next. One that has ended stays as it is. None: no such job.
        """

        def fn(connection: Connection) -> Job | None:
            found = job_by_id(connection, job_id, lock=True)
            if found is None or found.phase in TERMINAL:
                return found
            if found.phase is Phase.QUEUED:
                connection.execute(
                    update(job)
                    .where(job.c.id == job_id)
                    .values(cancel_at=now_us(), epoch=job.c.epoch + 1)
                )
                ours = msgspec.structs.replace(found, epoch=found.epoch + 1)
                end_free(connection, ours, CANCELLED)
            elif found.cancel_at is None:
                # A step that runs goes on: it sees the wish when it ends.
                connection.execute(
                    update(job)
                    .where(job.c.id == job_id)
                    .values(
                        cancel_at=now_us(),
                        next_at=case((job.c.claims == 0, now_us()), else_=job.c.next_at),
                    )
                )
            return job_by_id(connection, job_id)

        return self._writes.write(fn)

    def erase(self, ended: Job) -> None:
        """Lets inputs and results of a job go that has ended, and what its client said of it; a
        sweep deletes the bytes. Uploads that are the client's own stay. Repeating it is harmless.
        """

        def fn(connection: Connection) -> None:
            now = database_now_us(connection)
            row = connection.execute(
                update(job)
                .where(job.c.id == ended.id, job.c.params != ERASED)
                .values(params=ERASED, extra="{}", version=job.c.version + 1)
                .returning(job.c.version)
            ).one_or_none()
            if row is None:
                return
            for table, chosen in (
                (artifact, artifact.c.job_id == ended.id),
                (upload, upload.c.id.in_(named) & (upload.c.purpose == JOB_INPUT)),
            ):
                connection.execute(
                    update(table).where(chosen, table.c.expires_at > now).values(expires_at=now)
                )
            note(connection, ended.id, int(row.version), "erased", {}, now)

        named = [each for each in ended.parameters.values() if isinstance(each, str)]
        self._writes.write(fn)

    # -- reading ------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job | None:
        return self._read(lambda c: job_by_id(c, job_id))

    def by_name(self, scope: str, name: str) -> Job | None:
        """The job of an external id or idempotency key."""
        query = (
            select(job)
            .join(idempotency, idempotency.c.job_id == job.c.id)
            .where(idempotency.c.scope == scope, idempotency.c.name == name)
        )
        return self._read(lambda c: one_job(c, query))

    def several(self, account_id: str, ids: Sequence[str]) -> list[Job]:
        """Those of the account among `ids`, in no order."""
        query = select(job).where(job.c.account_id == account_id, job.c.id.in_(ids))
        return self._read(lambda c: [as_job(row) for row in c.execute(query)])

    def listed(
        self,
        account_id: str,
        *,
        limit: int,
        after: tuple[int, str] | None = None,
        phases: Sequence[Phase] = (),
        model: str = "",
        kind: str = "",
        created_after: int | None = None,
        labels: Mapping[str, str] = {},
        erased: bool = True,
        oldest_first: bool = False,
    ) -> Page:
        """Newest first unless told, from behind `after` (created_at, id) on; `labels`: entries that
        its metadata has; `erased`: those whose inputs were erased too."""
        query = select(job).where(job.c.account_id == account_id)
        if phases:
            query = query.where(job.c.phase.in_([phase.value for phase in phases]))
        if model:
            query = query.where((job.c.model == model) | (job.c.priced_as == model))
        if kind:
            query = query.where(job.c.kind == kind)
        if created_after is not None:
            query = query.where(job.c.created_at > created_after)
        for name, value in labels.items():  # quotes inside texts are escaped, so this is exact
            entry = msgspec.json.encode({name: value}).decode()[1:-1]
            query = query.where(func.replace(job.c.extra, entry, "") != job.c.extra)
        if not erased:
            query = query.where(job.c.params != ERASED)
        place = tuple_(job.c.created_at, job.c.id)
        if after is not None:
            query = query.where(place > tuple_(*after) if oldest_first else place < tuple_(*after))
        columns = (job.c.created_at, job.c.id)
        order = columns if oldest_first else [each.desc() for each in columns]
        query = query.order_by(*order).limit(limit + 1)
        found = self._read(lambda c: [as_job(row) for row in c.execute(query)])
        return Page(found[:limit], len(found) > limit)

    def attempts(self, job_id: str) -> list[Attempt]:
        query = select(attempt).where(attempt.c.job_id == job_id).order_by(attempt.c.no)
        return self._read(lambda c: [Attempt(**row._mapping) for row in c.execute(query)])

    def artifacts(self, job_ids: Sequence[str]) -> list[Artifact]:
        """Of all of these jobs, in order."""
        ids = {"ids": list(job_ids)}
        return self._read(lambda c: [Artifact(**row._mapping) for row in c.execute(_MADE, ids)])

    def artifact(self, artifact_id: str) -> tuple[Artifact, str] | None:
        """The artifact and the account that it belongs to."""
        query = (
            select(artifact, job.c.account_id)
            .join(job, job.c.id == artifact.c.job_id)
            .where(artifact.c.id == artifact_id)
        )
        row = self._read(lambda c: c.execute(query).one_or_none())
        if row is None:
            return None
        fields = {name: value for name, value in row._mapping.items() if name != "account_id"}
        return Artifact(**fields), row.account_id

    def events(self, job_id: str, after: int, limit: int) -> list[JobEvent]:
        """What happened to the job behind event number `after`, the first `limit` of it."""
        query = (
            select(job_event)
            .where(job_event.c.job_id == job_id, job_event.c.seq > after)
            .order_by(job_event.c.seq)
            .limit(limit)
        )
        return self._read(lambda c: [JobEvent(*row) for row in c.execute(query)])

    def changes(self, after: int, limit: int) -> list[tuple[int, str]]:
        """(number, job id) of the changes of all jobs behind number `after`, in their order."""
        query = (
            select(job_event.c.id, job_event.c.job_id)
            .where(job_event.c.id > after)
            .order_by(job_event.c.id)
            .limit(limit)
        )
        return self._read(lambda c: [(row.id, row.job_id) for row in c.execute(query)])

    def last_change(self) -> int:
        """The number of the newest change."""
        query = select(func.coalesce(func.max(job_event.c.id), 0))
        return self._read(lambda c: int(c.execute(query).scalar_one()))

    def _read(self, fn: Callable[[Connection], T]) -> T:
        return read(self._writes.engine, fn)


_OPEN: Final = select(func.count()).where(
    job.c.account_id == bindparam("account"), job.c.next_at.is_not(None)
)
_NAMED: Final = select(idempotency).where(
    idempotency.c.scope == bindparam("scope"),
    idempotency.c.name.in_(bindparam("names", expanding=True)),
)
_NEW_JOB: Final = insert(job)
_MADE: Final = (
    select(artifact)
    .where(artifact.c.job_id.in_(bindparam("ids", expanding=True)))
    .order_by(artifact.c.job_id, artifact.c.place)
)


def _new_name(connection: Connection) -> Any:
    return insert_new(connection, idempotency).returning(idempotency.c.name)


class _Raced(Exception):
    """The same name was written by another transaction at the same moment."""


def _known(connection: Connection, new: NewJob, known_as: Idempotence) -> Job | None:
    """The job made before under one of the names. Raises FingerprintConflict."""
    if not known_as.names:
        return None
    asked = {"scope": known_as.scope, "names": list(known_as.names)}
    for row in connection.execute(_NAMED, asked):
        if row.fingerprint != new.fingerprint:
            raise FingerprintConflict(row.name)
        return job_by_id(connection, row.job_id)
    return None


def _row(new: NewJob, lease_id: str, now: int) -> Job:
    start_by = None if new.start_within_s is None else now + new.start_within_s * 1_000_000
    return Job(
        id=new.id,
        request_id=uuid7_text(),
        account_id=new.account_id,
        key_id=new.key_id,
        source=new.source,
        external_id=new.external_id,
        kind=new.kind,
        model=new.model,
        priced_as=new.priced_as,
        group_name=new.group,
        price_version=new.price_version,
        params=msgspec.json.encode(new.params, order="deterministic").decode(),
        body_bytes=new.body_bytes,
        phase=Phase.QUEUED,
        version=1,
        epoch=0,
        claims=0,
        next_at=now - new.priority * _HEAD_START_US,
        active=False,
        priority=new.priority,
        channel="",
        attempt_no=0,
        not_sent=0,
        hold_nano=new.hold_nano,
        lease_id=lease_id,
        start_by=start_by,
        deadline_at=now + new.deadline_s * 1_000_000,
        eta_s=new.eta_s,
        progress_ppm=None,
        cancel_at=None,
        cancel_outcome="none",
        error_code="",
        error_message="",
        callback_url=new.callback_url,
        extra=msgspec.json.encode(new.extra).decode(),
        retention_s=new.retention_s,
        on_late=new.on_late,
        retry_of=new.retry_of,
        units=msgspec.json.encode(new.units).decode(),
        charged_nano=0,
        created_at=now,
        started_at=None,
        finished_at=None,
    )


def _request(made: Job, new: NewJob, now: int) -> events.Request:
    return events.Request(
        event_id=f"{made.request_id}:request",
        account_id=made.account_id,
        key_id=made.key_id,
        occurred_at=now,
        source=SOURCE,
        request_id=made.request_id,
        lease_id=made.lease_id,
        lease_seq=1,
        dialect="media",
        path=made.source,
        model=made.model,
        group=made.group_name,
        price_version=made.price_version,
        hold_nano=made.hold_nano,
        session_id=f"job_{made.id}",
        body_bytes=made.body_bytes,
    )
