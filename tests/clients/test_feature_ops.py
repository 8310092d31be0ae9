"""What an operator is promised: little added time, no prompt kept, blocks untouched."""

import json
import sqlite3
import statistics
import time

import pytest

from tests.parts.feature import files, holders, make_key, within
from tests.parts.wire import PATHS, post, request, text_body

SECRET_TEXT = "swordfish under the marmalade bridge"


def test_blocks_of_tools_caches_and_thinking_are_not_touched(stack):
    """Bytes up and bytes down, for a body with everything that Claude Code sends."""
    tool = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}
    cached = {"cache_control": {"type": "ephemeral"}}
    body = {
        "model": "claude-haiku-4-5",
        "max_tokens": 3000,
        "system": [{"type": "text", "text": "rules " * 300, **cached}],
        "tools": [tool, {"type": "web_search_20250305", "name": "web_search", "max_uses": 1}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "u-1"},
        "stop_sequences": ["\\u00e9"],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "first", **cached}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "sig+/="},
                    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"a": [1.0]}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}],
            },
        ],
    }
    for stream in (True, False):
        raw = json.dumps({**body, "stream": stream}, indent=1).encode()
        reply = request(stack.port, "POST", "/v1/messages", key=stack.key(), body=raw)
        got = reply.body()
        assert reply.status == 200, got
        echo = stack.sim.echo_of(reply)
        assert echo["body"] == raw
        assert echo["reply_body"] == got
        assert b'"type":"thinking"' in got.replace(b" ", b"")


@pytest.mark.parametrize("dialect", list(PATHS))
@pytest.mark.parametrize("stream", [True, False])
def test_the_gateway_adds_less_than_80_ms_at_the_median(stack, dialect, stream):
    key, body = stack.new_key(), text_body(dialect, stream=stream)

    def added_s() -> float:
        through, direct = [], []
        for _ in range(15):  # in turns, so that the machine's other work meets both
            for port, times in ((stack.sim.port, direct), (stack.port, through)):
                began = time.perf_counter()
                reply = request(port, "POST", PATHS[dialect], key=key, body=body)
                reads = reply.reads()
                next(reads)
                times.append(time.perf_counter() - began)
                assert reply.status == 200
                list(reads)
                assert reply.whole
                reply.close()
        return statistics.median(through) - statistics.median(direct)

    within(0.08, added_s)


def strings(rows) -> str:
    return "\n".join(json.dumps(row, default=str) for row in rows)


def every_row(path) -> str:
    """All values of all tables of an SQLite file, as text."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        names = [
            r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        found = [row for name in names for row in connection.execute(f'SELECT * FROM "{name}"')]
    return "\n".join(
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for row in found
        for value in row
    )


def test_no_text_of_a_prompt_or_an_answer_is_kept(stack):
    """Neither of billed nor of refused nor of failed requests; their ids are, so the search finds
    what is there."""
    account = stack.new_account()
    _, key = make_key(stack, account=account)
    ids = []
    for group in ("default", "fault-error-400", "fault-error-500", "fault-error-mid-stream"):
        _, secret = make_key(stack, account=account, group=group)
        for dialect in PATHS:
            reply = post(stack, dialect, secret, stream=True, text=SECRET_TEXT)
            reply.body()
            ids.append(reply.header("x-tollgate-request-id"))
    for broken in (
        f'{{"model": "gpt-5-mini", "messages": ["{SECRET_TEXT}"]}}',
        f'{{"model": "gpt-5-mini", "messages": [{{"role": "{SECRET_TEXT}"}}]}}',
        f'{{"model": "gpt-5-mini", "messages": "{SECRET_TEXT}", "stream": "{SECRET_TEXT}"}}',
        f'{{"model": "gpt-5-mini", {SECRET_TEXT}',
    ):
        for dialect, path in PATHS.items():
            body = broken.replace(
                "gpt-5-mini", "claude-haiku-4-5" if dialect == "anthropic" else "gpt-5-mini"
            )
            reply = request(stack.port, "POST", path, key=key, body=body.encode())
            reply.body()
            ids.append(reply.header("x-tollgate-request-id"))
    stack.wait_for_rows(len(ids), key)
    echoed = stack.sim.echo()
    assert echoed  # the provider did see calls

    kept = {
        "requests": strings(stack.sql(f"SELECT * FROM usage WHERE account_id = '{account}'")),
        "bus": every_row(stack.data_dir / "bus.db"),
        "sql": every_row(stack.data_dir / "tollgate.db"),
    }
    for name, text in kept.items():
        assert SECRET_TEXT not in text, name
    for request_id in ids:
        assert request_id in kept["requests"]
        assert request_id in kept["bus"]
    assert holders(stack, SECRET_TEXT) == []
    assert any(path.stat().st_size for path in files(stack, ".log"))


def test_what_an_upstream_says_of_an_error_is_not_kept(stack):
    """It may quote the prompt. The client gets the words, the event their type."""
    account = stack.new_account()
    for group in ("fault-200-error-body", "fault-error-mid-stream"):
        _, key = make_key(stack, account=account, group=group)
        for dialect in PATHS:
            for stream in (True, False) if "200" in group else (True,):
                reply = post(stack, dialect, key, stream=stream)
                words = reply.body()
                assert b"Overloaded" in words
    assert len(stack.wait_for_rows(9, key)) == 9
    query = f"SELECT DISTINCT error_message FROM usage WHERE account_id = '{account}'"
    told = [row["error_message"] for row in stack.sql(query)]
    assert all(text.startswith("the upstream told") for text in told), told
