"""The batch service's routes as the edge calls them: both views, names, cancels, artifacts."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from sqlalchemy import select, update

from schemas.config import Artifacts
from services.backends import settings
from services.backends.sql import job_tables
from services.backends.sql.engine import now_us, read, write
from services.backends.sql.housekeeping import Housekeeping
from services.batch.links import LinkSigner
from services.core import webhooks
from tests.parts.batch_house import BatchHouse
from tests.parts.kafka import free_port
from tests.parts.postgres import POSTGRES, SQLITE, drop_database, postgres_url
from tests.parts.sim import Sim
from tests.parts.sqlite import migrated_url


@pytest.fixture(scope="module")
def media_sim(tmp_path_factory):
    made = Sim(
        tmp_path_factory.mktemp("sim") / "sim.log", "--media-queue-ms", "10", "--media-run-ms", "50"
    )
    yield made
    made.stop()


class Edge(BaseHTTPRequestHandler):
    """Answers every line of a batch alike."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        told = b'{"type": "message"}'
        self.send_response(200)
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def edge_url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Edge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=[SQLITE, POSTGRES])
def running(request, tmp_path_factory, media_sim, edge_url):
    """One service for all tests of an engine."""
    os.environ["TOLLGATE_TEST_UPSTREAM"] = "upstream-secret"
    folder = tmp_path_factory.mktemp("house")
    url = migrated_url(folder) if request.param == "sqlite" else postgres_url()
    made = BatchHouse(
        folder / "data",
        url,
        media_sim.base_url,
        callback_networks="127.0.0.0/8",
        gone_s=1,
        edge_url=edge_url,
    )
    made.start()
    yield made
    made.close()
    if request.param != "sqlite":
        drop_database(url)


@pytest.fixture
def house(running):
    running.newcomer()
    return running


def submit_task(house, **body):
    return house.call("POST", "/v1/tasks/submit", {"model": "sim-image", **body})


def query_task(house, **named):
    return house.call("POST", "/v1/tasks/query", named)


def code(answer):
    status, body = answer
    return status, body["error"]["code"]


def test_one_row_reads_both_ways_and_says_the_same(house):
    status, made = submit_task(house, params={"prompt": "a fox"}, out_task_id="mine")
    assert (status, made["status"], made["estimated_credits"]) == (200, "pending", 0.01)
    job_id = made["task_id"].replace("task_", "job_")
    job = house.wait_for(job_id)
    status, task = query_task(house, task_id=made["task_id"])
    assert (job["state"], task["status"]) == ("completed", "completed")
    assert job["cost"]["charged_nano"] == 10_000_000
    assert task["credits_used"] == 0.01
    assert "estimated_credits" not in task
    assert [each["type"] for each in task["output"]] == ["image"]
    assert job["output"][0]["mime"] == "image/png"
    assert task["output"][0]["width"] == job["output"][0]["width"]
    assert query_task(house, out_task_id="mine")[1]["task_id"] == made["task_id"]
    house.check()


def test_a_query_names_exactly_one_task_of_its_key(house):
    made = submit_task(house, params={"prompt": "a fox"}, out_task_id="mine")[1]
    assert code(query_task(house)) == (400, "invalid_param")
    both = query_task(house, task_id=made["task_id"], out_task_id="mine")
    assert code(both) == (400, "invalid_param")
    other, _ = house.catalog.create_key(house.account.id, "second")
    named = {"task_id": made["task_id"]}
    foreign = house.call("POST", "/v1/tasks/query", named, key=other)
    assert code(foreign) == (404, "task_not_found")
    job_id = made["task_id"].replace("task_", "job_")
    assert house.call("GET", f"/v1/jobs/{job_id}", key=other)[0] == 200
    stranger = house.catalog.create_account(f"stranger-{house.account.id}")
    theirs, _ = house.catalog.create_key(stranger.id, "third")
    assert code(house.call("GET", f"/v1/jobs/{job_id}", key=theirs)) == (404, "job_not_found")


def test_the_same_name_gives_the_same_task_and_another_request_a_conflict(house):
    first = submit_task(house, params={"prompt": "a fox"}, out_task_id="mine")[1]
    again = submit_task(house, params={"prompt": "a fox", "n": 1}, out_task_id="mine")
    assert again[0] == 200
    assert again[1]["task_id"] == first["task_id"]
    other = submit_task(house, params={"prompt": "a hare"}, out_task_id="mine")
    assert code(other) == (409, "duplicate_out_task_id")
    headers = {"idempotency-key": "k1"}
    body = {"model": "sim-image", "input": {"prompt": "a fox"}}
    one = house.call("POST", "/v1/jobs", body, headers=headers)
    two = house.call("POST", "/v1/jobs", body, headers=headers)
    assert (one[0], two[0]) == (202, 200)
    assert house.headers["idempotent-replayed"] == "true"
    assert one[1]["id"] == two[1]["id"]
    body["input"]["prompt"] = "a hare"
    clash = house.call("POST", "/v1/jobs", body, headers=headers)
    assert code(clash) == (422, "idempotency_mismatch")


def test_many_submissions_under_one_name_at_once_make_one_task(house):
    body = {"model": "sim-image", "params": {"prompt": "a fox"}, "out_task_id": "once"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: house.call("POST", "/v1/tasks/submit", body), range(24)))
    assert {status for status, _ in answers} == {200}
    assert len({made["task_id"] for _, made in answers}) == 1
    assert len(house.jobs()) == 1
    house.wait_for(answers[0][1]["task_id"].replace("task_", "job_"))
    house.check()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "claude-haiku-4-5", "params": {"prompt": "a"}}, (400, "invalid_param")),
        ({"model": "sim-image", "params": {"prompt": "a", "n": 11}}, (400, "invalid_param")),
        ({"model": "sim-image", "params": {}}, (400, "invalid_param")),
        ({"model": "nothing", "params": {"prompt": "a"}}, (404, "model_not_found")),
        ({"params": {"prompt": "a"}}, (400, "invalid_param")),
        (
            {"model": "sim-image", "params": {"prompt": "a"}, "out_task_id": "a\0b"},
            (400, "invalid_param"),
        ),
    ],
)
def test_what_cannot_be_made_is_refused_and_holds_nothing(house, body, expected):
    assert code(house.call("POST", "/v1/tasks/submit", body)) == expected
    assert house.jobs() == []


def test_times_that_no_calendar_has_are_refused_or_bounded(house):
    """A result that could not be written down would be made, paid by us and never delivered."""
    body = {"model": "sim-image", "input": {"prompt": "a"}, "retention_seconds": 10**15}
    assert code(house.call("POST", "/v1/jobs", body)) == (400, "invalid_param")
    body |= {"retention_seconds": 366 * 86_400, "start_within_seconds": 10**15}
    status, made = house.call("POST", "/v1/jobs", body | {"deadline_seconds": 10**15})
    assert (status, house.wait_for(made["id"])["state"]) == (202, "completed")


def test_a_body_over_a_megabyte_is_refused(house):
    answer = submit_task(house, params={"prompt": "x" * (1024 * 1024)})
    assert code(answer) == (413, "request_entity_too_large")


def test_money_that_does_not_suffice_leaves_no_job(house):
    poor = house.catalog.create_account(f"poor-{house.account.id}")
    key, _ = house.catalog.create_key(poor.id, "first")
    body = {"model": "sim-image", "params": {"prompt": "a fox"}}
    answer = house.call("POST", "/v1/tasks/submit", body, key=key)
    assert code(answer) == (402, "insufficient_balance")
    assert house.jobs() == []


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


def test_links_work_without_a_key_until_they_are_over_or_altered(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    path = job["output"][0]["url"].removeprefix("http://gateway.test")
    status, data = house.call("GET", path, raw=True)
    assert (status, len(data)) == (200, job["output"][0]["bytes"])
    assert data.startswith(b"\x89PNG")
    assert house.headers["etag"] == f'"{job["output"][0]["sha256"]}"'
    assert house.call("GET", path[:-2] + "xx")[0] == 403
    assert house.call("GET", path.replace("e=1", "e=2"))[0] == 403
    assert house.call("GET", path.replace("/a/art_0", "/a/art_1"))[0] == 403
    assert house.call("GET", path.replace("k=1", "k=2"))[0] == 403
    assert house.call("GET", path.replace("k=1", "k=9"))[0] == 403
    artifact = SimpleNamespace(id=job["output"][0]["artifact_id"], expires_at=2**60)
    secret, hour_us = settings.load_secret(house.folder), 3600 * 10**6
    config = Artifacts(url_lifetime_s=3600)
    for age_us, expected in ((0, 200), (2 * hour_us, 403)):
        clock = SimpleNamespace(now_us=lambda age_us=age_us: time.time_ns() // 1000 - age_us)
        query, _ = LinkSigner(secret, clock, config).query(artifact)
        assert house.call("GET", f"/a/{artifact.id}?{query}", raw=True)[0] == expected


def test_links_of_the_key_before_work_while_it_is_changed():
    artifact = SimpleNamespace(id="art_1", expires_at=2**60)
    clock = SimpleNamespace(now_us=lambda: 10**15)
    signers = [LinkSigner(b"secret", clock, Artifacts(link_key=number)) for number in range(1, 5)]
    taken = []
    for signing in signers:
        query, _ = signing.query(artifact)
        until, number, signature = (part.partition("=")[2] for part in query.split("&"))
        given = (artifact.id, until, number, signature)
        taken.append([checking.is_good(*given) for checking in signers])
    assert taken == [  # by its key and the one after; by the one before, which may be older
        [True, True, False, False],
        [True, True, True, False],
        [False, True, True, True],
        [False, False, True, True],
    ]


def test_what_was_kept_long_enough_is_gone_and_its_bill_stays(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    artifact = job["output"][0]
    mine = job_tables.artifact.c.id == artifact["artifact_id"]
    over = update(job_tables.artifact).where(mine).values(expires_at=1)
    write(house.engine, lambda c: c.execute(over))
    path = artifact["url"].removeprefix("http://gateway.test")
    for place in (path, f"/v1/artifacts/{artifact['artifact_id']}/content"):
        assert code(house.call("GET", place)) == (410, "artifact_expired")
    assert house.job(job["id"])["cost"] == job["cost"]
    house.check()


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("bytes=99999999-", 416, slice(0, 0)),
    ],
)
def test_ranges(house, asked, status, part):
    artifact = house.wait_for(house.submit("sim-image")["id"])["output"][0]
    path = f"/v1/artifacts/{artifact['artifact_id']}/content"
    whole = house.call("GET", path, raw=True)[1]
    found = house.call("GET", path, headers={"range": asked}, raw=True)
    assert found == (status, whole[part])
    stale = house.call("GET", path, headers={"range": asked, "if-range": '"old"'}, raw=True)
    assert stale == (200, whole)


def test_lists_turn_pages_without_skipping_or_repeating(house):
    made = [house.submit("sim-image")["id"] for _ in range(5)]
    seen, cursor = [], ""
    while True:
        page = house.call("GET", f"/v1/jobs?limit=2{cursor}")[1]
        seen += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
        house.submit("sim-image")  # newer than every page
        altered = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
        for wrong in ("&cursor=bm9uZQ", altered, cursor[:20] + "x" + cursor[21:]):
            answer = house.call("GET", f"/v1/jobs?limit=2{wrong}")
            assert code(answer) == (400, "invalid_param")
    assert seen == made[::-1]


def test_events_are_numbered_and_the_same_for_everybody(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    events = house.call("GET", f"/v1/jobs/{job['id']}/events")[1]
    assert [each["seq"] for each in events["data"]] == list(range(1, job["version"] + 1))
    states = [each["data"]["state"] for each in events["data"] if each["type"] == "state"]
    assert states == ["queued", "running", "completed"]
    rest = house.call("GET", f"/v1/jobs/{job['id']}/events?after=1")[1]
    assert rest["data"] == events["data"][1:]
    tried = house.call("GET", f"/v1/jobs/{job['id']}/attempts")[1]["data"]
    assert [(each["no"], each["state"]) for each in tried] == [(1, "done")]


def test_an_unchanged_job_is_not_sent_again(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    path = f"/v1/jobs/{job['id']}"
    assert house.call("GET", path, headers={"if-none-match": f'"{job["version"]}"'})[0] == 304


def test_a_redrive_is_a_new_job_and_an_estimate_is_none(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    status, again = house.call("POST", f"/v1/jobs/{job['id']}/redrive")
    assert (status, again["retry_of"]) == (202, job["id"])
    assert house.wait_for(again["id"])["state"] == "completed"
    before = len(house.jobs())
    body = {"model": "sim-video", "input": {"prompt": "a", "duration_seconds": 3}}
    offer = house.call("POST", "/v1/jobs/estimate", body)[1]
    assert offer["cost"]["estimated_nano"] == 31_000_000
    assert offer["units"] == {"calls": 1, "seconds": 3}
    assert len(house.jobs()) == before


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


class Receiver(BaseHTTPRequestHandler):
    """Answers what the test says, or the path (`/429`; `/0` is no answer), then 200."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((headers, body))
        named = self.path[1:]
        status = self.server.answers.pop(0) if self.server.answers else 200
        status = int(named) if named.isdecimal() else status
        if status:
            self.send_response(status)
            self.send_header("location", "http://169.254.169.254/")
            if named.isdecimal():
                self.send_header("retry-after", "120")
            self.end_headers()
            self.wfile.write(b"as it \0 was")

    def log_message(self, *args):
        pass


@pytest.fixture
def receiver():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_callback_is_signed_and_sent_again_until_it_is_taken(house, receiver):
    server, url = receiver, receiver.url
    server.answers = [500]
    made = submit_task(house, params={"prompt": "a fox"}, callback_url=url)[1]
    job_id = made["task_id"].replace("task_", "job_")
    secret = house.call("GET", "/v1/webhooks/secret")[1]["secret"]
    house.until(lambda: len(server.got) == 2, "the second try")
    (first, body), (second, same) = server.got
    assert body == same
    assert first["webhook-id"] == second["webhook-id"]
    assert webhooks.verify(secret, second, body, int(time.time()))
    assert second["x-tollgate-signature"] == webhooks.body_signature(secret, body)
    assert json.loads(body)["status"] == "completed"
    house.until(
        lambda: house.call("GET", f"/v1/jobs/{job_id}/deliveries")[1]["data"][0]["delivered_at"],
        "the log",
    )
    sent = house.call("GET", f"/v1/jobs/{job_id}/deliveries")[1]["data"]
    assert [(each["attempts"], each["response_status"]) for each in sent] == [(2, 200)]


def test_a_receiver_that_cannot_be_reached_tells_nothing_of_where_it_is(house):
    """Who names a receiver learns neither what our name server knows nor how we connect."""
    port = free_port()
    for url in (f"http://127.0.0.1:{port}/", "http://2852039166/", f"http://localhost:{port}/"):
        hook = house.call("POST", HOOKS, {"url": url})[1]
        told = house.call("POST", f"{HOOKS}/{hook['id']}/test")[1]
        assert (told["delivered"], told["response_status"]) == (False, 0)
        for word in ("169.254", "127.0", "::1", "Error", "Pool", "Errno", "object at"):
            assert word not in told["message"], told


def test_a_callback_into_a_closed_network_is_never_sent(house):
    url = "http://169.254.169.254/latest/meta-data"
    made = submit_task(house, params={"prompt": "a fox"}, callback_url=url)[1]
    job_id = made["task_id"].replace("task_", "job_")
    path = f"/v1/jobs/{job_id}/deliveries"
    house.until(lambda: [d for d in house.call("GET", path)[1]["data"] if d["attempts"]], "a try")
    sent = house.call("GET", path)[1]["data"][0]
    assert (sent["response_status"], sent["next_attempt_at"]) == (0, None)


@pytest.mark.parametrize(
    ("answer", "least_s", "most_s"),
    [(500, 120, 121), (302, 120, 121), (429, 120, 121), (0, 5, 5.5), (410, None, None)],
)
def test_each_answer_of_a_receiver_follows_the_schedule(house, receiver, answer, least_s, most_s):
    """The receiver's wish is honoured; one that says nothing is called by the schedule."""
    url = receiver.url.replace("/hook", f"/{answer}")
    made = submit_task(house, params={"prompt": "a fox"}, callback_url=url)[1]
    path = f"/v1/jobs/{made['task_id'].replace('task_', 'job_')}/deliveries"
    row, seen = job_tables.delivery, []

    def tried():
        mine = select(row.c.tries, row.c.next_at, row.c.status, now_us()).where(row.c.url == url)
        seen[:] = read(house.engine, lambda c: c.execute(mine).all())
        return seen and seen[0].tries

    house.until(tried, "the first try")
    _, next_at, status, now = seen[0]
    assert status == answer
    assert house.call("GET", path)[1]["data"][0]["response_status"] == answer
    if least_s is None:
        assert next_at is None
    else:
        assert (next_at - now) / 1e6 <= most_s
        assert (next_at - now) / 1e6 > least_s - 5
    assert len(receiver.got) == 1


HOOKS = "/v1/webhooks/endpoints"


def told_to(receiver, kind):
    found = [json.loads(body) for _, body in receiver.got]
    return [each for each in found if each.get("type") == kind]


def test_an_endpoint_may_ask_for_more_than_ends(house, receiver):
    plain = house.call("POST", HOOKS, {"url": receiver.url + "?ends"})[1]
    assert set(plain["events"]) == {
        f"job.{s}" for s in ("completed", "failed", "cancelled", "expired")
    }
    wanted = ["job.queued", "job.running", "job.progress", "job.completed"]
    hook = house.call("POST", HOOKS, {"url": receiver.url, "events": wanted})[1]
    asked = {"prompt": "a fox sim:run-ms 1500", "duration_seconds": 1}
    body = {"model": "sim-video", "params": asked, "callback_url": receiver.url}
    task = house.call("POST", "/v1/tasks/submit", body)[1]["task_id"]
    job_id = task.replace("task_", "job_")
    done = house.wait_for(job_id)
    path = f"{HOOKS}/{hook['id']}/deliveries"

    def delivered():
        found = house.call("GET", path)[1]["data"]
        return [each["type"] for each in found if each["delivered_at"]]

    house.until(lambda: "job.completed" in delivered(), "the end to be told")
    house.until(lambda: {"job.queued", "job.running"} <= set(delivered()), "all to be told")
    assert delivered().count("job.progress") <= 1, "one in five seconds"
    for kind in ("job.queued", "job.running"):
        (told,) = told_to(receiver, kind)
        assert (told["data"]["id"], told["data"]["object"]) == (job_id, "job")
        assert 1 <= told["data"]["version"] <= done["version"]
    sent = house.call("GET", f"/v1/jobs/{job_id}/deliveries")[1]["data"]
    others = [each["type"] for each in sent if each["endpoint_id"] != hook["id"]]
    assert sorted(others) == ["job.completed"] * 2, "the callback and the other endpoint: ends only"
    for each in (plain, hook):
        house.call("DELETE", f"{HOOKS}/{each['id']}")


def test_an_endpoint_is_tried_out(house, receiver):
    hook = house.call("POST", HOOKS, {"url": receiver.url})[1]
    path = f"{HOOKS}/{hook['id']}"
    receiver.answers = [204, 500]
    status, told = house.call("POST", path + "/test")
    assert (status, told["delivered"], told["response_status"]) == (200, True, 204)
    headers, body = receiver.got[0]
    assert headers["webhook-id"] == told["id"]
    assert webhooks.verify(hook["secret"], headers, body, int(time.time()))
    assert json.loads(body)["type"] == "webhook.test"
    told = house.call("POST", path + "/test")[1]
    assert (told["delivered"], told["response_status"]) == (False, 500)
    assert house.call("GET", path)[1]["failing_since"] is None
    assert house.call("GET", path + "/deliveries")[1]["data"] == []
    stranger = house.catalog.create_account(f"stranger-{house.account.id}")
    theirs, _ = house.catalog.create_key(stranger.id, "other")
    assert code(house.call("POST", path + "/test", key=theirs)) == (404, "not_found")
    closed = house.call("POST", HOOKS, {"url": "http://169.254.169.254/"})[1]
    told = house.call("POST", f"{HOOKS}/{closed['id']}/test")[1]
    assert (told["delivered"], told["response_status"]) == (False, 0)


def test_an_endpoint_is_told_of_artifacts_that_are_soon_over(house, receiver):
    hook = house.call("POST", HOOKS, {"url": receiver.url, "events": ["artifact.expiring"]})[1]
    ended = [house.wait_for(house.submit("sim-image")["id"]) for _ in range(2)]
    housekeeping, day_us = Housekeeping(house.engine), 86_400 * 10**6
    assert housekeeping.announce(10) == 0, "they are kept for a week"
    artifact = job_tables.artifact
    mine = artifact.c.id == ended[0]["output"][0]["artifact_id"]
    soon = {"created_at": now_us() - 2 * day_us, "expires_at": now_us() + day_us // 2}
    write(house.engine, lambda c: c.execute(update(artifact).where(mine).values(soon)))
    assert [housekeeping.announce(10) for _ in range(2)] == [1, 0]
    house.until(lambda: receiver.got, "the warning")
    (told,) = told_to(receiver, "artifact.expiring")
    assert told["data"]["id"] == ended[0]["id"]
    assert told["data"]["output"][0]["expires_at"] < ended[0]["output"][0]["expires_at"]
    house.call("DELETE", f"{HOOKS}/{hook['id']}")


def test_an_endpoint_is_told_of_batches(house, receiver):
    hook = house.call("POST", HOOKS, {"url": receiver.url, "events": ["batch.completed"]})[1]
    line = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": []}
    body = {"requests": [{"custom_id": "one", "params": line}]}
    made = house.call("POST", "/v1/messages/batches", body)[1]
    house.until(lambda: receiver.got, "the end of the batch")
    (told,) = told_to(receiver, "batch.completed")
    data = told["data"]
    assert (data["id"], data["status"]) == (made["id"], "completed")
    assert data["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    path = f"{HOOKS}/{hook['id']}/deliveries"
    house.until(lambda: house.call("GET", path)[1]["data"][0]["delivered_at"], "the log")
    (row,) = house.call("GET", path)[1]["data"]
    assert (row["job_id"], row["type"]) == (None, "batch.completed")
    redeliver(house, f"{HOOKS}/{hook['id']}")
    house.until(lambda: len(receiver.got) == 2, "what was asked for by hand")
    house.call("DELETE", f"{HOOKS}/{hook['id']}")


def test_an_endpoint_is_told_of_the_jobs_of_its_account(house, receiver):
    made = house.call("POST", HOOKS, {"url": receiver.url, "events": ["job.completed"]})
    assert made[0] == 201
    hook = made[1]
    path, first = f"{HOOKS}/{hook['id']}", hook.pop("secret")
    assert (hook["status"], hook["events"]) == ("active", ["job.completed"])
    assert house.call("GET", path) == (200, hook)
    assert house.call("GET", HOOKS)[1]["data"] == [hook]
    assert code(house.call("POST", HOOKS, {"url": receiver.url})) == (409, "conflict")
    for wrong in ({"url": "ftp://a.test"}, {"url": "http://a.test", "events": ["job.lost"]}, {}):
        assert code(house.call("POST", HOOKS, wrong)) == (400, "invalid_param")
    stranger = house.catalog.create_account(f"stranger-{house.account.id}")
    theirs, _ = house.catalog.create_key(stranger.id, "other")
    for method in ("GET", "PATCH", "DELETE"):
        assert code(house.call(method, path, {}, key=theirs)) == (404, "not_found")

    done = submit_task(house, params={"prompt": "a fox"})[1]["task_id"].replace("task_", "job_")
    house.until(lambda: receiver.got, "the first delivery")
    headers, body = receiver.got[0]
    assert webhooks.verify(first, headers, body, int(time.time()))
    told = json.loads(body)
    assert (told["type"], told["data"]["id"]) == ("job.completed", done)
    assert told["data"]["state"] == "completed"

    second = house.call("POST", path + "/rotate")[1]["secret"]
    assert second != first
    house.wait_for(house.submit("sim-image", prompt="a fox sim:fault create-moderated")["id"])
    house.call("PATCH", path, {"events": ["job.failed"], "description": "errors"})
    failed = house.submit("sim-image", prompt="a fox sim:fault create-moderated")["id"]
    house.until(lambda: len(receiver.got) == 2, "the second delivery")
    headers, body = receiver.got[1]
    assert json.loads(body)["data"]["id"] == failed  # what it did not want was never planned
    for secret in (first, second):
        assert webhooks.verify(secret, headers, body, int(time.time()))
    assert headers["x-tollgate-signature"] == webhooks.body_signature(second, body)

    log = house.call("GET", path + "/deliveries?limit=1")[1]
    assert (log["data"][0]["job_id"], log["has_more"]) == (failed, True)
    older = house.call("GET", f"{path}/deliveries?cursor={log['next_cursor']}")[1]
    assert [each["job_id"] for each in older["data"]] == [done]
    assert house.call("DELETE", path)[1]["deleted"]
    again = f"/v1/webhooks/deliveries/{log['data'][0]['id']}/redeliver"
    assert code(house.call("POST", again)) == (404, "not_found")
    assert len(receiver.got) == 2


def redeliver(house, path):
    """What was planned last, by hand."""
    last = house.call("GET", path + "/deliveries")[1]["data"][0]["id"]
    assert house.call("POST", f"/v1/webhooks/deliveries/{last}/redeliver")[0] == 202


def test_an_endpoint_that_is_gone_or_takes_nothing_is_disabled(house, receiver):
    hook = house.call("POST", HOOKS, {"url": receiver.url})[1]
    path = f"{HOOKS}/{hook['id']}"

    def state():
        found = house.call("GET", path)[1]
        return found["status"], found["disabled_reason"]

    receiver.answers = [410]
    house.submit("sim-image")
    house.until(lambda: state() == ("disabled", "it answered 410"), "the end of it")
    assert house.call("GET", path + "/deliveries")[1]["data"][0]["next_attempt_at"] is None
    house.wait_for(house.submit("sim-image")["id"])
    assert len(house.call("GET", path + "/deliveries")[1]["data"]) == 1
    assert house.call("PATCH", path, {"status": "active"})[1]["disabled_reason"] is None
    receiver.answers = [500]
    house.submit("sim-image")
    house.until(lambda: house.call("GET", path)[1]["failing_since"], "a failure")
    redeliver(house, path)
    house.until(lambda: not house.call("GET", path)[1]["failing_since"], "the next try")
    receiver.answers = [500]
    long_ago = {"failing_at": 1}
    endpoint = job_tables.endpoint
    mine = endpoint.c.id == hook["id"]
    write(house.engine, lambda c: c.execute(update(endpoint).where(mine).values(long_ago)))
    house.submit("sim-image")
    house.until(lambda: state() == ("disabled", "it took nothing for 5 days"), "the end of it")
    assert len(receiver.got) == 4
    redeliver(house, path)
    house.until(lambda: len(receiver.got) == 5, "what was asked for by hand")
    assert state()[0] == "disabled"


FREE_ENDS = [
    ("sim-video", "create-400"),
    ("sim-video", "create-401"),
    ("sim-video", "create-500-done"),
    ("sim-video", "create-cut"),
    ("sim-image", "create-garbage"),
    ("veo-3.1", "job-fail"),
    ("veo-3.1", "artifact-404"),
    ("veo-3.1", "artifact-private"),
    ("veo-3.1", "artifact-wrong-type"),
]


def test_the_error_of_a_job_tells_nothing_of_where_and_how_it_was_made(house, media_sim):
    made = {}
    # Last what lets the channel rest: the others would wait for it.
    for model, fault in sorted(FREE_ENDS, key=lambda each: each[1] == "create-401"):
        given = {} if model == "sim-image" else {"duration_seconds": 1}
        if fault == "create-401":
            for each in made.values():
                house.wait_for(each["id"])
        made[fault] = house.submit(model, prompt=f"a fox sim:fault {fault}", **given)
    hidden = ["127.0.0.1", str(media_sim.port), "169.254", "http:", "Connection", "Error(", "Pool"]
    hidden += [str(house.folder), *(each.name for each in house.channels)]
    for fault, job in made.items():
        told = house.wait_for(job["id"])
        assert told["state"] == "failed", (fault, told)
        tries = house.call("GET", f"/v1/jobs/{job['id']}/attempts")[1]["data"]
        words = [told["error"]["message"], *(each["message"] or "" for each in tries)]
        task = query_task(house, task_id=job["id"].replace("job_", "task_"))[1]
        words.append(task["error_message"])
        shown = " | ".join(words)
        assert told["error"]["message"]
        assert not [each for each in hidden if each in shown], (fault, shown)
    for event in house.events():
        assert not [each for each in hidden[:7] if each in getattr(event, "message", "")], event
