"""Edits of one member keep every other byte, and mean what a JSON reader reads."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.json_span import append_member, find_value, replace_value

KEYS = st.sampled_from(["model", "mode", "model ", "é", 'a"b', "messages", "\\model"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8) | st.just('"model":"x"'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.dictionaries(KEYS, VALUES, max_size=5),
    VALUES,
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([None, 1, "\t"]),
)
def test_replaces_only_the_top_level_member(others, value, place, ascii_only, indent):
    items = [(key, item) for key, item in others.items() if key != "model"]
    items.insert(min(place, len(items)), ("model", value))
    body = json.dumps(dict(items), ensure_ascii=ascii_only, indent=indent).encode()
    edited = replace_value(body, "model", b'"new"')
    assert json.loads(edited) == dict(items) | {"model": "new"}
    span = find_value(body, "model")
    assert span is not None
    assert json.loads(body[span[0] : span[1]]) == value
    assert edited == body[: span[0]] + b'"new"' + body[span[1] :]


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5), VALUES)
def test_an_appended_member_counts(others, value):
    body = json.dumps(others).encode()
    edited = append_member(body, "model", json.dumps(value).encode())
    assert json.loads(edited) == others | {"model": value}
    assert edited.startswith(body[:-1])


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","x":1,"model":"b"}',
        b'{"model":"a","model":"a"}',
        b'{"mod\\u0065l":"a"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"model" \n : \t "a\\"b\\\\"}',
        b' \n{ "x" : {"model":"n"} , "model" : "a" } \n',
        b'{"x":"\\"model\\":\\"no\\"","model":"a"}',
        b'{"x":["model","b"],"model":"a"}',
        '{"ä":"€","model":"ö","z":"😀"}'.encode(),
        b'{"model":7}',
        b'{"model":null,"x":[{"model":[1,{"model":2}]}]}',
        b'{"x":{"model":1},"y":{"model":2},"model":{"model":3}}',
    ],
)
def test_hard_bodies(body):
    edited = replace_value(body, "model", b'"new"')
    assert json.loads(edited) == json.loads(body) | {"model": "new"}


def test_a_member_that_is_only_nested_or_said_is_none():
    for body in (b'{"x":{"model":"a"}}', b'{"x":"\\"model\\":1"}', b"{}"):
        assert find_value(body, "model") is None
        with pytest.raises(ValueError, match="model"):
            replace_value(body, "model", b"1")


@pytest.mark.parametrize("body", [b"[]", b"", b'"model"', b'{"a":1'])
def test_what_is_no_object_is_refused(body):
    with pytest.raises(ValueError, match=r"JSON|Expecting|model"):
        replace_value(body, "model", b"1")
    with pytest.raises(ValueError, match="not a JSON object"):
        append_member(body, "model", b"1")


def test_appends_to_an_empty_object_and_keeps_no_space_behind():
    assert append_member(b"{ }\n", "a", b"1") == b'{"a":1}'
    assert append_member(b'{"b":2 }\n', "a", b"1") == b'{"b":2,"a":1}'


def test_many_nested_namesakes_do_not_cost_a_decode_each():
    inner = [{"model": "m"}] * 20_000
    body = json.dumps({"x": inner, "model": "a"}).encode()
    started = time.perf_counter()
    assert json.loads(replace_value(body, "model", b'"new"'))["model"] == "new"
    assert time.perf_counter() - started < 5
