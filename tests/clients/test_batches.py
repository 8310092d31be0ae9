"""Batches through the public door, driven by both vendors' SDKs."""

import hashlib
import io
import json

import anthropic
import openai
import pytest
from sqlalchemy import update

from services.backends import settings
from services.backends.line_ticket import HEADER, Ticket, tickets
from services.backends.sql.batch_tables import batch as batch_table
from services.backends.sql.engine import now_us, open_engine, write
from tests.parts.feature import make_key, wait_until
from tests.parts.media import media_stack
from tests.parts.wire import request

pytestmark = [pytest.mark.part("openai-sdk"), pytest.mark.part("anthropic-sdk")]
CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    yield from media_stack(tmp_path_factory.mktemp("batches"))


def openai_of(media, key):
    return openai.OpenAI(base_url=media.base_url + "/v1", api_key=key, max_retries=0)


def anthropic_of(media, key):
    return anthropic.Anthropic(base_url=media.base_url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def sdk(media):
    return openai_of(media, media.key())


@pytest.fixture(scope="module")
def claude(media):
    return anthropic_of(media, media.key())


def chat(name, model="gpt-5-mini", **more):
    body = {"model": model, "messages": [{"role": "user", "content": name}], "max_tokens": 32}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body | more}


def message(name, **more):
    body = {
        "model": "claude-haiku-4-5",
        "max_tokens": 32,
        "messages": [{"role": "user", "content": name}],
    }
    return {"custom_id": name, "params": body | more}


def upload(sdk, lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    return sdk.files.create(file=("lines.jsonl", io.BytesIO(text.encode())), purpose="batch")


def start(sdk, lines, endpoint=CHAT, **more):
    file = upload(sdk, lines)
    return sdk.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def ended(sdk, batch, timeout_s=60.0):
    def found():
        now = sdk.batches.retrieve(batch.id)
        return now if now.status in ENDED else None

    return wait_until(found, timeout_s, lambda: sdk.batches.retrieve(batch.id))


def message_batch_ended(claude, batch, timeout_s=60.0):
    def found():
        now = claude.messages.batches.retrieve(batch.id)
        return now if now.processing_status == "ended" else None

    return wait_until(found, timeout_s)


def read(sdk, file_id):
    return [json.loads(line) for line in sdk.files.content(file_id).text.splitlines()]


def expire(media, batch):
    """Its 24 hours are over."""
    config = settings.load(media.config_file, {}, data_dir=str(media.data_dir))
    engine = open_engine(config.database.url, media.data_dir)
    mine = update(batch_table).where(batch_table.c.id == batch.id.removeprefix("batch_"))
    write(engine, lambda connection: connection.execute(mine.values(expires_at=now_us())))
    engine.dispose()


def test_a_file_of_chats_becomes_files_of_answers_and_an_ordinary_bill(media, sdk):
    before = media.sim.last_id()
    lines = [chat(f"first-{i}") for i in range(9)] + [chat("lost", model="nothing")]
    made = start(sdk, lines, metadata={"why": "test"})
    assert (made.status, made.completion_window, made.metadata) == (
        "validating", "24h", {"why": "test"},
    )  # fmt: skip
    done = ended(sdk, made)
    counts = done.request_counts
    assert (done.status, counts.total, counts.completed, counts.failed) == ("completed", 10, 9, 1)
    assert done.completed_at >= done.finalizing_at >= done.in_progress_at >= done.created_at
    output, errors = read(sdk, done.output_file_id), read(sdk, done.error_file_id)
    assert [line["custom_id"] for line in output] == [f"first-{i}" for i in range(9)]
    assert [line["custom_id"] for line in errors] == ["lost"]
    assert errors[0]["response"]["status_code"] == 404
    assert errors[0]["response"]["body"]["error"]["code"] == "model_not_found"
    assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in output)
    told = [line["response"]["body"] for line in output]
    assert made.usage is None
    assert done.model == told[0]["model"]
    assert done.usage.input_tokens == sum(each["usage"]["prompt_tokens"] for each in told) > 0
    assert done.usage.output_tokens == sum(each["usage"]["completion_tokens"] for each in told)
    assert done.usage.total_tokens == sum(each["usage"]["total_tokens"] for each in told)
    calls = media.sim.calls(after=before)
    sent = [hashlib.sha256(json.dumps(line["body"]).encode()).hexdigest() for line in lines[:9]]
    assert sorted(call["body_sha256"] for call in calls) == sorted(sent)  # byte for byte, once
    for line in (output[0], output[-1]):
        row = media.wait_for_row(line["response"]["request_id"], media.key())
        assert row["outcome"] == "completed"
        assert row["cost_nano"] > 0
    names = {each.id: each.purpose for each in sdk.files.list(purpose="batch_output")}
    assert {done.output_file_id, done.error_file_id} <= names.keys()


def test_responses_and_embeddings_are_sent_too(media, sdk):
    answers = start(
        sdk,
        [
            {
                "custom_id": "r",
                "method": "POST",
                "url": "/v1/responses",
                "body": {"model": "gpt-5-mini", "input": "hello"},
            }
        ],
        "/v1/responses",
    )
    vectors = start(
        sdk,
        [
            {
                "custom_id": f"e{i}",
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": "sim-embed", "input": f"text {i}"},
            }
            for i in range(3)
        ],
        "/v1/embeddings",
    )
    told = read(sdk, ended(sdk, answers).output_file_id)
    assert told[0]["response"]["body"]["object"] == "response"
    found = read(sdk, ended(sdk, vectors).output_file_id)
    assert [len(line["response"]["body"]["data"]) for line in found] == [1, 1, 1]


def test_a_wrong_file_fails_with_its_lines_and_sends_nothing(media, sdk):
    before = media.sim.last_id()
    lines = [
        chat("one"),
        "no json\n",
        chat("one"),
        chat("get") | {"method": "GET"},
        "\n",
        chat("other") | {"url": "/v1/responses"},
        chat("streamed", stream=True),
    ]
    done = ended(sdk, start(sdk, lines))
    assert done.status == "failed"
    assert [(each.line, each.code, each.param) for each in done.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_method", "method"),
        (6, "mismatched_url", "url"),
        (7, "invalid_request", "body.stream"),
    ]
    assert done.output_file_id is None
    assert ended(sdk, start(sdk, ["\n"])).errors.data[0].code == "empty_file"
    assert media.sim.calls(after=before) == []


def test_what_is_no_batch_is_refused_in_openais_shape(media, sdk):
    good = {
        "input_file_id": upload(sdk, [chat("x")]).id,
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    for name, value in (
        ("input_file_id", "file_nothing"),
        ("endpoint", "/v1/messages"),
        ("completion_window", "1h"),
        ("metadata", {str(i): "x" for i in range(17)}),
        ("output_expires_after", {"anchor": "created_at", "seconds": 5}),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.batches.create(**good | {name: value})
        assert caught.value.param == name
    with pytest.raises(openai.BadRequestError) as missing:
        sdk.post("/batches", cast_to=object, body={"endpoint": CHAT})
    assert missing.value.param == "input_file_id"
    made = sdk.batches.create(**good)
    stranger = openai_of(media, media.new_key())
    for call in (stranger.batches.retrieve, stranger.batches.cancel, stranger.files.content):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert list(stranger.batches.list()) == []
    later = sdk.batches.create(**good)
    for each in (made, later):
        ended(sdk, each)
    mine = [each.id for each in sdk.batches.list(limit=1)]
    assert mine[:2] == [later.id, made.id]
    assert len(mine) == len(set(mine))


def test_messages_become_results(media, claude):
    before = media.sim.last_id()
    made = claude.messages.batches.create(
        requests=[message(f"m{i}") for i in range(5)] + [message("wrong", model="nothing")]
    )
    assert (made.processing_status, made.request_counts.processing, made.results_url) == (
        "in_progress", 6, None,
    )  # fmt: skip
    done = message_batch_ended(claude, made)
    counts = done.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 5, 1)
    assert done.results_url.startswith(media.base_url)
    results = {each.custom_id: each.result for each in claude.messages.batches.results(made.id)}
    assert {name: each.type for name, each in results.items()} == {
        **{f"m{i}": "succeeded" for i in range(5)},
        "wrong": "errored",
    }
    assert results["m0"].message.content[0].text
    assert results["wrong"].error.error.type == "not_found_error"
    assert len(media.sim.calls(after=before)) == 5
    listed = [each.id for each in claude.messages.batches.list(limit=1)]
    assert listed[0] == made.id
    assert len(listed) == len(set(listed))
    assert claude.messages.batches.delete(made.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.batches.retrieve(made.id)


def test_what_is_no_message_batch_is_refused_with_the_path(media, claude):
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.batches.create(requests=[])
    for requests, path in (
        ([message("a"), message("b"), message("c"), message("a")], "requests.3.custom_id: "),
        ([message("a"), message("not good")], "requests.1.custom_id: "),
        ([message("a", stream=True)], "requests.0.params.stream: "),
        ([{"custom_id": "a"}], "requests.0.params: "),
    ):
        with pytest.raises(anthropic.BadRequestError) as caught:
            claude.messages.batches.create(requests=requests)
        told = caught.value.body["error"]
        assert (told["type"], told["message"].startswith(path)) == ("invalid_request_error", True)
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.batches.retrieve("msgbatch_nothing")
    assert missing.value.body["type"] == "error"
    stranger = anthropic_of(media, "sk-toll-nobody")
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.batches.create(requests=[message("a")])


def test_a_slow_batch_starves_nobody_and_is_cancelled_or_expires(media, sdk):
    slow = openai_of(media, media.new_key("slow"))  # each answer takes 3 s
    long = start(slow, [chat(f"slow-{i}") for i in range(40)])
    wait_until(lambda: slow.batches.retrieve(long.id).status == "in_progress", 30)
    messages = anthropic_of(media, media.new_key("slow"))
    other = messages.messages.batches.create(requests=[message(f"s{i}") for i in range(20)])
    assert ended(sdk, start(sdk, [chat("quick")])).request_counts.completed == 1
    assert slow.batches.retrieve(long.id).status == "in_progress"
    late = openai_of(media, media.new_key("slow"))
    overdue = start(late, [chat(f"late-{i}") for i in range(12)])
    wait_until(lambda: late.batches.retrieve(overdue.id).status == "in_progress", 30)
    expire(media, overdue)
    assert slow.batches.cancel(long.id).status == "cancelling"
    assert messages.messages.batches.cancel(other.id).processing_status == "canceling"
    with pytest.raises(anthropic.BadRequestError):
        messages.messages.batches.delete(other.id)
    done = ended(slow, long)
    output = read(slow, done.output_file_id) if done.output_file_id else []
    errors = read(slow, done.error_file_id)
    assert done.status == "cancelled"
    assert len(output) == done.request_counts.completed < 40
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    names = [line["custom_id"] for line in output + errors]
    assert sorted(names) == sorted(f"slow-{i}" for i in range(40))
    done = ended(late, overdue)
    missed = read(late, done.error_file_id)
    assert {line["error"]["code"] for line in missed} == {"batch_expired"}
    assert (done.status, done.request_counts.failed) == ("expired", len(missed))
    assert len(missed) + done.request_counts.completed == 12
    counts = message_batch_ended(messages, other).request_counts
    assert counts.canceled > 0
    assert counts.canceled + counts.succeeded == 20
    results = list(messages.messages.batches.results(other.id))
    assert len({each.custom_id for each in results}) == 20


def test_lines_keep_the_keys_limits(media):
    poor = openai_of(media, media.new_key(usd="0.0001"))
    done = ended(poor, start(poor, [chat(f"dear-{i}", max_tokens=9000) for i in range(3)]))
    told = [line["response"] for line in read(poor, done.error_file_id)]
    assert {each["status_code"] for each in told} == {402}
    secret = make_key(media, concurrency=1)[1]
    narrow = openai_of(media, secret)
    one_by_one = ended(narrow, start(narrow, [chat(f"one-{i}") for i in range(5)]))
    assert one_by_one.request_counts.completed == 5
    key, secret = make_key(media, group="slow")
    gone = openai_of(media, secret)
    made = start(gone, [chat(f"gone-{i}") for i in range(30)])
    wait_until(lambda: gone.batches.retrieve(made.id).status == "in_progress", 30)
    owner = make_key(media, account=key.account_id)[1]
    media.revoke(secret)
    heir = openai_of(media, owner)
    done = ended(heir, made)
    errors = [line["response"]["status_code"] for line in read(heir, done.error_file_id)]
    assert set(errors) == {401}
    assert len(errors) + done.request_counts.completed == 30


def test_a_tickets_authority_cannot_be_made_up_or_used_again(media):
    line = chat("forged")["body"]
    body = json.dumps(line).encode()
    key = make_key(media)[0]
    ticket = Ticket(
        batch_id="A" * 26,
        line=1,
        try_no=1,
        request_id="01930000-0000-7000-8000-000000000000",
        key_id=key.id,
        path=CHAT,
        body_sha256=hashlib.sha256(body).hexdigest(),
        exp=2**60,
    )
    before = media.sim.last_id()
    for secret, status in ((b"another", 401), (settings.load_secret(media.data_dir), 409)):
        header = tickets(secret).sign(ticket)
        for key in ("", media.key()):
            told = request(media.port, "POST", CHAT, key=key, headers=[(HEADER, header)], body=body)
            assert told.status == status, told.json()
    header = tickets(settings.load_secret(media.data_dir)).sign(ticket)
    told = request(media.port, "GET", "/v1/usage", headers=[(HEADER, header)])
    assert told.status == 401
    assert media.sim.calls(after=before) == []
