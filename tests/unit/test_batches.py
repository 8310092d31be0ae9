"""Lines of batches: what may be sent, under which name, with which credential."""

import hashlib
import json
import uuid

import msgspec
import pytest

from services.backends.line_ticket import Ticket, tickets
from services.backends.signed import NotAuthentic
from services.core import batches

CHAT = "/v1/chat/completions"
GOOD = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "gpt-5-mini"}}
DEEP = "[" * 5_000 + "]" * 5_000


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ("{", "invalid_json_line", ""),
        ("[]", "invalid_type", ""),
        ('"text"', "invalid_type", ""),
        (b"\xff\xfe{}", "invalid_json_line", ""),
        (json.dumps(GOOD)[:-1] + ', "x": ' + DEEP + "}", "invalid_json_line", ""),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("url"), "missing_required_parameter", "url"),
        (without("body"), "missing_required_parameter", "body"),
        (GOOD | {"custom_id": 7}, "invalid_type", "custom_id"),
        (GOOD | {"custom_id": ""}, "invalid_custom_id", "custom_id"),
        (GOOD | {"custom_id": "x" * 513}, "invalid_custom_id", "custom_id"),
        (GOOD | {"custom_id": "a\0"}, "invalid_custom_id", "custom_id"),
        (GOOD | {"method": "GET"}, "invalid_method", "method"),
        (GOOD | {"url": "/v1/responses"}, "mismatched_url", "url"),
        (GOOD | {"body": []}, "invalid_type", "body"),
        (GOOD | {"body": {}}, "missing_required_parameter", "body.model"),
        (GOOD | {"body": {"model": 5}}, "invalid_type", "body.model"),
        (GOOD | {"body": {"model": "m", "stream": True}}, "invalid_request", "body.stream"),
    ],
)
def test_a_wrong_line_is_named_by_the_path_of_its_wrong_field(line, code, param):
    raw = line if isinstance(line, bytes) else line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(batches.WrongLine) as caught:
        batches.check_line(raw if isinstance(raw, bytes) else raw.encode(), CHAT)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"params": {"model": "m"}}, "custom_id"),
        ({"custom_id": "a b", "params": {"model": "m"}}, "custom_id"),
        ({"custom_id": "a" * 65, "params": {"model": "m"}}, "custom_id"),
        ({"custom_id": "a"}, "params"),
        ({"custom_id": "a", "params": {}}, "params.model"),
        ({"custom_id": "a", "params": {"model": "m", "stream": True}}, "params.stream"),
    ],
)
def test_a_wrong_message_is_named_the_same_way(request_, param):
    with pytest.raises(batches.WrongLine) as caught:
        batches.check_message(json.dumps(request_).encode())
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


def test_what_a_line_sends_is_its_body_byte_for_byte():
    body = b'{ "model":"m",  "x": 1.10, "e": "\\u00e9" }'
    line = b'{"custom_id":"a","method":"POST","url":"%s","body":%s}' % (CHAT.encode(), body)
    assert batches.check_line(line, CHAT) == "a"
    assert batches.body_of(line, CHAT) == body
    message = b'{"custom_id":"a","params":%s}' % body
    assert batches.check_message(message) == "a"
    assert batches.body_of(message, batches.MESSAGES) == body


def test_a_try_of_a_line_has_one_request_id():
    made = [
        batches.request_id(batch, line, try_no, 1_700_000_000_123_456)
        for batch in ("A" * 26, "B" * 26)
        for line in (1, 2, 11)
        for try_no in (1, 2, 11)
    ]
    assert len(set(made)) == len(made)
    assert made[0] == batches.request_id("A" * 26, 1, 1, 1_700_000_000_123_456)
    found = uuid.UUID(made[0])
    assert (found.version, found.variant, str(found)) == (7, uuid.RFC_4122, made[0])
    assert found.int >> 80 == 1_700_000_000_123


def test_an_answer_becomes_one_line_and_keeps_its_numbers():
    pretty = b'{\n  "n": 12345678901234567890.10,\n  "text": "a\\nb  c"\n}\n'
    one = bytes(batches.as_one_line(pretty))
    assert one == b'{"n":12345678901234567890.10,"text":"a\\nb  c"}'
    quoted = msgspec.json.decode(bytes(batches.as_one_line(b"<html>no\n")))
    assert quoted == {"error": {"message": "<html>no\n"}}
    deep = msgspec.json.decode(bytes(batches.as_one_line(DEEP.encode())))
    assert deep == {"error": {"message": DEEP[:2000]}}


def test_a_ticket_is_good_for_one_request_and_for_a_while():
    signer = tickets(b"secret of the folder")
    body, now_us = b'{"model":"m"}', 1_000_000
    ticket = Ticket(
        batch_id="A",
        line=1,
        try_no=1,
        request_id="r",
        key_id="key_1",
        path=CHAT,
        body_sha256=hashlib.sha256(body).hexdigest(),
        exp=now_us + 1,
    )
    header = signer.sign(ticket)
    assert signer.verify(header, now_us) == ticket
    ticket.require_body(body)
    ticket.require_path(CHAT)
    with pytest.raises(NotAuthentic):
        ticket.require_body(body + b" ")
    with pytest.raises(NotAuthentic):
        ticket.require_path("/v1/responses")
    text, _, mac = header.partition(".")
    other = signer.sign(msgspec.structs.replace(ticket, key_id="key_2")).partition(".")[0]
    for forged, at_us in (
        (header, now_us + 1),
        (f"{other}.{mac}", now_us),
        (f"{text}.{'0' * 64}", now_us),
        (text, now_us),
        ("", now_us),
        ("é" * 10, now_us),
        (tickets(b"another secret").sign(ticket), now_us),
    ):
        with pytest.raises(NotAuthentic):
            signer.verify(forged, at_us)
