"""How jobs end: cancelled, free, partly, late."""

import pytest
from sqlalchemy import update

from services.backends.sql import job_tables
from services.backends.sql.engine import write
from tests.parts.job_routes import query_task


def test_a_running_video_cannot_be_stopped_there_but_is_over_and_free_here(house):
    made = house.submit("sim-video", prompt="a fox sim:run-ms 60000", duration_seconds=1)
    house.until(lambda: house.job(made["id"])["attempts"] == 1, "the attempt")
    ended = house.call("POST", f"/v1/jobs/{made['id']}/cancel")
    assert ended[0] in (200, 202)
    job = house.wait_for(made["id"])
    assert (job["state"], job["cancel"]["outcome"]) == ("cancelled", "unsupported")
    assert job["cost"]["charged_nano"] == 0
    again = house.call("POST", f"/v1/jobs/{made['id']}/cancel")
    assert (again[0], again[1]["version"]) == (200, job["version"])
    task_id = made["id"].replace("job_", "task_")
    before = query_task(house, task_id=task_id)[1]
    assert before["status"] == "cancelled"
    for path, body in ((f"/v1/tasks/cancel/{task_id}", {}), ("/v1/tasks/cancel", before)):
        status, told = house.call("POST", path, body)
        assert (status, told["status"]) == (200, "cancelled")
    assert query_task(house, task_id=task_id)[1] == before
    house.check()


def test_a_cancel_that_the_upstream_confirms(house):
    made = house.submit("veo-3.1", prompt="a fox sim:run-ms 60000", duration_seconds=1)
    house.until(lambda: house.job(made["id"])["attempts"] == 1, "the attempt")
    house.call("POST", f"/v1/jobs/{made['id']}/cancel")
    job = house.wait_for(made["id"])
    assert (job["state"], job["cancel"]["outcome"]) == ("cancelled", "confirmed")
    house.check()


@pytest.mark.parametrize(
    ("asked", "status", "used"),
    [
        ("sim:run-ms 60000", "cancelled", 0),
        ("sim:run-ms 1500 sim:fault cancel-too-late", "completed", 1),
    ],
)
def test_a_cancelled_run_is_free_and_a_finished_one_is_due(house, asked, status, used):
    made = house.submit("veo-3.1", prompt=f"a fox {asked}", duration_seconds=1)
    house.until(lambda: house.job(made["id"])["attempts"] == 1, "the attempt")
    held = made["cost"]["held_nano"] / 1e9
    task_id = made["id"].replace("job_", "task_")
    house.call("POST", f"/v1/tasks/cancel/{task_id}")
    house.wait_for(made["id"])
    task = query_task(house, task_id=task_id)[1]
    assert (task["status"], task["credits_used"]) == (status, used * held)
    house.check()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("job-fail", "upstream_failed"),
        ("job-moderated", "safety_blocked"),
        ("job-no-output", "artifact_fetch_failed"),
        ("job-gone", "upstream_unknown"),
        ("create-400", "upstream_rejected"),
        ("create-moderated", "safety_blocked"),
        ("create-cut", "upstream_unknown"),
        ("artifact-short", "artifact_invalid"),
        ("artifact-wrong-type", "artifact_invalid"),
        ("artifact-empty", "artifact_invalid"),
    ],
)
def test_what_delivers_nothing_usable_is_free(house, fault, error):
    made = house.submit("sim-video", prompt=f"a fox sim:fault {fault}", duration_seconds=1)
    job = house.wait_for(made["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", error)
    assert job["cost"]["charged_nano"] == 0
    house.check()


@pytest.mark.parametrize(
    "fault",
    ["poll-500-1+poll-429-1+poll-404-2+poll-garbage-1", "artifact-500-1", "artifact-truncated-1"],
)
def test_trouble_on_the_way_is_no_verdict(house, fault):
    made = house.submit("sim-video", prompt=f"a fox sim:fault {fault}", duration_seconds=1)
    assert house.wait_for(made["id"])["state"] == "completed"
    house.check()


def test_some_of_the_images_are_charged_as_some(house):
    made = house.submit("sim-image", prompt="a fox sim:fault job-partial", n=3)
    job = house.wait_for(made["id"])
    assert job["state"] == "completed"
    assert job["usage"]["units"] == {"images": 2}
    assert job["cost"]["charged_nano"] == 20_000_000
    house.check()


def test_a_cancel_while_a_provider_makes_it_in_its_answer_is_free(house, media_sim):
    """A speech is made by the create call: nobody can stop it, and nobody pays for it."""
    mark = f"on its way {house.account.id}"
    asked = {"input": f"{mark} sim:fault create-timeout-2", "format": "wav"}
    body = {"model": "sim-speech", "input": asked}
    made = house.call("POST", "/v1/jobs", body)[1]
    house.until(lambda: house.job(made["id"])["attempts"] == 1, "the attempt")
    first = house.call("POST", f"/v1/jobs/{made['id']}/cancel")
    second = house.call("POST", f"/v1/jobs/{made['id']}/cancel")
    assert [first[0], second[0]] == [202, 202]
    job = house.wait_for(made["id"])
    assert job["state"] in ("cancelled", "failed")
    assert job["cost"]["charged_nano"] == 0
    assert len([each for each in media_sim.media_jobs() if mark in each["prompt"]]) == 1
    house.check()


@pytest.mark.slow
def test_what_comes_after_the_end_is_attached_free_of_charge(house):
    body = {
        "model": "sim-video",
        "input": {"prompt": "a fox sim:run-ms 4000", "duration_seconds": 1},
        "deadline_seconds": 2,
    }
    made = house.call("POST", "/v1/jobs", body)[1]
    job = house.wait_for(made["id"])
    assert (job["state"], job["output"]) == ("failed", [])
    house.until(lambda: house.job(made["id"])["output"], "the late result", 60.0)
    late = house.job(made["id"])
    assert [each["late"] for each in late["output"]] == [True]
    assert (late["state"], late["cost"]) == ("failed", job["cost"])
    (error,) = [each for each in house.events() if type(each).__name__ == "Error"]
    assert error.provider_cost_nano > 0, "what it costs us is on our side of the books"
    house.check()


def test_a_job_that_is_too_old_is_ended_there_and_free(house, media_sim):
    mark = f"too old {house.account.id}"
    body = {
        "model": "veo-3.1",
        "input": {"prompt": f"{mark} sim:run-ms 60000", "duration_seconds": 1},
        "deadline_seconds": 2,
    }
    made = house.call("POST", "/v1/jobs", body)[1]
    assert made["cost"]["held_nano"] > 0
    job = house.wait_for(made["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "deadline_exceeded")
    assert (job["cost"]["held_nano"], job["cost"]["charged_nano"]) == (0, 0)
    (there,) = [each for each in media_sim.media_jobs() if mark in each["prompt"]]
    assert there["state"] == "cancelled"
    house.check()


def test_a_word_of_the_provider_makes_us_look_at_once(house):
    made = house.submit("sim-video", prompt="a fox sim:run-ms 60000", duration_seconds=1)
    job = job_tables.job
    mine = job.c.id == made["id"].removeprefix("job_")
    path = f"/v1/jobs/{made['id']}/attempts"

    def far_ahead():
        waits = (mine, job.c.phase == "polling", job.c.claims == 0)
        later = update(job).where(*waits).values(next_at=job.c.next_at + 3600 * 10**6)
        return write(house.engine, lambda c: c.execute(later).rowcount)

    house.until(far_ahead, "a poll that is waited for")
    first = house.call("GET", path)[1]["data"][0]
    assert house.call("POST", "/hooks/replicate?ref=none-1")[0] == 204
    assert house.call("POST", f"/hooks/replicate?ref={first['client_ref']}")[0] == 204
    house.until(lambda: house.call("GET", path)[1]["data"][0]["polls"] > first["polls"], "a poll")
    house.call("POST", f"/v1/jobs/{made['id']}/cancel")
    house.wait_for(made["id"])
