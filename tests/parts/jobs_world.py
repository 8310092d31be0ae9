"""Jobs of one account, written as the batch service writes them, without upstreams."""

from collections import Counter, defaultdict
from typing import NamedTuple

from sqlalchemy import Engine, select

from schemas import events
from services.backends.sql.engine import read
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.job_claims import JobClaims
from services.backends.sql.job_ends import Bill, Free, JobEnds
from services.backends.sql.job_records import Attempt, Job, NewArtifact, NewJob, Submitted
from services.backends.sql.job_tables import attempt, job, job_event
from services.backends.sql.jobs import INCARNATION, Idempotence, Jobs
from services.backends.sql.tables import sql_outbox
from services.core.ids import ulid
from services.core.jobs import AttemptState, Fault, Phase
from tests.parts.sql_world import World

HOLD_NANO = 1_000
KINDS = ("request", "usage", "error")
BILL = Bill({"images": 1}, 700, 700, 300, 1_000_000)
PICTURE = NewArtifact("image", "image/png", 10, "ab" * 32, 8, 8, None)


class Rows(NamedTuple):
    """What the database holds of some jobs."""

    jobs: list
    kinds: dict[str, Counter[str]]  # of events, by request id
    closed: Counter[str]  # ends of leases
    numbers: dict[str, list[int]]  # of visible changes, by job id
    attempts: Counter[str]


class JobsWorld:
    def __init__(self, engine: Engine, claim_s: float = 60.0) -> None:
        self.engine = engine
        self.base = World(engine, 1_000_000_000)
        self.base.budgets.open_incarnation(INCARNATION, "batch", "-")
        self.jobs, self.claims, self.ends = self.worker(engine, claim_s)

    def worker(self, engine: Engine, claim_s: float = 60.0) -> tuple[Jobs, JobClaims, JobEnds]:
        """What one batch process has."""
        writes = GroupedWrites(engine)
        return Jobs(writes, self.base.budgets), JobClaims(writes, claim_s), JobEnds(writes)

    def submit(self, name: str = "") -> Submitted:
        new = NewJob(
            id=ulid(),
            account_id=self.base.account.id,
            key_id=self.base.key.id,
            source="/v1/jobs",
            kind="image",
            model="sim-image",
            priced_as="sim-image",
            group="default",
            price_version="p1",
            params={"prompt": "a fox"},
            fingerprint="f",
            hold_nano=HOLD_NANO,
            units={"images": 1},
            eta_s=1,
            deadline_s=3600,
            retention_s=3600,
            external_id=name,
        )
        names = (f"ext:{name}",) if name else ()
        known_as = Idempotence(f"account:{self.base.account.id}", names)
        return self.jobs.submit(new, known_as, 1_000_000)

    def write(self, held: Job, tried: Attempt | None, step: Phase, gone: bool) -> Phase:
        """The write of a step that leads to `step`; returns where it led. Raises ClaimLost."""
        if step is Phase.COMPLETED:
            self.ends.complete(held, [PICTURE], BILL)
        elif step in (Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED):
            lost = AttemptState.LOST if held.attempt_no else None
            self.ends.free(held, Free(step, Fault.UPSTREAM_FAILED, "it failed", attempt=lost))
        elif step is Phase.SUBMITTING and held.phase is Phase.QUEUED:
            self.claims.begin_attempt(held, "one", "m", account_max=0, channel_max=0)
        elif step is Phase.FETCHING and held.phase is not Phase.FETCHING:
            self.claims.fetching(held)
        elif tried is None or step is held.phase is not Phase.POLLING:
            self.claims.later(held, 5.0)
            return held.phase
        else:
            self._put(held, tried, step, gone)
        return step

    def _put(self, held: Job, tried: Attempt, step: Phase, gone: bool) -> None:
        if step is Phase.QUEUED:
            self.claims.back(held, tried, AttemptState.NOT_SENT, 0, "not sent", 5.0)
        elif step is Phase.UNKNOWN:
            self.claims.unknown(held, tried, 500, "no answer", 5.0)
        elif held.phase is Phase.POLLING:
            self.claims.polled(held, tried, 5.0, status=200, gone=int(gone), progress_ppm=500_000)
        else:
            self.claims.taken(held, tried, f"up-{held.id}", {}, 5.0)

    def rows(self, job_ids) -> Rows:
        ids = list(job_ids)
        changes = select(job_event.c.job_id, job_event.c.seq).where(job_event.c.job_id.in_(ids))
        tries = select(attempt.c.job_id).where(attempt.c.job_id.in_(ids))

        def fn(connection):
            jobs = connection.execute(select(job).where(job.c.id.in_(ids))).all()
            names = [f"{row.request_id}:{kind}" for row in jobs for kind in KINDS]
            names += [f"{row.lease_id}:lease_closed" for row in jobs]
            told = select(sql_outbox.c.body).where(sql_outbox.c.event_id.in_(names))
            return (
                jobs,
                connection.execute(told).scalars().all(),
                connection.execute(changes.order_by(job_event.c.id)).all(),
                connection.execute(tries).scalars().all(),
            )

        jobs, bodies, seen, tried = read(self.engine, fn)
        kinds: dict[str, Counter[str]] = defaultdict(Counter)
        closed: Counter[str] = Counter()
        for each in (events.decode(bytes(body)) for body in bodies):
            if isinstance(each, events.LeaseClosed):
                closed[each.lease_id] += 1
            else:
                kinds[each.request_id][type(each).__name__] += 1
        numbers: dict[str, list[int]] = defaultdict(list)
        for job_id, seq in seen:
            numbers[job_id].append(seq)
        return Rows(jobs, kinds, closed, numbers, Counter(tried))
