"""Media through the public door of a whole installation: SDK, streams, waiting, the bill."""

import base64
import contextlib
import json
import re
import socket
import struct
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import psutil
import pytest
from sqlalchemy import insert

from services.backends.settings import load_secret
from services.backends.sql.engine import open_engine, write
from services.backends.sql.job_tables import job_event
from services.edge.jobs import stream_token
from tests.parts.feature import processes, wait_until, within
from tests.parts.media import media_stack
from tests.parts.wire import request

EVENTS = 12_000  # of a kilobyte each


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    yield from media_stack(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def sdk(media):
    return openai.OpenAI(base_url=media.base_url + "/v1", api_key=media.key(), max_retries=0)


def send(stack, method, path, body=None, **headers):
    """Status, headers and body."""
    asked = urllib.request.Request(
        stack.base_url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"x-api-key": stack.key(), **headers},
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return reply.status, dict(reply.headers.items()), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers.items()), error.read()


def frames(stack, path, **headers):
    """(id, event, data) of a stream up to its end."""
    told = send(stack, "GET", path, accept="text/event-stream", **headers)[2].decode()
    found = []
    for frame in told.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.splitlines() if line[:1] != ":")
        if "event" in fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def test_the_public_price_list_tells_what_generations_cost(media):
    told = {row["model"]: row for row in json.loads(send(media, "GET", "/api/pricing")[2])}
    image, video, text = told["sim-image"], told["sim-video"], told["claude-haiku-4-5"]
    assert (image["category"], video["category"]) == ("image", "video")
    assert set(image["rates"]) == {"images_per_1m", "currency"}
    assert {"seconds_per_1m", "calls_per_1m"} <= set(video["rates"])
    assert image["rates"]["images_per_1m"] > 0
    assert (text["category"], text["rates"]["input_per_1m"]) == ("text", 1.0)


@pytest.mark.part("openai-sdk")
def test_the_sdk_makes_images_and_speech_and_vectors(media, sdk):
    made = sdk.images.generate(model="sim-image", prompt="a fox", n=2)
    assert len(made.data) == 2
    with urllib.request.urlopen(made.data[0].url, timeout=20) as reply:
        assert reply.read(8) == b"\x89PNG\r\n\x1a\n"
        assert reply.headers["content-type"] == "image/png"
    inline = sdk.images.generate(model="sim-image", prompt="a hare", response_format="b64_json")
    assert inline.data[0].b64_json.startswith("iVBOR")
    speech = sdk.audio.speech.create(
        model="sim-speech", input="hello", voice="alloy", response_format="wav"
    )
    assert speech.content[:4] == b"RIFF"
    vectors = sdk.embeddings.create(model="sim-embed", input=["one", "two"])
    assert len(vectors.data) == 2
    packed = sdk.embeddings.create(
        model="sim-embed", input=["one", "two"], encoding_format="base64"
    )
    for plain, text in zip(vectors.data, packed.data, strict=True):
        numbers = struct.unpack(f"<{len(plain.embedding)}f", base64.b64decode(text.embedding))
        assert list(numbers) == pytest.approx(plain.embedding, rel=1e-6)
    tokens = sdk.embeddings.create(model="sim-embed", input=[1, 2, 3])
    assert (len(tokens.data), tokens.usage.prompt_tokens) == (1, 3)
    assert len(sdk.embeddings.create(model="sim-embed", input=[[1, 2], [3]]).data) == 2
    for wrong in (
        lambda: sdk.images.generate(model="sim-image", prompt="a fox", stream=True),
        lambda: sdk.audio.speech.create(
            model="sim-speech", input="hello", voice="alloy", stream_format="sse"
        ),
    ):
        with pytest.raises(openai.BadRequestError, match="at once"):
            wrong()
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(model="sim-image", prompt="a fox", n=99)
    assert refused.value.param == "n"
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.images.generate(model="sim-image", prompt="a fox sim:fault create-moderated")
    assert caught.value.status_code == 451


@pytest.mark.part("openai-sdk")
def test_an_upload_is_the_input_of_a_transcription(media, sdk):
    speech = sdk.audio.speech.create(
        model="sim-speech", input="the fox says hello", voice="alloy", response_format="wav"
    )
    uploaded = sdk.files.create(file=("fox.wav", speech.content), purpose="user_data")
    assert sdk.files.retrieve(uploaded.id).bytes == len(speech.content)
    assert [each.id for each in sdk.files.list()] == [uploaded.id]
    body = {"model": "sim-transcribe", "input": {"file": uploaded.id}}
    job = json.loads(send(media, "POST", "/v1/jobs", body, prefer="wait=50")[2])
    assert job["state"] == "completed", job["error"]
    text = send(media, "GET", f"/v1/artifacts/{job['output'][0]['artifact_id']}/content")[2]
    assert "the fox says hello" in text.decode()
    assert job["cost"]["charged_nano"] > 0
    assert sdk.files.delete(uploaded.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(uploaded.id)
    with pytest.raises(openai.BadRequestError):
        sdk.files.create(file=("fox.wav", b"<html>"), purpose="user_data")


def test_documents_are_ranked_and_the_bill_has_it(media):
    body = {"model": "sim-rerank", "query": "fox", "documents": ["a fox", "a hare", "a fox cub"]}
    status, _, told = send(media, "POST", "/v1/rerank", body)
    assert status == 200
    assert {each["index"] for each in json.loads(told)["results"]} == {0, 1, 2}
    wait_until(
        lambda: (
            [
                row["cost_nano"]
                for row in media.usage_rows(media.key())
                if row["model"] == "sim-rerank"
            ]
            == [2_000_000]
        )
    )


def test_one_call_waits_for_the_result_and_the_bill_has_it(media):
    body = {"model": "sim-video", "input": {"prompt": "a fox", "duration_seconds": 1}}
    status, _, told = send(media, "POST", "/v1/jobs", body, prefer="wait=50")
    job = json.loads(told)
    assert (status, job["state"]) == (202, "completed")
    row = media.wait_for_row(job["request_id"], media.key())
    assert row["cost_nano"] == job["cost"]["charged_nano"] == 11_000_000
    assert row["units"] == {"seconds": 1, "calls": 1}
    told = {"id": job["id"], "kind": "video", "state": "completed", "error": None}
    assert row["job"] == told
    (row,) = media.sql(
        "SELECT kind, state, units['seconds'] AS seconds, cost_nano FROM jobs "
        f"WHERE job_id = '{job['id']}'"
    )
    assert row == {"kind": "video", "state": "completed", "seconds": 1, "cost_nano": 11_000_000}


def test_a_task_is_streamed_to_its_end(media):
    body = {"model": "sim-video", "params": {"prompt": "a fox", "duration_seconds": 1}}
    status, headers, told = send(media, "POST", "/v1/tasks/submit", body)
    task = json.loads(told)
    assert (status, task["status"]) == (200, "pending")
    assert headers["x-quota-remaining-credits"]
    found = frames(media, f"/v1/tasks/stream/{task['task_id']}")
    assert [event for _, event, _ in found][-1] == "completed"
    assert found[-1][2]["credits_used"] == 0.011


def test_a_stream_is_taken_up_where_it_was_cut(media):
    body = {"model": "sim-image", "input": {"prompt": "a fox"}}
    job = json.loads(send(media, "POST", "/v1/jobs", body, prefer="wait=50")[2])
    path = f"/v1/jobs/{job['id']}/events"
    whole = frames(media, path)
    numbered = [int(number) for number, _, _ in whole if number]
    assert numbered == list(range(1, job["version"] + 1))
    assert whole[0][1] == "snapshot"
    assert whole[-1][1] == "done"
    rest = frames(media, path, **{"last-event-id": "2"})
    assert [int(number) for number, _, _ in rest if number] == numbered[2:]


def test_a_stream_token_opens_the_streams_of_one_job_for_a_while(media):
    catalog, account = media._open_books().catalog, media.new_account()
    made, key = catalog.create_key(account, "of a page")
    body = json.dumps({"model": "sim-video", "params": {"prompt": "a fox", "duration_seconds": 1}})
    job, other = (
        request(media.port, "POST", "/v1/tasks/submit", key=key, body=body.encode())
        .json()["task_id"]
        .replace("task_", "job_")
        for _ in range(2)
    )
    path = f"/v1/jobs/{job}/stream_token"
    assert request(media.port, "POST", path, key=media.new_key()).status == 404
    assert request(media.port, "POST", path).status == 401
    told = request(media.port, "POST", path, key=key).json()
    token, events = told["token"], told["url"].removeprefix(media.base_url)
    assert events == f"/v1/jobs/{job}/events?stream_token={token}"

    def opened(path):
        reply = request(media.port, "GET", path)
        assert ("access-control-allow-origin", "*") in reply.headers
        return reply.status, reply.body()

    status, stream = opened(events)
    assert (status, b"event: done" in stream) == (200, True)
    bare = job.removeprefix("job_")
    status, stream = opened(f"/v1/tasks/stream/task_{bare}?stream_token={token}")
    assert (status, b"event: completed" in stream) == (200, True)

    clock = SimpleNamespace(now_us=lambda: time.time_ns() // 1000 - stream_token.LIFETIME_US)
    before = stream_token.StreamTokens(load_secret(media.data_dir), None, clock)
    over, _ = before.make(bare, made)
    for refused, why in (
        (events.replace(job, other), "it is for another job"),
        (events.replace(token, over), "it has expired"),
        (events.replace(token, token[:-1] + "x"), "the signature is wrong"),
        (events.replace(token, ""), "it is missing or malformed"),
    ):
        status, told = opened(refused)
        assert (status, why in json.loads(told)["error"]["message"]) == (401, True), told
    for path in (f"/v1/jobs/{job}", "/v1/usage"):  # it opens nothing else
        assert request(media.port, "GET", f"{path}?stream_token={token}").status == 401
    catalog.revoke_key(made.id)
    wait_until(lambda: opened(events)[0] == 401)


def test_a_slow_reader_is_cut_and_goes_on_where_it_was(media):
    """More events than all buffers on the way can hold, and a client that takes none of them."""
    body = {"model": "sim-image", "input": {"prompt": "a fox"}}
    job = json.loads(send(media, "POST", "/v1/jobs", body, prefer="wait=50")[2])
    last = job["version"] + EVENTS
    rows = [
        {
            "job_id": job["id"].removeprefix("job_"),
            "seq": number,
            "type": "progress",
            "data": json.dumps({"progress": 1, "padding": "x" * 1000}),
            "created_at": 0,
        }
        for number in range(job["version"] + 1, last + 1)
    ]
    engine = open_engine("sqlite:///tollgate.db", media.data_dir)
    write(engine, lambda connection: connection.execute(insert(job_event), rows))
    engine.dispose()
    path = f"/v1/jobs/{job['id']}/events"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", media.port))
        head = f"GET {path} HTTP/1.1\r\nhost: a\r\nx-api-key: {media.key()}\r\n\r\n"
        client.sendall(head.encode())
        ours = client.getsockname()

        def served():
            ends = psutil.net_connections("tcp4")
            return [each for each in ends if tuple(each.raddr) == ours and each.pid]

        wait_until(lambda: client.recv(1, socket.MSG_PEEK))
        assert served()
        wait_until(lambda: not served(), 60)
        taken = b""
        client.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                taken += piece
    whole = taken[: taken.rindex(b"\n\n")]
    got = [int(number) for number in re.findall(rb"^id: (\d+)$", whole, re.M)]
    assert got == list(range(1, len(got) + 1))
    assert 0 < len(got) < last
    rest = frames(media, path, **{"last-event-id": str(got[-1])})
    assert [int(number) for number, _, _ in rest if number] == list(range(got[-1] + 1, last + 1))
    assert rest[-1][1] == "done"


def test_a_wait_whose_client_hung_up_ends(media):
    """Its place among the key's requests is free at once, and its job lives on."""
    catalog, account = media._open_books().catalog, media.new_account()
    _, key = catalog.create_key(account, "one at a time", concurrency=1)
    film = {"model": "sim-video", "input": {"prompt": "sim:run-ms 9000", "duration_seconds": 1}}
    asked = json.dumps(film).encode()
    with socket.create_connection(("127.0.0.1", media.port)) as client:
        head = f"POST /v1/jobs?wait=60 HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\n"
        client.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(asked) + asked)
        wait_until(lambda: media.get("/v1/jobs", key)["data"])
        assert request(media.port, "POST", "/v1/jobs", key=key, body=asked).status == 429
    wait_until(lambda: request(media.port, "POST", "/v1/jobs", key=key, body=asked).status == 202)
    jobs = media.get("/v1/jobs", key)["data"]
    assert [each["cancel"]["requested_at"] for each in jobs] == [None, None]
    for each in jobs:
        path = f"/v1/jobs/{each['id']}/cancel"
        assert request(media.port, "POST", path, key=key).status in (200, 202)


def test_a_path_that_no_request_line_can_carry_is_no_job(media):
    for path in ("/v1/jobs/x%0d%0ax-evil:%201", "/v1/jobs/%20", "/v1/jobs/%C3%BC/events"):
        began_s = time.monotonic()
        assert send(media, "GET", path)[0] == 404
        assert time.monotonic() - began_s < 20


def test_a_poll_waits_for_what_its_client_does_not_know(media):
    """Long polls by tag: each is answered by a change, none is missed, none comes too early."""
    asked = {"prompt": "a fox sim:run-ms 1500", "duration_seconds": 1}
    made = send(media, "POST", "/v1/jobs", {"model": "sim-video", "input": asked})
    path, tag = f"/v1/jobs/{json.loads(made[2])['id']}", made[1]["etag"]
    versions = [json.loads(made[2])["version"]]
    while True:
        status, headers, told = send(media, "GET", path + "?wait=30", **{"if-none-match": tag})
        assert status == 200
        job, tag = json.loads(told), headers["etag"]
        versions.append(job["version"])
        assert tag == f'"{versions[-1]}"'
        if job["completed_at"]:
            break
    assert versions == sorted(set(versions))
    for query in ("?wait=30", ""):
        status, headers, told = send(media, "GET", path + query, **{"if-none-match": tag})
        assert (status, headers["etag"], told) == (304, tag, b"")
    status, _, told = send(media, "GET", "/v1/jobs?limit=1", prefer="wait=5")
    assert (status, len(json.loads(told)["data"])) == (200, 1)
    slow = {"prompt": "a fox sim:run-ms 9000", "duration_seconds": 1}
    job = json.loads(send(media, "POST", "/v1/jobs", {"model": "sim-video", "input": slow})[2])
    path = f"/v1/jobs/{job['id']}"
    job = wait_until(lambda: (now := media.get(path, media.key()))["state"] == "running" and now)
    status, tag = 200, f'"{job["version"]}"'
    while status == 200:  # its progress is a change, told every two seconds or so
        began_s = time.monotonic()
        status, headers, _ = send(media, "GET", path + "?wait=1", **{"if-none-match": tag})
        tag = headers["etag"]
    assert status == 304
    assert time.monotonic() - began_s > 0.9
    assert send(media, "POST", path + "/cancel")[0] in (200, 202)


def test_a_wait_ends_with_its_time(media):
    body = {"model": "sim-video", "input": {"prompt": "a sim:run-ms 9000", "duration_seconds": 1}}
    began_s = time.monotonic()
    status, _, told = send(media, "POST", "/v1/jobs?wait=1", body)
    job = json.loads(told)
    assert (status, job["completed_at"]) == (202, None)
    assert 0.9 < time.monotonic() - began_s < 20
    assert send(media, "POST", f"/v1/jobs/{job['id']}/cancel")[0] in (200, 202)


def test_revocation_of_the_parent_ends_streams_and_waits_of_a_key(media):
    within(1.5, lambda: revoked_under_watchers_s(media))


def revoked_under_watchers_s(media) -> float:
    catalog, account = media._open_books().catalog, media.new_account()
    parent, _ = catalog.create_key(account, "parent")
    _, key = catalog.create_key(account, "child", parent_id=parent.id)
    params = {"prompt": "sim:run-ms 20000", "duration_seconds": 1}
    film = json.dumps({"model": "sim-video", "input": params}).encode()
    task = json.dumps({"model": "sim-video", "params": params}).encode()
    made = request(media.port, "POST", "/v1/tasks/submit", key=key, body=task)
    task_id = made.json()["task_id"]
    job = f"/v1/jobs/{task_id.replace('task_', 'job_')}"
    image = json.dumps({"model": "sim-image", "prompt": "sim:run-ms 6000"}).encode()
    asked = [
        ("GET", f"/v1/tasks/stream/{task_id}", b""),
        ("GET", f"{job}/events", b""),
        ("POST", "/v1/jobs?wait=30", film),
        ("POST", "/v1/images/generations", image),
    ]
    ended_s = {}

    def follow(method, path, body):
        reply = request(media.port, method, path, key=key, body=body, timeout_s=40)
        told = reply.body()
        ended_s[path] = time.monotonic()
        return reply.status, told

    with ThreadPoolExecutor(len(asked)) as pool:
        followed = [pool.submit(follow, *each) for each in asked]
        wait_until(lambda: len(media.get("/v1/jobs", key)["data"]) == 3)
        time.sleep(0.5)  # all of them wait; one that came later would be refused as well
        assert not ended_s
        catalog.revoke_key(parent.id)
        began_s = time.monotonic()
        answers = [each.result() for each in followed]
    for status, told in answers[:2]:
        assert status == 200
        assert b'event: error\ndata: {"error":{"message":"this API key was revoked"' in told
    for status, told in answers[2:]:
        assert (status, json.loads(told)["error"]["code"]) == (401, "invalid_api_key")
    other = media.new_key(account=account)
    jobs = wait_until(
        lambda: [each for each in media.get("/v1/jobs", other)["data"] if each["completed_at"]], 30
    )
    assert [(each["kind"], each["state"]) for each in jobs] == [("image", "cancelled")]
    for each in media.get("/v1/jobs", other)["data"]:
        path = f"/v1/jobs/{each['id']}/cancel"
        assert request(media.port, "POST", path, key=other).status in (200, 202)
    return max(ended_s.values()) - began_s


def test_refusals_have_openais_shape_whoever_calls(media):
    for path, body, expected in (
        ("/v1/tasks/submit", {"model": "claude-haiku-4-5", "params": {}}, "invalid_param"),
        ("/v1/tasks/query", {}, "invalid_param"),
        ("/v1/images/generations", {"model": "nothing", "prompt": "a"}, "model_not_found"),
    ):
        _, _, told = send(media, "POST", path, body, **{"anthropic-version": "2023-06-01"})
        assert json.loads(told)["error"]["code"] == expected, told


def test_readyz_and_the_doctor_tell_of_the_batch_service(media):
    def told():
        reply = request(media.port, "GET", "/readyz")
        return reply.status, reply.json()["checks"]["batch"]

    def found():
        rows = json.loads(media.cli("doctor", "--json", check=False).stdout)
        return {each["check"]: each["ok"] for each in rows}["batch"]

    wait_until(lambda: (told(), found()) == ((200, "ok"), True))
    (batch,) = [each for each in processes(media) if "batch" in each.cmdline()[0]]
    batch.suspend()
    try:
        wait_until(lambda: told() == (200, "unavailable"))
        wait_until(lambda: not found())
    finally:
        batch.resume()
    wait_until(lambda: told() == (200, "ok"))


def test_webhook_endpoints_at_the_public_door(media):
    path = "/v1/webhooks/endpoints"
    status, _, told = send(media, "POST", path, {"url": "https://receiver.test/hook"})
    made = json.loads(told)
    assert (status, made["secret"][:6]) == (201, "whsec_")
    body = {"events": ["job.failed"], "status": "disabled"}
    changed = json.loads(send(media, "PATCH", f"{path}/{made['id']}", body)[2])
    assert (changed["events"], changed["status"]) == (["job.failed"], "disabled")
    rotated = json.loads(send(media, "POST", f"{path}/{made['id']}/rotate")[2])
    assert rotated["secret"] != made["secret"]
    assert json.loads(send(media, "GET", path)[2])["data"] == [
        {name: value for name, value in rotated.items() if name != "secret"}
    ]
    assert json.loads(send(media, "GET", f"{path}/{made['id']}/deliveries")[2])["data"] == []
    assert send(media, "DELETE", f"{path}/{made['id']}")[0] == 200
    assert send(media, "GET", f"{path}/{made['id']}")[0] == 404
