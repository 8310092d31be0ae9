"""Two that want the same job at the same moment: one of them has it, and the other knows."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import insert

from services.backends.sql.engine import open_engine, write
from services.backends.sql.housekeeping import Housekeeping
from services.backends.sql.job_records import ClaimLost
from services.backends.sql.tables import channel
from services.core.jobs import TERMINAL, Phase
from tests.parts.jobs_world import JobsWorld
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.stack import ROOT

CLAIMS = 5_000  # of each process
ROUNDS = 25


@pytest.mark.slow
def test_two_processes_never_claim_a_job_twice(engine, database_url, tmp_path):  # noqa: F811
    world = JobsWorld(engine)
    made = {world.submit().job.id for _ in range(30)}
    command = [sys.executable, "-m", "tests.parts.claim_worker", database_url, tmp_path]
    racers = [
        subprocess.Popen([*command, str(CLAIMS)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [racer.communicate()[0].split("\n")[:-1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    claims = [line for lines in told for line in lines]
    assert len(claims) >= 2 * CLAIMS
    assert len(set(claims)) == len(claims), "one job was claimed twice under one number"
    assert {line.split()[0] for line in claims} == made


def test_of_two_processes_that_want_to_sweep_one_leads(engine, database_url):  # noqa: F811
    other = open_engine(database_url, Path())
    both = {"first": Housekeeping(engine), "second": Housekeeping(other)}
    for number in range(10):
        what = f"sweep {number}"
        took = at_once(*(partial(each.lead, what, name, 60) for name, each in both.items()))
        assert sorted(took) == [False, True]
        leads = dict(zip(both, took, strict=True))
        for name, each in both.items():
            assert each.lead(what, name, 60) == leads[name]
    assert both["first"].lead("over", "first", 0)
    assert both["second"].lead("over", "second", 60), "its time was over"
    other.dispose()


@pytest.fixture
def both(engine, database_url, tmp_path):  # noqa: F811
    """The world of one process, and jobs, claims, ends of another one."""
    world = JobsWorld(engine)
    other = open_engine(database_url, Path())
    yield world, world.worker(other)
    other.dispose()


def at_once(*actions):
    """Results, or ClaimLost, of all; they start together."""
    barrier = threading.Barrier(len(actions))

    def run(action):
        barrier.wait()
        try:
            return action()
        except ClaimLost as ex:
            return ex

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def begun(world, upto=Phase.SUBMITTING):
    """A claimed job in the phase."""
    world.submit()
    (held, _), *more = world.claims.claim(1)
    assert not more
    if upto is not Phase.QUEUED:
        held, tried = world.claims.begin_attempt(held, "one", "m", account_max=0, channel_max=0)
    if upto is Phase.FETCHING:
        world.claims.taken(held, tried, f"up-{held.id}", {}, 0.0)
        (held, _), *more = world.claims.claim(1)
        held = world.claims.fetching(held)
    return held


def ended_once(world, held):
    seen = world.rows([held.id])
    kinds = seen.kinds[held.request_id]
    assert kinds["Usage"] + kinds["Error"] == seen.closed[held.lease_id] == 1
    (row,) = seen.jobs
    assert row.phase in TERMINAL
    assert (row.charged_nano > 0) == (kinds["Usage"] == 1) == (row.phase == Phase.COMPLETED)
    return row


def test_a_cancel_against_a_completion_has_one_winner(both):
    world, (jobs, _, _) = both
    outcomes = set()
    for _ in range(ROUNDS):
        held = begun(world, Phase.FETCHING)
        at_once(
            lambda held=held: world.write(held, None, Phase.COMPLETED, False),
            lambda held=held: jobs.cancel(held.id),
        )
        row = ended_once(world, held)
        assert row.phase == Phase.COMPLETED, "it was too late"
        outcomes.add(row.cancel_outcome)
    assert outcomes <= {"none", "too_late"}


def test_a_cancel_against_a_beginning_has_one_winner(both):
    world, (jobs, _, _) = both
    for _ in range(ROUNDS):
        held = begun(world, Phase.QUEUED)
        started, told = at_once(
            lambda held=held: world.claims.begin_attempt(
                held, "one", "m", account_max=0, channel_max=0
            ),
            lambda held=held: jobs.cancel(held.id),
        )
        attempts = world.rows([held.id]).attempts[held.id]
        if isinstance(started, ClaimLost):
            assert (attempts, ended_once(world, held).phase) == (0, "cancelled")
        else:  # it is under way, and its worker will see the wish
            assert attempts == 1
            assert told.cancel_at is not None
            assert told.phase is Phase.SUBMITTING
            world.write(started[0], None, Phase.CANCELLED, False)


@pytest.mark.parametrize("bound", ["account_max", "channel_max"])
def test_no_more_jobs_begin_than_may_run(both, bound):
    world, (_, claims, _) = both
    row = {each.name: "[]" if each.name in ("models", "groups") else 0 for each in channel.c}
    row |= {"name": "one", "dialect": "", "base_url": "", "credential_sealed": "", "provider": "x"}
    row |= {"count_tokens": False}
    write(world.engine, lambda connection: connection.execute(insert(channel), row))
    most = {"account_max": 0, "channel_max": 0, bound: 1}
    for _ in range(ROUNDS):
        for _ in range(2):
            world.submit()
        one, two = (each.job for each in world.claims.claim(2))
        took = at_once(
            lambda one=one: world.claims.begin_attempt(one, "one", "m", **most),
            lambda two=two: claims.begin_attempt(two, "one", "m", **most),
        )
        (ran,) = (each for each in took if each is not None)
        world.write(ran[0], None, Phase.FAILED, False)
        put_off = two if took[0] is not None else one
        world.jobs.cancel(put_off.id)


def test_of_two_processes_that_end_a_job_one_does(both):
    """The first was too slow: its claim ran out, and the second took the job over."""
    world, (_, claims, _) = both
    slow = JobsWorld.worker(world, world.engine, claim_s=0.0)[1]
    for _ in range(ROUNDS):
        world.submit()
        ((first, _),) = slow.claim(1)
        first, tried = slow.begin_attempt(first, "one", "m", account_max=0, channel_max=0)
        ((second, seen),) = claims.claim(1)
        assert (second.id, second.epoch, seen) == (first.id, first.epoch + 1, tried)
        late, done = at_once(
            lambda first=first: world.write(first, None, Phase.FAILED, False),
            lambda second=second: world.write(second, None, Phase.COMPLETED, False),
        )
        assert isinstance(late, ClaimLost)
        assert done is Phase.COMPLETED
        assert ended_once(world, second).phase == Phase.COMPLETED
