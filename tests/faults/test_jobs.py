"""Media jobs under kill -9 at every named point, on both databases."""

import json
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from uuid import uuid4

import pytest

from services.backends.clock import SystemClock
from services.edge.jobs import forward
from tests.parts.batch_house import BatchHouse
from tests.parts.ports import free_port
from tests.parts.postgres import database_url  # noqa: F401
from tests.parts.sim import Sim

POINTS = (
    "batch.attempt.committed",
    "batch.create.answered",
    "batch.create.persisted",
    "batch.poll.answered",
    "batch.fetching.committed",
    "batch.artifact.received",
    "batch.artifacts.kept",
    "batch.complete.before_commit",
    "batch.complete.after_commit",
)


@pytest.fixture(scope="module")
def media_sim(tmp_path_factory):
    log = tmp_path_factory.mktemp("sim") / "sim.log"
    made = Sim(log, "--media-queue-ms", "10", "--media-run-ms", "200")
    yield made
    made.stop()


@pytest.fixture
def house(tmp_path, database_url, media_sim, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TOLLGATE_TEST_UPSTREAM", "upstream-secret")
    made = BatchHouse(tmp_path / "data", database_url, media_sim.base_url)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("model", ["veo-3.1", "sim-video", "sim-image"])
def test_a_kill_at_any_point_loses_and_doubles_nothing(house, media_sim, model):
    made = []
    given = {} if model == "sim-image" else {"duration_seconds": 1}
    for point in POINTS:
        process = house.running()
        armed = house.arm(point)
        found = house.submit(model, external_id=point, **given)
        made.append(found["id"])
        if house.processes[-1] is not process:
            continue  # it died before it could answer
        house.until(
            lambda process=process, found=found: (
                process.poll() is not None or house.job(found["id"])["completed_at"]
            ),
            f"the death at {point}",
        )
        if armed.exists():  # this model never comes by there
            armed.unlink()
            process.kill()
        process.wait()
    house.running()
    ended = {job_id: house.wait_for(job_id) for job_id in made}
    house.check()
    states = Counter(each["state"] for each in ended.values())
    created = Counter(each["client_ref"] or each["prompt"] for each in media_sim.media_jobs())
    if model == "veo-3.1":  # looked up by reference: nothing is lost, nothing is made twice
        assert states == {"completed": len(POINTS)}, [e["error"] for e in ended.values()]
        for job_id in made:
            refs = [
                row.client_ref
                for row in house.attempts()
                if row.job_id == job_id.removeprefix("job_")
            ]
            assert sorted(created[ref] for ref in refs) == [0] * (len(refs) - 1) + [1]
    else:  # cannot be looked up: what may have been made is never made again
        assert set(states) <= {"completed", "failed"}
        assert states["failed"] <= 5
        faults = {each["error"]["code"] for each in ended.values() if each["error"]}
        assert faults <= {"upstream_unknown"}
        assert all(row.no == 1 for row in house.attempts())


@pytest.mark.slow
def test_a_submission_cut_before_its_commit_leaves_nothing(house):
    process = house.start()
    house.arm("batch.submit.before_commit")
    with pytest.raises(Exception, match="nobody answers"):
        house.submit("sim-image")
    process.wait(20)
    assert house.jobs() == []
    assert not [e for e in house.events() if type(e).__name__ == "Request"]
    house.start()
    first = house.submit("sim-image", external_id="once")
    again = house.submit("sim-image", external_id="once")
    assert first["id"] == again["id"]
    assert house.wait_for(first["id"])["state"] == "completed"
    house.check()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["batch.submit.before_commit", "batch.submit.after_commit"])
def test_a_submission_whose_answer_was_cut_is_made_once(house, point, monkeypatch):
    """The edge asks for the same job once more: else its client is told of a failure, and the job
    is made and due."""
    monkeypatch.setattr(forward, "_PATIENCE_S", 60.0)
    process = house.start()
    house.arm(point)
    edge = forward.Forwarder(SimpleNamespace(batch=house.client, on_look=[], clock=SystemClock()))
    req = SimpleNamespace(
        get_header=lambda name: None,
        scheme="http",
        netloc="gateway.test",
        context=SimpleNamespace(),
    )
    caller = SimpleNamespace(key=house.key)
    body = json.dumps({"model": "sim-image", "input": {"prompt": "a fox"}}).encode()
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(lambda: (process.wait(60), house.start()))
        made = edge.ask(req, "POST", "/v1/jobs", caller, body, submits=True)
        started.result()
    assert (made.status, made.headers.get("idempotent-replayed")) == (202, None)
    job_id = json.loads(made.body())["id"]
    assert [f"job_{each.id}" for each in house.jobs()] == [job_id]
    assert house.wait_for(job_id)["state"] == "completed"
    house.check()


def upstream_has(house, job_id):
    tries = house.call("GET", f"/v1/jobs/{job_id}/attempts")[1]["data"]
    return [each for each in tries if each["upstream_id"]]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_kill_while_a_job_is_ended_for_its_client(house, media_sim):
    for point in ("batch.cancel.answered", "batch.free.before_commit", "batch.free.after_commit"):
        process = house.running()
        mark = f"{point} {uuid4().hex}"  # the provider serves other tests too
        made = house.submit("veo-3.1", prompt=f"{mark} sim:run-ms 60000", duration_seconds=1)
        house.until(partial(upstream_has, house, made["id"]), "the upstream to have it")
        house.arm(point)
        house.call("POST", f"/v1/jobs/{made['id']}/cancel")
        house.until(lambda process=process: process.poll() is not None, f"the death at {point}")
        house.running()
        ended = house.wait_for(made["id"])
        assert (ended["state"], ended["cancel"]["outcome"]) == ("cancelled", "confirmed"), point
        (there,) = [each for each in media_sim.media_jobs() if each["prompt"].startswith(mark)]
        assert there["state"] == "cancelled"
    house.check()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_process_that_stood_still_writes_nothing_late(house, media_sim):
    """Its jobs are taken over meanwhile; what it wanted to write then finds another fence."""
    house.start()
    house.second()
    for number, point in enumerate(("batch.create.answered", "batch.artifacts.kept"), 1):
        house.arm(point).write_bytes(b"stop")
        prompt = uuid4().hex  # the provider serves other tests too
        asking = threading.Thread(
            target=house.submit,
            args=("veo-3.1", f"still{number}"),
            kwargs={"prompt": prompt, "duration_seconds": 1},
        )
        asking.start()  # it may be answered by the one that stands still
        house.until(lambda: house.stopped(), f"a process to stand still at {point}")
        house.until(
            lambda number=number: (
                [each.phase for each in house.jobs() if each.external_id == f"still{number}"]
                == ["completed"]
            ),
            "the other one to complete it",
        )
        lost = house.log().count("claim_lost")
        house.stopped()[0].send_signal(signal.SIGCONT)
        house.until(lambda lost=lost: house.log().count("claim_lost") > lost, "it to know better")
        asking.join(60)
        made = [each for each in media_sim.media_jobs() if each["prompt"] == prompt]
        assert len(made) == 1
    house.check()


@pytest.mark.slow
def test_what_was_not_sent_is_sent_once_its_upstream_is_there(
    tmp_path,
    database_url,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setenv("TOLLGATE_TEST_UPSTREAM", "upstream-secret")
    port = free_port()
    house = BatchHouse(tmp_path / "data", database_url, f"http://127.0.0.1:{port}")
    try:
        house.start()
        made = [house.submit("sim-image"), house.submit("veo-3.1", duration_seconds=1)]
        for each in made:
            house.until(
                lambda each=each: house.job(each["id"])["attempts"] >= 2, "to be tried twice"
            )
        assert {row.state for row in house.attempts()} <= {"not_sent", "sending"}
        sim = Sim(tmp_path / "sim.log", "--port", str(port), "--media-run-ms", "50")
        try:
            ended = [house.wait_for(each["id"], 60.0) for each in made]
            assert [each["state"] for each in ended] == ["completed", "completed"]
            assert len(sim.media_jobs()) == 2
        finally:
            sim.stop()
        house.check()
    finally:
        house.close()
