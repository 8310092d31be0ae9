"""The life of jobs against a plain model, in any order of steps: submissions under few names, two
workers whose claims run out, writes of claims that are not theirs any more, cancels at any time.

After every step: a job that has ended stays as it is; it is charged exactly when it is completed;
its log has one request and, once it has ended, one terminal and one end of its lease; what clients
see is numbered without a gap."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from sqlalchemy import update

from services.backends.sql.engine import now_us, open_engine, write
from services.backends.sql.job_records import ClaimLost
from services.backends.sql.job_tables import job
from services.core.ids import uuid7_hex
from services.core.jobs import ACTIVE, MOVES, TERMINAL, Phase
from tests.parts.jobs_world import JobsWorld
from tests.parts.postgres import POSTGRES, SQLITE, drop_database, postgres_url
from tests.parts.sqlite import migrated_url

NAMES = ("a", "b", "c")
ENDS = ("phase", "charged_nano", "error_code", "finished_at", "cancel_outcome", "version")


class JobLife:
    """What the jobs of one walk should be."""

    def __init__(self, world):
        self.world = world
        self.mark = uuid7_hex()
        self.names = {}  # name -> job id
        self.now = {}  # job id -> (epoch, phase), as the model has it
        self.live = set()  # claimed, and the claim has not run out
        self.claims = []  # every claim there ever was
        self.ended = {}  # job id -> its end, as first seen

    # -- clients ------------------------------------------------------------------------------

    def submit(self, which, move, gone):
        name = NAMES[which % len(NAMES)]
        made = self.world.submit(f"{name}-{self.mark}")
        assert made.replayed == (name in self.names)
        assert self.names.setdefault(name, made.job.id) == made.job.id
        self.now.setdefault(made.job.id, (0, Phase.QUEUED))

    def cancel(self, which, move, gone):
        job_id = self._job(which)
        epoch, phase = self.now[job_id]
        told = self.world.jobs.cancel(job_id)
        if phase is Phase.QUEUED:
            assert told.phase is Phase.CANCELLED
            self.now[job_id] = (epoch + 1, Phase.CANCELLED)
            self.live.discard(job_id)
        else:
            assert told.phase is phase
            assert told.cancel_at is not None or phase in TERMINAL

    # -- workers ------------------------------------------------------------------------------

    def claim(self, which, move, gone):
        found = self.world.claims.claim(10)
        for each in found:
            epoch, phase = self.now[each.job.id]
            assert each.job.id not in self.live, "claimed twice"
            assert phase not in TERMINAL
            assert (each.job.epoch, each.job.phase) == (epoch + 1, phase)
            assert (each.tried.no if each.tried else 0) == each.job.attempt_no
            self.now[each.job.id] = (epoch + 1, phase)
            self.live.add(each.job.id)
        self.claims += found

    def time_passes(self, which, move, gone):
        """Its pause is over, or its claim has run out."""
        job_id = self._job(which)
        due = update(job).where(job.c.id == job_id, job.c.next_at.is_not(None))
        write(self.world.engine, lambda c: c.execute(due.values(next_at=now_us() - 1)))
        self.live.discard(job_id)

    def step(self, which, move, gone):
        """One write of a claim, which may be long lost."""
        held, tried = self.claims[-1 - which % len(self.claims)]
        ways = sorted(MOVES[held.phase] | {held.phase})
        ways += 2 * [way for way in ways if way not in TERMINAL]
        step = ways[move % len(ways)]
        fits = self.now[held.id] == (held.epoch, held.phase)
        try:
            after = self.world.write(held, tried, step, gone)
        except ClaimLost:
            assert not fits
            return
        assert fits, "a lost claim has written"
        self.now[held.id] = (held.epoch, after)
        if after not in (Phase.SUBMITTING, Phase.FETCHING) or after is held.phase:
            self.live.discard(held.id)

    def prolong(self, which, move, gone):
        """Keeps a claim, and delays nothing that waits for somebody else."""
        held = self.claims[-1 - which % len(self.claims)].job
        before = self.world.jobs.get(held.id)
        self.world.claims.prolong([held])
        if before.claims == 0 or before.epoch != held.epoch:
            assert self.world.jobs.get(held.id) == before

    # -- what always holds --------------------------------------------------------------------

    def check(self):
        seen = self.world.rows(self.now)
        for row in seen.jobs:
            assert (row.epoch, row.phase) == self.now[row.id]
            over = row.phase in TERMINAL
            assert (row.next_at is None) == over
            assert bool(row.active) == (row.phase in ACTIVE)
            assert (row.charged_nano > 0) == (row.phase == Phase.COMPLETED)
            end = tuple(getattr(row, name) for name in ENDS)
            if over:
                assert self.ended.setdefault(row.id, end) == end
            kinds = seen.kinds[row.request_id]
            assert kinds["Request"] == 1
            assert kinds["Usage"] == (row.phase == Phase.COMPLETED)
            assert kinds["Usage"] + kinds["Error"] == seen.closed[row.lease_id] == over
            assert seen.numbers[row.id] == list(range(1, row.version + 1))
            assert seen.attempts[row.id] == row.attempt_no

    def leave(self):
        """The next walk claims nothing of this one."""
        for job_id in self.now:
            over = update(job).where(job.c.id == job_id).values(next_at=None)
            write(self.world.engine, lambda c, over=over: c.execute(over))

    def _job(self, which):
        return list(self.now)[which % len(self.now)]


WAYS = {
    "submit": lambda life: True,
    "cancel": lambda life: life.now,
    "claim": lambda life: life.now,
    "time_passes": lambda life: life.now,
    "step": lambda life: life.claims,
    "prolong": lambda life: life.claims,
}
STEPS = [*WAYS, "claim", "time_passes", "step", "step", "step"]


STEP = st.tuples(
    st.sampled_from(STEPS),
    st.one_of(st.integers(0, 2), st.integers(0, 30)),
    st.integers(0, 50),
    st.booleans(),
)


@pytest.mark.parametrize("kind", [SQLITE, POSTGRES])
def test_whatever_happens_an_end_stands_and_is_charged_once(kind, tmp_path):
    url = migrated_url(tmp_path) if kind == "sqlite" else postgres_url()
    engine = open_engine(url, tmp_path)
    world = JobsWorld(engine)

    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Stage.generate],  # to make a failing walk shorter takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(STEP, min_size=30, max_size=60))
    def walk(steps):
        life = JobLife(world)
        try:
            for name, which, move, gone in [("submit", 0, 0, False), *steps]:
                if WAYS[name](life):
                    getattr(life, name)(which, move, gone)
                    life.check()
        finally:
            life.leave()

    try:
        walk()
    finally:
        engine.dispose()
        if kind != "sqlite":
            drop_database(url)
