"""Callbacks of one job."""

import json
import time

import pytest
from sqlalchemy import select

from services.backends.sql import job_tables
from services.backends.sql.engine import now_us, read
from services.core import webhooks
from tests.parts.job_routes import HOOKS, submit_task
from tests.parts.ports import free_port


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
        assert (next_at - now) / 1e6 > least_s - (60 if least_s > 60 else 5)  # when we looked
    assert len(receiver.got) == 1
