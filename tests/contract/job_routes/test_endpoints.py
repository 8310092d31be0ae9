"""Webhook endpoints of an account."""

import json
import time

from sqlalchemy import update

from services.backends.sql import job_tables
from services.backends.sql.engine import now_us, write
from services.backends.sql.housekeeping import Housekeeping
from services.core import webhooks
from tests.parts.job_routes import HOOKS, code, submit_task


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
