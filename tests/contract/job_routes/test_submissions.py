"""What is taken, under which names, in both views; what is refused."""

import base64
import os
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from services.backends.sql import job_tables
from services.backends.sql.engine import read
from services.backends.sql.uploads import JSONL, Uploads
from tests.parts.job_routes import code, query_task, submit_task
from tests.parts.stack import ROOT


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


def test_a_name_is_known_to_its_own_account_on_every_route(house):
    """Who uses the same key by chance gets neither another's film nor a conflict with it."""
    film = {"model": "sim-video", "prompt": "a fox", "seconds": "1"}
    task = {"model": "sim-image", "params": {"prompt": "a fox"}}
    headers = {"idempotency-key": "1"}
    seen = []
    for _ in range(2):
        for path, body in (("/v1/videos", film), ("/v1/tasks/submit", task)):
            first = house.call("POST", path, body, headers=headers)[1]
            again = house.call("POST", path, body, headers=headers)[1]
            name = "id" if "id" in first else "task_id"
            assert again[name] == first[name]
            seen.append(first[name])
        house.newcomer()
    assert len(set(seen)) == 4
    other = house.call("POST", "/v1/videos", film | {"prompt": "a hare"}, headers=headers)
    assert other[0] == 200
    clash = house.call("POST", "/v1/videos", film, headers=headers)
    assert code(clash) == (422, "idempotency_mismatch")
    long = {"idempotency-key": "k" * 257}
    for path, body in (("/v1/videos", film), ("/v1/tasks/submit", task)):
        assert code(house.call("POST", path, body, headers=long)) == (400, "invalid_param")


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
        (
            {"model": "sim-image", "params": {"prompt": "a"}, "callback_url": "my receiver"},
            (400, "invalid_param"),
        ),
        ({"model": "claude-haiku-4-5", "params": {"prompt": "a"}}, (400, "invalid_param")),
        ({"model": "sim-image", "params": {"prompt": "a", "n": 11}}, (400, "invalid_param")),
        ({"model": "sim-image", "params": {}}, (400, "invalid_param")),
        ({"model": "nothing", "params": {"prompt": "a"}}, (404, "model_not_found")),
        ({"params": {"prompt": "a"}}, (400, "invalid_param")),
        (
            {"model": "sim-image", "params": {"prompt": "a", "image": ["https://a.test"] * 2}},
            (400, "invalid_param"),
        ),
        (
            {"model": "sim-image", "params": {"prompt": "a"}, "out_task_id": "a\0b"},
            (400, "invalid_param"),
        ),
    ],
)
def test_what_cannot_be_made_is_refused_and_holds_nothing(house, body, expected):
    assert code(house.call("POST", "/v1/tasks/submit", body)) == expected
    assert house.jobs() == []


def test_an_input_may_come_inside_its_submission(house):
    """As large as the body may be; it is kept beside the job, and erased with it."""
    rows = b"".join(b"\0" + os.urandom(300) for _ in range(100))
    frame = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        sum32 = struct.pack(">I", zlib.crc32(kind + data))
        frame += struct.pack(">I", len(data)) + kind + data + sum32
    sound = (ROOT / "tests/golden/media/sound.wav").read_bytes()

    def asked(data):
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        given = {"prompt": "a fox", "duration_seconds": 1, "image_init": url}
        body = {"model": "sim-video", "input": given, "external_id": "mine"}
        return house.call("POST", "/v1/jobs", body)

    for wrong in (sound, frame[:-20], b"<html>"):
        status, told = asked(wrong)
        assert (status, told["error"]["param"]) == (400, "input.image_init")
    status, made = asked(frame)
    assert status == 202
    assert (asked(frame)[0], asked(frame)[1]["id"]) == (200, made["id"])
    other = house.call("POST", f"/v1/jobs/{house.wait_for(made['id'])['id']}/redrive")[1]
    assert house.wait_for(other["id"])["state"] == "completed"
    assert max(len(each.params) for each in house.jobs()) < 200
    files = select(job_tables.upload).where(job_tables.upload.c.account_id == house.account.id)
    rows = read(house.engine, lambda c: c.execute(files.order_by(job_tables.upload.c.id)).all())
    assert {each.bytes for each in rows} == {len(frame)}
    now = time.time_ns() // 1000
    assert [each.expires_at > now for each in rows] == [True, False, False], "repeats need none"
    assert house.call("GET", "/v1/files")[1]["data"] == []
    house.check()


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


def test_an_account_keeps_so_many_bytes_of_files_and_no_more(house):
    most = house.config.artifacts.account_files_bytes
    where = (house.account.id, "big", "batch", JSONL, most, "0" * 64, None, 3600)
    big = Uploads(house.engine).add(*where)
    form = b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    form += b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n--x--\r\n'

    def sent():
        who = {"account_id": house.account.id, "key_id": house.key.id}
        headers = {"content-type": "multipart/form-data; boundary=x"}
        return house.client.call("POST", "/v1/files", **who, headers=headers, body=form).status

    assert sent() == 413
    assert house.call("DELETE", f"/v1/files/{big.id}")[0] == 200
    assert sent() == 200
    Uploads(house.engine).add(*where)
    house.newcomer()
    assert sent() == 200, "another account's files are its own"
