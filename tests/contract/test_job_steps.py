"""Steps of jobs against upstreams that do what the test says: what may have been made is never made
twice, what was made is never let go."""

import threading

import pytest

from services.batch.providers.port import (
    Done,
    NotSent,
    Output,
    Refused,
    Running,
    Submitted,
    Unclear,
    Unsupported,
)
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
