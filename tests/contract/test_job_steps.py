"""Steps of jobs against upstreams that do what the test says: what may have been made is never made
twice, what was made is never let go."""

import os
import threading
import time

import pytest
from sqlalchemy import update

from services.backends.objects.port import NotStored, StoreUnavailable
from services.backends.sql.engine import write
from services.backends.sql.housekeeping import Housekeeping
from services.backends.sql.job_tables import artifact
from services.backends.telemetry import metric
from services.batch.providers.port import (
    Done,
    Failed,
    Later,
    NotSent,
    Output,
    Refused,
    Running,
    Submitted,
    TooLate,
    Unclear,
    Unsupported,
)
from services.batch.sweeps import Sweeps
from services.core.jobs import TERMINAL
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.stack import ROOT
from tests.parts.steps_house import Scripted, StepsHouse

GOLDEN = ROOT / "tests" / "golden" / "media"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def opened(engine, tmp_path):  # noqa: F811
    houses = []

    def made(*upstreams, **batch):
        house = StepsHouse(engine, tmp_path, *upstreams, **batch)
        houses.append(house)
        house.start()
        return house

    yield made
    for each in houses:
        each.stop()


FILM = Done(outputs=(Output(kind="video", data=(GOLDEN / "film.mp4").read_bytes()),))


@pytest.mark.parametrize(
    "second",
    [
        NotSent(message="connection refused"),
        Refused(status=429, message="slow down", another=True),
        Refused(status=401, message="no", another=True),
        Refused(status=409, message="a request with this key is at work"),
    ],
    ids=["not-sent", "429", "401", "409"],
)
def test_a_create_sent_again_is_sent_as_the_same(opened, second):
    """The first call may have made it. That the second one did not says nothing about it: no
    attempt of another name may follow, here or elsewhere."""
    one = Scripted(
        "one",
        create=[Unclear(message="no answer"), second, Submitted(upstream_id="up-1")],
        find=[Unsupported()],
        poll=[FILM],
        idempotent=True,
    )
    other = Scripted("other", poll=[FILM])
    house = opened(one, other)
    ended = house.until_ended(house.submit().id)
    assert {each.client_ref for each in one.asked["create"]} == {f"{ended.id}-1"}
    assert len(one.asked["create"]) == 3
    assert not other.asked["create"]
    assert [each.no for each in house.parts.jobs.attempts(ended.id)] == [1]


def test_what_an_upstream_took_is_written_down_once_the_database_is_there(opened):
    """It cannot be looked up: an id that is let go is a paid generation that nobody fetches."""
    asked, answers = threading.Event(), threading.Event()

    def create(order):
        asked.set()
        assert answers.wait(30)
        return Submitted(upstream_id="up-1")

    one = Scripted("one", create=[create], poll=[Running(), FILM])
    house = opened(one)
    made = house.submit()
    assert asked.wait(30)
    with house.no_writes() as refused:
        answers.set()
        house.until(lambda: len(refused) >= 3)
    assert house.until_ended(made.id).phase == "completed"
    assert len(one.asked["create"]) == 1


def test_a_result_is_booked_once_the_database_is_there(opened):
    """It came with the answer to the create, and is nowhere else."""
    asked, answers = threading.Event(), threading.Event()

    def create(order):
        asked.set()
        assert answers.wait(30)
        return FILM

    one = Scripted("one", create=[create])
    house = opened(one)
    made = house.submit()
    assert asked.wait(30)
    with house.no_writes() as refused:
        answers.set()
        house.until(lambda: len(refused) >= 3)
    ended = house.until_ended(made.id)
    assert (ended.phase, ended.charged_nano > 0) == ("completed", True)
    assert len(one.asked["create"]) == 1


@pytest.mark.parametrize("told", [-5, 10**30])
def test_units_that_no_provider_can_mean_are_bounded(opened, told):
    """What was delivered is delivered, and charged within its hold."""
    film = Done(outputs=FILM.outputs, told={"calls": told})
    one = Scripted("one", poll=[Running(progress_ppm=10), film])
    house = opened(one)
    ended = house.until_ended(house.submit().id)
    assert ended.phase == "completed"
    assert 0 < ended.charged_nano <= ended.hold_nano


def test_a_word_that_nobody_knows_is_counted_and_no_verdict(opened):
    one = Scripted("one", poll=[Running(word="baffled"), Running(word="baffled"), FILM])
    counted = metric("tollgate_unknown_state_total").labels("one")
    before = counted._value.get()
    house = opened(one)
    assert house.until_ended(house.submit().id).phase == "completed"
    assert counted._value.get() == before + 2


@pytest.mark.parametrize("answer", [Later(message="busy", status=503), TooLate()])
def test_an_end_that_cannot_be_asked_for_now_keeps_nobody_from_looking(opened, answer):
    """It is finished meanwhile: delivered, for it was too late."""
    asked = threading.Event()

    def poll(task):
        return FILM if asked.is_set() else Running()

    one = Scripted("one", poll=[poll])
    one.cancel = lambda http, channel, task: asked.set() or answer
    house = opened(one)
    made = house.submit()
    house.until(lambda: one.asked["poll"])
    house.parts.jobs.cancel(made.id)
    ended = house.until_ended(made.id)
    assert (ended.phase, ended.cancel_outcome) == ("completed", "too_late")


def stored(house, job_id):
    (made,) = house.parts.jobs.artifacts([job_id])
    with house.parts.store.open(made.sha256) as file:
        return len(file.read()) == made.bytes


def expire(house, job_id):
    mine = artifact.c.job_id == job_id
    write(house.engine, lambda c: c.execute(update(artifact).where(mine).values(expires_at=1)))


def test_what_is_delivered_stays_though_equal_bytes_are_let_go_meanwhile(opened):
    """The sweep comes between the storing of the second film and its completion."""
    one = Scripted("one", poll=[FILM])
    house = opened(one)
    first = house.until_ended(house.submit().id)
    expire(house, first.id)
    sweeps = Sweeps(house.parts, Housekeeping(house.engine))
    complete = house.parts.ends.complete

    def swept(*args):
        sweeps._retention()
        complete(*args)

    house.parts.ends.complete = swept
    second = house.until_ended(house.submit().id)
    assert second.phase == "completed"
    assert stored(house, second.id)


def test_a_store_that_is_away_keeps_nothing_for_ever(opened):
    one = Scripted("one", poll=[FILM])
    house = opened(one)
    ended = house.until_ended(house.submit().id)
    expire(house, ended.id)
    store, sweeps = house.parts.store, Sweeps(house.parts, Housekeeping(house.engine))
    (made,) = house.parts.jobs.artifacts([ended.id])
    for path in (house.folder / "artifacts").rglob(made.sha256):
        os.utime(path, (1, 1))
    delete = store.delete

    def away(sha256, **more):
        raise StoreUnavailable("away")

    store.delete = away
    with pytest.raises(StoreUnavailable):
        sweeps._retention()
    store.delete = delete
    assert stored(house, ended.id)
    sweeps._retention()
    with pytest.raises(NotStored):
        store.open(made.sha256)
    assert house.parts.jobs.artifacts([ended.id])[0].deleted_at is not None


def test_what_upstreams_say_may_hold_any_byte(opened):
    """PostgreSQL stores no NUL: a body of bytes is no reason to let a generation go."""
    said = "binary \0 body"
    one = Scripted(
        "one",
        create=[Refused(status=503, message=said, another=True), Submitted(upstream_id="up-1")],
        poll=[Later(message=said, status=502), FILM],
    )
    house = opened(one)
    assert house.until_ended(house.submit().id).phase == "completed"
    other = Scripted("one", poll=[Failed(code="x", message=said)])
    house.parts.providers["one"] = other
    assert house.until_ended(house.submit().id).error_code == "upstream_failed"


def test_one_late_result_that_cannot_be_read_keeps_no_other_from_its_client(opened):
    finished = threading.Event()

    def poll(task):
        if not finished.is_set():
            return Running()
        return 1 // 0 if task.upstream_id.startswith(f"up-{broken.id}") else FILM

    one = Scripted("one", poll=[poll])
    house = opened(one, deadline_s=1)
    broken, well = house.submit(), house.submit()
    for each in (broken, well):
        assert house.until_ended(each.id).error_code == "deadline_exceeded"
    finished.set()
    Sweeps(house.parts, Housekeeping(house.engine))._watch()
    house.until(lambda: house.parts.jobs.artifacts([well.id]))
    (late,) = house.parts.jobs.artifacts([well.id])
    assert late.late
    assert not house.parts.jobs.artifacts([broken.id])


def test_late_results_of_others_come_while_an_upstream_hangs(opened):
    """More of its films are waited for than there are threads, all of them before the other's. A
    late result is a change that is seen, unless its job was erased."""
    release, finished = threading.Event(), threading.Event()

    def film(task):
        return FILM if finished.is_set() else Running()

    hung = Scripted("hung", model="veo-3.1", poll=[lambda task: release.wait(60) and Running()])
    well = Scripted("well", poll=[film])
    house = opened(hung, well, threads=40, deadline_s=1)
    sweeps = Sweeps(house.parts, Housekeeping(house.engine))
    try:
        made = [house.submit("veo-3.1").id for _ in range(12)]
        other, erased = house.submit().id, house.submit().id
        for each in (other, erased):
            assert house.until_ended(each).error_code == "deadline_exceeded"
        release.set()
        for each in made:
            house.until_ended(each)
        release.clear()
        house.parts.jobs.erase(house.parts.jobs.get(erased))
        before = house.parts.jobs.get(other).version
        polls = len(hung.asked["poll"])
        finished.set()

        def came():
            sweeps._watch()
            return house.parts.jobs.artifacts([other])

        house.until(came)
        assert 1 <= len(hung.asked["poll"]) - polls <= 6
        assert house.parts.jobs.get(other).version == before + 1
        assert house.parts.jobs.events(other, before, 9)[0].type == "artifact"
        house.until(lambda: house.parts.jobs.attempts(erased)[0].watch_until is None)
        assert house.parts.jobs.artifacts([erased]) == []
    finally:
        release.set()


def test_a_cancel_while_a_create_is_sent_that_makes_nothing_is_the_end(opened):
    """It is not sent again, here or elsewhere, only to be stopped there."""
    asked = threading.Event()

    def create(order):
        asked.set()
        house.until(lambda: house.parts.jobs.get(made.id).cancel_at is not None)
        return NotSent(message="connection refused")

    one, other = Scripted("one", create=[create]), Scripted("other", poll=[FILM])
    house = opened(one, other)
    made = house.submit()
    assert asked.wait(30)
    house.parts.jobs.cancel(made.id)
    ended = house.until_ended(made.id)
    assert (ended.phase, ended.cancel_outcome, ended.charged_nano) == ("cancelled", "confirmed", 0)
    assert [len(each.asked["create"]) for each in (one, other)] == [1, 0]


def test_what_was_not_ordered_is_not_due(opened):
    """A picture beside a film, or instead of it."""
    picture = Output(kind="image", data=(GOLDEN / "picture.png").read_bytes())
    house = opened(Scripted("one", poll=[Done(outputs=(picture, *FILM.outputs))]))
    ended = house.until_ended(house.submit().id)
    assert [each.kind for each in house.parts.jobs.artifacts([ended.id])] == ["video"]
    house.parts.providers["one"] = Scripted("one", poll=[Done(outputs=(picture,))])
    ended = house.until_ended(house.submit().id)
    assert (ended.phase, ended.error_code) == ("failed", "artifact_invalid")
    assert (ended.charged_nano, house.parts.jobs.artifacts([ended.id])) == (0, [])


def test_the_time_of_a_job_ends_though_its_upstream_hangs(opened):
    """Most threads hang with it; what its other jobs wait for is over all the same, and what
    another upstream makes is made."""
    release = threading.Event()
    hung = Scripted("hung", model="veo-3.1", poll=[lambda task: release.wait(60) and Running()])
    well = Scripted("well", poll=[FILM])
    house = opened(hung, well, threads=4, deadline_s=3)
    try:
        made = [house.submit("veo-3.1").id for _ in range(6)]
        house.until(lambda: len(hung.asked["poll"]) == 3)
        assert house.until_ended(house.submit().id).phase == "completed"

        def over():
            return [each for each in map(house.parts.jobs.get, made) if each.phase in TERMINAL]

        house.until(lambda: len(over()) == 3)
        assert {each.error_code for each in over()} == {"deadline_exceeded"}
        assert len(hung.asked["poll"]) == 3
    finally:
        release.set()


def test_an_upstream_that_is_asked_too_often_rests(opened):
    """All of its generations wait, those of another one do not."""
    limited, asked_s = Later(message="slow down", status=429, retry_after_s=1.0), []

    def poll(task):
        asked_s.append(time.monotonic())
        return limited if len(asked_s) <= 2 else FILM

    busy = Scripted("busy", model="veo-3.1", poll=[poll])
    house = opened(busy, Scripted("well", poll=[FILM]), threads=2)
    made = [house.submit("veo-3.1").id for _ in range(8)]
    house.until(lambda: asked_s)
    for each in (house.submit().id, *made):
        assert house.until_ended(each).phase == "completed"
    assert max(asked_s[1] - asked_s[0], asked_s[2] - asked_s[1]) > 0.9


def test_a_film_that_the_provider_filtered_is_blocked_and_free(opened):
    """It is done there, without an error and without a film."""
    house = opened(Scripted("one", poll=[Done(outputs=(), filtered=True)]))
    ended = house.until_ended(house.submit().id)
    assert (ended.phase, ended.error_code, ended.charged_nano) == ("failed", "safety_blocked", 0)
