"""Who pays, row by row: every ending, before and after the first content, in every dialect."""

import itertools

import pytest

from schemas.errors import BILLED, Code, Outcome, Stage
from services.core.dialects import DIALECTS
from services.core.dialects.base import ResponseFacts
from services.core.outcomes import Answer, Ending, judge, refused
from tests.parts import streams

TOLD = {"input": 100, "output": 40}
FREE = (Outcome.FAILED, Outcome.CLIENT_GONE, Outcome.REFUSED)


def facts(**fields) -> ResponseFacts:
    whole = {
        "usage": TOLD,
        "finished": True,
        "finish_reason": "end_turn",
        "has_content": True,
        "output_bytes": 400,
    }
    return ResponseFacts(**(whole | fields))


WHOLE = facts()
SILENT = facts(has_content=False, finish_reason="end_turn")
EMPTY = facts(has_content=False, usage={"input": 100})
NO_REASON = facts(has_content=False, finish_reason="")
UNTOLD = facts(usage=None)
CUT = facts(finished=False, finish_reason="")
BEGUN = facts(finished=False, finish_reason="", has_content=False, usage=None, output_bytes=0)
BAD = facts(error=("overloaded_error", "busy"))

C, A, B = Outcome.COMPLETED, Outcome.CLIENT_ABORTED, Outcome.BUDGET_CUT
F, G = Outcome.FAILED, Outcome.CLIENT_GONE
UP, MID, GW = Stage.UPSTREAM, Stage.STREAM, Stage.GATEWAY

# ending, upstream status, answer, streaming, relayed -> outcome, code, stage
TABLE = [
    # The upstream answered whole.
    (Ending.ANSWERED, 200, WHOLE, False, False, C, None, None),
    (Ending.ANSWERED, 201, WHOLE, False, False, C, None, None),
    (Ending.ANSWERED, 200, WHOLE, True, True, C, None, None),
    (Ending.ANSWERED, 200, SILENT, False, False, C, None, None),
    (Ending.ANSWERED, 200, SILENT, True, True, C, None, None),
    (Ending.ANSWERED, 200, UNTOLD, True, True, C, None, None),
    # What fails after the end marker takes nothing away.
    (Ending.BROKEN, 200, WHOLE, True, True, C, None, None),
    (Ending.TIMEOUT, 200, WHOLE, True, True, C, None, None),
    # It answered with nothing.
    (Ending.ANSWERED, 200, EMPTY, False, False, F, Code.UPSTREAM_EMPTY, UP),
    (Ending.ANSWERED, 200, EMPTY, True, True, F, Code.UPSTREAM_EMPTY, MID),
    (Ending.ANSWERED, 200, NO_REASON, False, False, F, Code.UPSTREAM_EMPTY, UP),
    (Ending.ANSWERED, 200, None, True, False, F, Code.UPSTREAM_TRUNCATED, UP),
    # It refused or failed.
    (Ending.ANSWERED, 400, None, False, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.ANSWERED, 429, None, True, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.ANSWERED, 529, BAD, True, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.ANSWERED, 302, None, False, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.ANSWERED, 500, WHOLE, False, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.CONNECT_FAILED, 0, None, False, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.CONNECT_FAILED, 0, None, True, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.ANSWERED, 200, BAD, False, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.ANSWERED, 200, BAD, True, False, F, Code.UPSTREAM_ERROR, UP),
    (Ending.ANSWERED, 200, BAD, True, True, F, Code.UPSTREAM_STREAM_ERROR, MID),
    # It broke off.
    (Ending.ANSWERED, 200, CUT, True, True, F, Code.UPSTREAM_TRUNCATED, MID),
    (Ending.BROKEN, 200, CUT, True, True, F, Code.UPSTREAM_TRUNCATED, MID),
    (Ending.BROKEN, 200, None, False, False, F, Code.UPSTREAM_TRUNCATED, UP),
    (Ending.BROKEN, 0, None, True, False, F, Code.UPSTREAM_TRUNCATED, UP),
    (Ending.ANSWERED, 200, CUT, False, False, F, Code.UPSTREAM_TRUNCATED, UP),
    (Ending.BROKEN, 200, BAD, True, True, F, Code.UPSTREAM_STREAM_ERROR, MID),
    # It was too slow.
    (Ending.TIMEOUT, 0, None, False, False, F, Code.TIMEOUT, UP),
    (Ending.TIMEOUT, 0, None, True, False, F, Code.TIMEOUT, UP),
    (Ending.TIMEOUT, 200, None, False, False, F, Code.TIMEOUT, UP),
    (Ending.TIMEOUT, 200, BEGUN, True, True, F, Code.TIMEOUT, MID),
    (Ending.TIMEOUT, 200, CUT, True, True, F, Code.TIMEOUT, MID),
    # The client hung up.
    (Ending.CLIENT_GONE, 0, None, False, False, G, Code.CLIENT_GONE, UP),
    (Ending.CLIENT_GONE, 0, None, True, False, G, Code.CLIENT_GONE, UP),
    (Ending.CLIENT_GONE, 200, None, False, False, G, Code.CLIENT_GONE, UP),
    (Ending.CLIENT_GONE, 200, WHOLE, False, False, G, Code.CLIENT_GONE, UP),
    (Ending.CLIENT_GONE, 200, BEGUN, True, False, G, Code.CLIENT_GONE, UP),
    (Ending.CLIENT_GONE, 200, BEGUN, True, True, G, Code.CLIENT_GONE, MID),
    (Ending.CLIENT_GONE, 200, CUT, True, False, G, Code.CLIENT_GONE, UP),
    (Ending.CLIENT_GONE, 200, CUT, True, True, A, None, None),
    (Ending.CLIENT_GONE, 200, WHOLE, True, True, A, None, None),
    (Ending.CLIENT_GONE, 200, BAD, True, True, F, Code.UPSTREAM_STREAM_ERROR, MID),
    (Ending.CLIENT_GONE, 429, None, True, False, F, Code.UPSTREAM_ERROR, UP),
    # We ended it.
    (Ending.BUDGET_CUT, 200, CUT, True, True, B, None, None),
    (Ending.BUDGET_CUT, 200, BEGUN, True, True, F, Code.INSUFFICIENT_BALANCE, MID),
    (Ending.BUDGET_CUT, 200, None, True, False, F, Code.INSUFFICIENT_BALANCE, UP),
    (Ending.REVOKED, 200, CUT, True, True, B, None, None),
    (Ending.REVOKED, 200, BEGUN, True, True, F, Code.INVALID_API_KEY, MID),
    (Ending.REVOKED, 200, CUT, True, False, F, Code.INVALID_API_KEY, UP),
    (Ending.REVOKED, 200, None, False, False, F, Code.INVALID_API_KEY, UP),
    (Ending.GATEWAY, 0, None, False, False, F, Code.INTERNAL_ERROR, GW),
    (Ending.GATEWAY, 200, WHOLE, True, True, F, Code.INTERNAL_ERROR, GW),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}-{row[5]}")
def test_table(row):
    ending, status, answer, streaming, relayed, outcome, code, stage = row
    verdict = judge(
        ending,
        status=status,
        answer=answer,
        streaming=streaming,
        relayed=relayed,
        text_bytes=4000,
    )
    assert (verdict.outcome, verdict.code, verdict.stage) == (outcome, code, stage)
    assert verdict.billed == (outcome in BILLED)
    if not verdict.billed:
        assert verdict.usage == {}
        assert not verdict.estimated


@pytest.mark.parametrize(
    ("told", "output_told", "billed"),
    [
        (TOLD, True, TOLD),
        ({}, True, {"input": 1000, "output": 100}),
        ({"input": 7}, True, {"input": 7, "output": 100}),
        ({"input": 7, "output": 1}, False, {"input": 7, "output": 100}),
        ({"output": 40}, True, {"input": 1000, "output": 40}),
        ({"cache_read": 7, "output": 40}, True, {"cache_read": 7, "output": 40}),
        ({"web_search": 2}, True, {"web_search": 2, "input": 1000, "output": 100}),
    ],
)
def test_what_the_upstream_left_out_or_told_as_zero_is_estimated(told, output_told, billed):
    class Told(ResponseFacts):
        @property
        def output_told(self):
            return output_told

    answer = Told(usage=told, finished=True, has_content=True, output_bytes=400)
    verdict = judge(
        Ending.ANSWERED, status=200, answer=answer, streaming=True, relayed=True, text_bytes=4000
    )
    assert verdict.usage == billed
    assert verdict.estimated == (billed != told)


def test_an_answer_without_output_is_whole_when_none_was_ordered():
    """`max_tokens: 0` fills Anthropic's prompt cache: the write is due."""
    told = {"input": 3, "cache_write_5m": 9000}
    answer = facts(usage=told, has_content=False, finish_reason="max_tokens", output_bytes=0)
    asked = {"status": 200, "answer": answer, "streaming": False, "relayed": False}
    verdict = judge(Ending.ANSWERED, **asked, text_bytes=4000, wants_output=False)
    assert (verdict.outcome, verdict.usage, verdict.estimated) == (C, told, False)
    assert not judge(Ending.ANSWERED, **asked, text_bytes=4000).billed


def test_the_table_names_every_ending():
    assert {row[0] for row in TABLE} == set(Ending)


ANSWERS = [None, WHOLE, SILENT, EMPTY, NO_REASON, UNTOLD, CUT, BEGUN, BAD]
STATUSES = [0, 200, 400, 429, 500]


@pytest.mark.parametrize("ending", Ending)
def test_no_combination_is_half_free(ending):
    for status, answer, streaming, relayed in itertools.product(
        STATUSES, ANSWERS, [False, True], [False, True]
    ):
        verdict = judge(
            ending,
            status=status,
            answer=answer,
            streaming=streaming,
            relayed=relayed,
            text_bytes=4000,
        )
        assert verdict.billed == (verdict.outcome in BILLED)
        assert (verdict.code is None) == (verdict.stage is None) == verdict.billed
        if verdict.billed:
            assert status in (0, 200)
            assert answer is not None
            assert not answer.error
            assert verdict.usage
        else:
            assert verdict.outcome in FREE


@pytest.mark.parametrize("code", Code)
def test_refusals_are_free_and_say_where(code):
    verdict = refused(code)
    assert (verdict.outcome, verdict.code) == (Outcome.REFUSED, code)
    places = {
        Code.NO_CAPACITY: Stage.ROUTING,
        Code.UNAVAILABLE: Stage.GATEWAY,
        Code.INTERNAL_ERROR: Stage.GATEWAY,
    }
    assert verdict.stage == places.get(code, Stage.ADMISSION)


# -- usage of answers that broke off


def billed_of(answer: Answer, *, text_bytes=4000, cache_share_ppm=0):
    verdict = judge(
        Ending.CLIENT_GONE,
        status=200,
        answer=answer,
        streaming=True,
        relayed=True,
        text_bytes=text_bytes,
        cache_share_ppm=cache_share_ppm,
    )
    assert verdict.outcome == Outcome.CLIENT_ABORTED
    return verdict.usage, verdict.estimated


def test_told_usage_counts_as_told():
    assert billed_of(CUT) == (TOLD, False)


def test_untold_usage_is_estimated_at_the_last_cache_share():
    answer = facts(usage=None, finished=False)
    assert billed_of(answer) == ({"input": 1000, "output": 100}, True)
    assert billed_of(answer, cache_share_ppm=750_000) == (
        {"input": 250, "cache_read": 750, "output": 100},
        True,
    )
    assert billed_of(answer, text_bytes=3)[0] == {"output": 100}


def scanned(dialect: str, stream: bytes, request: bytes) -> Answer:
    parsed = DIALECTS[dialect].parse_request(request, {})
    scan = DIALECTS[dialect].scan(parsed)
    scan.feed(stream)
    return scan


ANTHROPIC = b'{"model":"m","max_tokens":9,"stream":true,"messages":[{}]}'
CHAT = b'{"model":"m","stream":true,"messages":[{}]}'
RESPONSES = b'{"model":"m","stream":true,"input":"x"}'


def test_anthropic_tells_its_input_first_and_the_output_is_estimated():
    texts = ["x" * 80, "y" * 80]
    stream = streams.anthropic_stream(texts)
    half = stream[: stream.index(b"event: content_block_stop")]
    assert billed_of(scanned("anthropic", half, ANTHROPIC)) == (
        {
            "input": 12,
            "cache_read": 4000,
            "cache_write_5m": 100,
            "cache_write_1h": 200,
            "output": 40,
        },
        True,
    )
    told = stream[: stream.index(b"event: message_stop")]
    usage, estimated = billed_of(scanned("anthropic", told, ANTHROPIC))
    assert (usage["output"], estimated) == (40, False)


def test_anthropic_without_final_usage_is_estimated_although_whole():
    stream = streams.anthropic_stream(["x" * 80], usage={})
    verdict = judge(
        Ending.ANSWERED,
        status=200,
        answer=scanned("anthropic", stream, ANTHROPIC),
        streaming=True,
        relayed=True,
        text_bytes=4000,
    )
    assert verdict.outcome == Outcome.COMPLETED
    assert (verdict.usage["output"], verdict.estimated) == (20, True)


@pytest.mark.parametrize(
    ("dialect", "stream", "request_body", "end"),
    [
        ("chat", streams.chat_stream(["x" * 80]), CHAT, b'"finish_reason":"stop"'),
        (
            "responses",
            streams.responses_stream(["x" * 80]),
            RESPONSES,
            b"event: response.output_text.done",
        ),
    ],
)
def test_openai_tells_nothing_before_the_end(dialect, stream, request_body, end):
    half = stream[: stream.rindex(b"\n\n", 0, stream.index(end)) + 2]
    assert billed_of(scanned(dialect, half, request_body)) == ({"input": 1000, "output": 20}, True)
    whole, estimated = billed_of(scanned(dialect, stream, request_body))
    assert whole == {"input": 400, "cache_read": 600, "output": 40, "reasoning": 8}
    assert not estimated


def test_a_chat_stream_may_end_without_its_marker_but_not_break():
    stream = streams.chat_stream().removesuffix(streams.CHAT_DONE)
    answer = scanned("chat", stream, CHAT)
    ends = [Ending.ANSWERED, Ending.BROKEN, Ending.TIMEOUT]
    outcomes = [
        judge(end, status=200, answer=answer, streaming=True, relayed=True, text_bytes=9).outcome
        for end in ends
    ]
    assert outcomes == [Outcome.COMPLETED, Outcome.FAILED, Outcome.FAILED]


@pytest.mark.parametrize(
    ("dialect", "stream", "request_body"),
    [
        ("anthropic", streams.anthropic_stream(), ANTHROPIC),
        ("chat", streams.chat_stream(), CHAT),
        ("responses", streams.responses_stream(), RESPONSES),
    ],
)
def test_every_prefix_of_a_stream_is_free_or_whole(dialect, stream, request_body):
    """Wherever an upstream breaks off, nothing is due unless the client has the whole answer."""
    seen = set()
    for at in range(len(stream) + 1):
        answer = scanned(dialect, stream[:at], request_body)
        verdict = judge(
            Ending.BROKEN, status=200, answer=answer, streaming=True, relayed=True, text_bytes=9
        )
        seen.add(verdict.outcome)
        assert verdict.billed == answer.finished, at
        assert verdict.billed == (at == len(stream)), at
    assert seen == {Outcome.COMPLETED, Outcome.FAILED}
