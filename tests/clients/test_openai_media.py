"""OpenAI's media routes that take files, and its videos, driven by its own SDK."""

import base64
import json
import socket
import urllib.error
import urllib.request
import uuid

import openai
import pytest

from tests.parts.feature import assert_accounted, wait_until
from tests.parts.media import media_stack
from tests.parts.wire import request

pytestmark = [
    pytest.mark.part("openai-sdk"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    yield from media_stack(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def sdk(media):
    return openai.OpenAI(base_url=media.base_url + "/v1", api_key=media.key(), max_retries=0)


@pytest.fixture(scope="module")
def picture(sdk):
    made = sdk.images.generate(model="sim-image", prompt="a fox", response_format="b64_json")
    return _bytes(made)


@pytest.fixture(scope="module")
def speech(sdk):
    made = sdk.audio.speech.create(
        model="sim-speech", input="the fox says hello", voice="alloy", response_format="wav"
    )
    return made.content


def _bytes(made):
    return base64.b64decode(made.data[0].b64_json)


def newest(media, model):
    """The newest job of a model, as its account sees it."""
    found = media.get(f"/v1/jobs?model={model}&limit=1", media.key())
    return found["data"][0]


def test_an_image_is_edited_under_a_mask(media, sdk, picture):
    made = sdk.images.edit(
        model="sim-image",
        image=("fox.png", picture),
        mask=("mask.png", picture),
        prompt="a red hat",
        n=2,
        response_format="b64_json",
    )
    assert [_bytes(made)[:8], len(made.data)] == [PNG, 2]
    linked = sdk.images.edit(model="sim-image", image=("fox.png", picture), prompt="a red hat")
    with urllib.request.urlopen(linked.data[0].url, timeout=20) as reply:
        assert reply.read(8) == PNG
    assert len(media.sim.calls(path="/v1/images/edits")) == 2
    assert newest(media, "sim-image")["cost"]["charged_nano"] == 10_000_000
    assert sdk.files.list().data == []


def test_what_is_no_edit_is_refused_in_openais_shape(sdk, picture):
    for wrong in (
        {"image": ("fox.png", b"<html>")},
        {"image": [("a.png", picture), ("b.png", picture)]},
        {"image": ("fox.png", picture), "n": 99},
        {"image": ("fox.png", picture), "extra_body": {"stream": "true"}},
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.images.edit(model="sim-image", prompt="a hat", **wrong)
        assert caught.value.code == "invalid_param"
    assert caught.value.param == "stream"
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.images.edit(model="nothing", prompt="a hat", image=("fox.png", picture))
    assert missing.value.code == "model_not_found"


def test_files_are_listed_in_pages_and_kept_as_long_as_asked(media, picture):
    sdk = openai.OpenAI(base_url=media.base_url + "/v1", api_key=media.new_key(), max_retries=0)
    hour = {"anchor": "created_at", "seconds": 3600}
    made = [
        sdk.files.create(file=(f"{i}.png", picture), purpose="vision", expires_after=hour)
        for i in range(3)
    ]
    ids = [each.id for each in made]
    assert {each.expires_at - each.created_at for each in made} == {3600}
    assert [each.id for each in sdk.files.list(limit=2)] == ids[::-1]
    assert [each.id for each in sdk.files.list(limit=1, order="asc")] == ids
    assert [each.id for each in sdk.files.list(after=ids[1], order="asc").data] == ids[2:]
    for wrong in ({"seconds": 60}, {"seconds": 10**9}, {"anchor": "now"}):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.files.create(file=("a.png", picture), purpose="vision", expires_after=hour | wrong)
        assert caught.value.param == "expires_after"


@pytest.mark.parametrize(
    ("wanted", "mark"), [("text", ""), ("srt", "00:00:00,000 --> "), ("vtt", "WEBVTT")]
)
def test_speech_is_written_down_as_text(sdk, speech, wanted, mark):
    told = sdk.audio.transcriptions.create(
        model="sim-transcribe", file=("fox.wav", speech), response_format=wanted
    )
    assert "the fox says hello" in told
    assert mark in told


def test_speech_is_written_down_as_json_and_billed_by_the_second(media, sdk, speech):
    whole = sdk.audio.transcriptions.create(
        model="sim-transcribe", file=("fox.wav", speech), response_format="verbose_json"
    )
    assert whole.segments[0].text == "the fox says hello"
    raw = sdk.audio.transcriptions.with_raw_response.create(
        model="sim-transcribe", file=("fox.wav", speech), temperature=0.5
    )
    assert raw.parse().text == "the fox says hello"
    job = newest(media, "sim-transcribe")
    assert job["usage"]["units"] == {"seconds": 2}
    assert job["cost"]["charged_nano"] == 200_000
    held = int(raw.headers["x-estimated-credits"])
    assert held >= job["cost"]["charged_nano"] // 1000
    assert media.wait_for_row(job["request_id"], media.key())["cost_nano"] == 200_000
    for wrong in (
        {"response_format": "diarized_json"},
        {"timestamp_granularities": ["word", "segment"], "response_format": "verbose_json"},
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.audio.transcriptions.create(
                model="sim-transcribe", file=("fox.wav", speech), **wrong
            )
        assert caught.value.param == next(iter(wrong))
    head = b"content-disposition: form-data; name=file; filename="
    for name, status in (("\xfc.wav".encode("latin-1"), 400), ("\xfc.wav".encode(), 200)):
        form = b"--x\r\n" + head + name + b"\r\n\r\n" + speech + b"\r\n--x--\r\n"
        told = request(
            media.port,
            "POST",
            "/v1/files",
            key=media.new_key(),
            body=form,
            headers=[("content-type", "multipart/form-data; boundary=x")],
        )
        assert told.status == status, told.json()


def test_a_video_is_made_polled_downloaded_listed_and_deleted(media, sdk, picture):
    first = sdk.videos.create_and_poll(
        model="sim-video", prompt="a fox", seconds="1", size="1280x720"
    )
    assert (first.status, first.progress, first.seconds, first.size) == (
        "completed", 100, "1", "1280x720",
    )  # fmt: skip
    assert sdk.videos.download_content(first.id).content[4:8] == b"ftyp"
    second = sdk.videos.create(
        model="sim-video", prompt="a hare", seconds="1", input_reference=("fox.png", picture)
    )
    assert second.status == "queued"
    wait_until(lambda: sdk.videos.retrieve(second.id).status == "completed", 30)
    mine = {first.id, second.id}
    assert [each.id for each in sdk.videos.list(limit=1)] == [second.id, first.id]
    assert [each.id for each in sdk.videos.list(limit=1, order="asc")] == [first.id, second.id]
    job = media.get(f"/v1/jobs/{second.id.replace('video_', 'job_')}", media.key())
    assert job["cost"]["charged_nano"] == 11_000_000
    for each in mine:
        assert sdk.videos.delete(each).deleted
        with pytest.raises(openai.NotFoundError):
            sdk.videos.retrieve(each)
    assert list(sdk.videos.list()) == []
    row = media.wait_for_row(job["request_id"], media.key())
    assert row["cost_nano"] == 11_000_000


def test_a_video_that_runs_has_no_content_and_is_not_deleted(media, sdk):
    made = sdk.videos.create(model="sim-video", prompt="a fox sim:run-ms 9000", seconds="1")
    with pytest.raises(openai.BadRequestError):
        sdk.videos.download_content(made.id)
    with pytest.raises(openai.ConflictError) as caught:
        sdk.videos.delete(made.id)
    assert caught.value.code == "not_terminal"
    path = f"/v1/jobs/{made.id.replace('video_', 'job_')}/cancel"
    request(media.port, "POST", path, key=media.key())
    wait_until(lambda: sdk.videos.retrieve(made.id).status == "failed", 30)
    assert sdk.videos.retrieve(made.id).error.code == "cancelled_by_user"
    for wrong in ({"size": "12x12"}, {"seconds": "x"}, {"size": "1000x999"}):
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.videos.create(model="sim-video", prompt="a fox", **wrong)
        assert refused.value.param == next(iter(wrong))


def test_the_older_routes_are_the_same_task_and_bill(media):
    body = {"model": "sim-video", "prompt": "a fox", "duration_seconds": 1}
    made = request(
        media.port,
        "POST",
        "/v1/videos/generations",
        key=media.key(),
        body=json.dumps(body).encode(),
    )
    task = made.json()
    assert made.status == 200
    assert task["status"] == "pending"
    path = f"/v1/videos/tasks/{task['task_id']}"
    wait_until(lambda: media.get(path, media.key())["status"] == "completed", 30)
    told = media.get(path, media.key())
    assert told["result_url"] == told["result"]["video_url"]
    assert told["credits_used"] == 0.011
    query = media.get(f"/v1/tasks/query?task_id={task['task_id']}", media.key())
    assert query["credits_used"] == told["credits_used"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        media.get(path, media.new_key())
    assert caught.value.code == 404


@pytest.mark.parametrize(
    ("path", "body", "credits"),
    [
        ("/v1/images/generations", {"model": "sim-image", "prompt": "a", "n": 2}, "20000"),
        ("/v1/jobs", {"model": "sim-image", "input": {"prompt": "a"}}, "10000"),
        ("/v1/tasks/submit", {"model": "sim-image", "params": {"prompt": "a"}}, "10000"),
        ("/v1/videos", {"model": "sim-video", "prompt": "a", "seconds": "1"}, "11000"),
        ("/v1/rerank", {"model": "sim-rerank", "query": "a", "documents": ["a"]}, "2000"),
    ],
)
def test_every_submission_tells_what_it_may_cost(media, path, body, credits):
    made = request(media.port, "POST", path, key=media.key(), body=json.dumps(body).encode())
    assert_accounted(made)
    assert made.status in (200, 202), made.json()
    assert made.header("x-estimated-credits") == credits
    assert not any(name.startswith("x-tollgate-hold") for name, _ in made.headers)


@pytest.mark.parametrize("asked", ["sim:run-ms 4000", "sim:run-ms 500"])
def test_a_client_that_hangs_up_cancels_its_job_and_pays_nothing(media, asked):
    for _ in range(3):  # on a busy machine the answer may be there before its client leaves
        key = media.new_key()
        job = hung_up(media, key, asked)
        if job["state"] == "cancelled":
            break
    assert (job["state"], job["cost"]["charged_nano"]) == ("cancelled", 0)
    assert job["output"] == []
    row = media.wait_for_row(job["request_id"], key)
    assert row["cost_nano"] == 0


def hung_up(media, key, asked):
    """The job, once it has ended, of a client that hung up when it was taken."""
    body = json.dumps({"model": "sim-image", "prompt": f"{uuid.uuid4().hex} {asked}"}).encode()
    with socket.create_connection(("127.0.0.1", media.port)) as client:
        client.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            + f"x-api-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        jobs = wait_until(lambda: media.get("/v1/jobs", key)["data"])
    path = f"/v1/jobs/{jobs[0]['id']}"
    return wait_until(lambda: (found := media.get(path, key))["completed_at"] and found)


def test_an_erased_job_keeps_its_bill_alone(media, sdk, picture):
    sdk.images.edit(model="sim-image", image=("fox.png", picture), prompt="a hat")
    job = newest(media, "sim-image")
    path, artifact = f"/v1/jobs/{job['id']}", job["output"][0]["artifact_id"]
    erased = request(media.port, "DELETE", path, key=media.key())
    assert (erased.status, erased.json()["deleted"]) == (200, True)
    gone = request(media.port, "GET", f"/v1/artifacts/{artifact}/content", key=media.key())
    assert gone.status == 410
    after = media.get(path, media.key())
    assert after["cost"] == job["cost"]
    assert after["version"] == job["version"] + 1
    again = request(media.port, "POST", f"{path}/redrive", key=media.key())
    assert again.status == 410
    assert request(media.port, "DELETE", path, key=media.new_key()).status == 404
    assert request(media.port, "DELETE", path, key=media.key()).status == 200
