"""Vendors' usage objects in our own classes."""

import pytest

from services.core.usage import MAX_UNITS, from_anthropic, from_chat, from_responses


def test_anthropic_classes_are_disjoint():
    told = {
        "input_tokens": 12,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 4000,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        "output_tokens": 55,
        "output_tokens_details": {"thinking_tokens": 20},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        "service_tier": "standard",
    }
    assert from_anthropic(told) == {
        "input": 12,
        "cache_read": 4000,
        "cache_write_5m": 100,
        "cache_write_1h": 200,
        "output": 55,
        "reasoning": 20,
        "web_search": 2,
    }


def test_what_anthropic_charges_beside_its_totals_counts():
    """Summaries of a long context and answers of an advisor are in `iterations` alone."""
    turn = {"type": "message", "input_tokens": 100, "output_tokens": 10}
    summary = {"type": "compaction", "input_tokens": 9000, "output_tokens": 300}
    advice = {"type": "advisor_message", "cache_read_input_tokens": 50, "output_tokens": 4}
    told = {"input_tokens": 100, "output_tokens": 10, "iterations": [turn, summary, 7, advice]}
    assert from_anthropic(told) == {"input": 9100, "cache_read": 50, "output": 314}
    assert from_anthropic({**told, "iterations": "many"}) == {"input": 100, "output": 10}


@pytest.mark.parametrize(
    ("written", "split", "expected"),
    [
        (300, None, {"cache_write_5m": 300}),
        (300, {}, {"cache_write_5m": 300}),
        (300, {"ephemeral_1h_input_tokens": 300}, {"cache_write_1h": 300}),
        (
            300,
            {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 100},
            {"cache_write_5m": 200, "cache_write_1h": 100},
        ),
        (
            0,
            {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 100},
            {"cache_write_5m": 50, "cache_write_1h": 100},
        ),
        (80, {"ephemeral_1h_input_tokens": 100}, {"cache_write_1h": 80}),
    ],
)
def test_anthropic_cache_writes_add_up_to_their_total(written, split, expected):
    told = {"cache_creation_input_tokens": written, "cache_creation": split}
    assert from_anthropic(told) == expected


def test_openai_prompt_holds_the_cached_part():
    details = {"cached_tokens": 600, "cache_write_tokens": 100}
    chat = {
        "prompt_tokens": 1000,
        "completion_tokens": 50,
        "total_tokens": 1050,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    responses = {
        "input_tokens": 1000,
        "output_tokens": 50,
        "total_tokens": 1050,
        "input_tokens_details": details,
        "output_tokens_details": {"reasoning_tokens": 20},
    }
    expected = {
        "input": 300,
        "cache_read": 600,
        "cache_write_5m": 100,
        "output": 50,
        "reasoning": 20,
    }
    assert from_chat(chat) == from_responses(responses) == expected


def test_openai_long_cache_writes():
    told = {
        "input_tokens": 1000,
        "input_tokens_details": {
            "cached_tokens": 0,
            "cache_write_tokens": 500,
            "cache_write_tokens_details": {"ttl_30m_tokens": 200, "ttl_12h_tokens": 300},
        },
    }
    assert from_responses(told) == {"input": 500, "cache_write_5m": 200, "cache_write_1h": 300}


def test_cache_writes_never_exceed_the_prompt():
    told = {
        "prompt_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 90},
    }
    assert from_chat(told) == {"cache_read": 80, "cache_write_5m": 20}


def test_cached_tokens_outside_the_prompt():
    told = {"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 400}}
    assert from_chat(told) == {"input": 100, "cache_read": 400}


@pytest.mark.parametrize("name", ["prompt_cache_hit_tokens", "cached_tokens"])
def test_vendors_that_tell_cached_tokens_beside_the_details(name):
    assert from_chat({"prompt_tokens": 100, name: 40}) == {"input": 60, "cache_read": 40}


@pytest.mark.parametrize("value", [-5, None, "7", True, 1.5, [1], {"a": 1}])
def test_what_is_no_count_is_zero(value):
    assert from_anthropic({"input_tokens": value, "output_tokens": 3}) == {"output": 3}
    assert from_chat({"prompt_tokens": value, "prompt_tokens_details": value}) == {}
    assert from_anthropic({"cache_creation": value}) == {}


def test_whole_floats_count_and_giants_are_bounded():
    assert from_chat({"completion_tokens": 7.0}) == {"output": 7}
    assert from_chat({"completion_tokens": 10**30}) == {"output": MAX_UNITS}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value):
    assert from_chat({"completion_tokens": value}) == {}
