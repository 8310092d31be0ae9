"""Every ending of `tests/parts/failure_matrix.py`, through the whole program in every dialect: the
row of the request says who pays, the wallet agrees, and afterwards everything adds up."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.parts import stack as parts
from tests.parts.failure_matrix import BILLED, CASES
from tests.parts.fault_stack import FaultStack
from tests.parts.feature import wait_until
from tests.parts.ports import free_port
from tests.parts.wire import PATHS, Reply, request, text_body

MODELS = {"anthropic": "claude-haiku-4-5", "chat": "gpt-4o", "responses": "gpt-4o"}
QUICK = {"idle_timeout_s": 1.5, "first_byte_timeout_s": 1.0, "total_timeout_s": 2.0}
# A little more than the first slice of output at the models' prices.
ONE_SLICE_USD = {"anthropic": "0.0115", "chat": "0.022", "responses": "0.022"}
CONTENT = {
    "anthropic": b"text_delta",
    "chat": b'"delta":{"content"',
    "responses": b"event: response.output_text.delta",
}
MODES = ("stream", "whole")


def channels(sim_url):
    """Each case has channels of its own, so that none meets one that rests."""
    out = []
    for case in CASES:
        for mode in MODES:
            for dialect in PATHS:
                group = f"{case.name}-{mode}"
                one = {
                    "name": f"{group}-{dialect}",
                    "dialect": dialect,
                    "base_url": sim_url + (f"/fault/sim-{case.fault}" if case.fault else ""),
                    "models": [MODELS[dialect]],
                    "groups": [group],
                }
                patient = case.name.startswith(("gone", "revoked"))
                if case.fault.startswith(("stall", "hang")) and not patient:
                    one |= QUICK
                nowhere = {"base_url": f"http://127.0.0.1:{free_port()}"}
                if case.name == "failover":
                    out.append({**one, **nowhere, "name": f"{group}-{dialect}-a", "priority": 9})
                out.append(one | (nowhere if case.name == "closed" else {}))
    return out


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    running = FaultStack(tmp_path_factory.mktemp("matrix"))
    sections = {"edge": {"port": running.port, "ping_s": 0.5, "workers": 2}}
    parts.write_config(running.config_file, sections, channels(running.sim.base_url))
    try:
        running.start()
        yield running
        told = running.reconcile()
        assert told.exit_code == 0, told.text()
    finally:
        running.stop()


def usd_of(case, dialect):
    return {"poor": "0.000001", "budget": ONE_SLICE_USD[dialect]}.get(case.name, "1")


def ask(program, case, mode, dialect):
    """Sends one request and takes part in the case as its client; a key of its account."""
    account = program.new_account(usd_of(case, dialect))
    key = program.new_key(f"{case.name}-{mode}", account=account)
    long = case.name in ("budget", "gone-after") or (case.name, mode) == ("revoked", "stream")
    body = text_body(
        dialect,
        stream=mode == "stream",
        text="sim:words 6000" if long else "say hello",
        model="gpt-none" if case.name == "unpriced" else MODELS[dialect],
        **{
            "max_output_tokens" if dialect == "responses" else "max_tokens": 12_000 if long else 500
        },
    )
    head = f"POST {PATHS[dialect]} HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", program.port), timeout=30) as sock:
        sock.sendall(head.encode() + body)
        if case.name == "gone-before":
            time.sleep(0.3)
            return key
        if case.name.startswith("revoked"):
            return revoke(program, sock, key, account, CONTENT[dialect] if long else b"")
        try:
            reply = Reply(sock)
            for count, _ in enumerate(reply.reads()):
                if case.name == "gone-after" and count == 8:
                    break
        except ConnectionError:
            assert case.point  # the worker died
    return key


def revoke(program, sock, key, account, content):
    """Takes the key away once the request holds money and, of a stream, `content` has come; reads
    the answer to its end."""
    other = program.new_key(account=account)
    if not content:
        wait_until(lambda: program.get("/v1/balance", other)["available_usd"] < 1)
        program.revoke(key)
        Reply(sock).body()
        return other
    reads = Reply(sock).reads()
    got = b""
    while got.count(content) < 3:  # then it is silent for four seconds
        got += next(reads)[1]
    program.revoke(key)
    for _ in reads:
        pass
    return other


def check(program, case, mode, dialect, key):
    wanted = getattr(case, mode)
    row = program.wait_for_rows(1, key, timeout_s=40)[0]
    where = (case.name, mode, dialect, row)
    assert (row["outcome"], row["error_code"] or "") == wanted, where
    assert (row["cost_nano"] > 0) == (wanted[0] in BILLED), where
    if case.name in ("no-usage", "gone-after", "budget") or wanted[0] == "budget_cut":
        assert row["estimated"], where

    def spent_nano() -> int:
        return round(program.get("/v1/balance", key)["lifetime_spent_usd"] * 1e9)

    wait_until(lambda: spent_nano() == row["cost_nano"], told=lambda: (where, spent_nano()))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_who_pays(program, case):
    runs = [(m, d) for m in MODES if getattr(case, m) is not None for d in PATHS]
    if case.point:
        for mode, dialect in runs:
            program.order(case.point)
            key = ask(program, case, mode, dialect)
            assert not program.ordered(case.point)
            check(program, case, mode, dialect, key)
            program.wait_ready()
        return
    with ThreadPoolExecutor(len(runs)) as clients:
        keys = list(clients.map(lambda run: ask(program, case, *run), runs))
    for (mode, dialect), key in zip(runs, keys, strict=True):
        check(program, case, mode, dialect, key)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", list(PATHS))
def test_a_stream_that_its_budget_ends_is_a_valid_answer(program, dialect):
    """It ends as one that reached its output limit, within the wallet, and its upstream call is
    cancelled."""
    key = program.new_key("budget-stream", ONE_SLICE_USD[dialect])
    before = program.sim.last_id()
    limit = {"max_output_tokens" if dialect == "responses" else "max_tokens": 12_000}
    asked = {"text": "sim:words 6000", "model": MODELS[dialect], **limit}
    body = text_body(dialect, stream=True, **asked)
    reply = request(program.port, "POST", PATHS[dialect], key=key, body=body)
    end = reply.body()[-700:]
    assert reply.whole
    marks = {
        "anthropic": (b"content_block_stop", b'"stop_reason":"max_tokens"', b"message_stop"),
        "chat": (b'"finish_reason":"length"', b"data: [DONE]\n\n"),
        "responses": (b"event: response.incomplete\n", b'"reason":"max_output_tokens"'),
    }[dialect]
    places = [end.find(mark) for mark in marks]
    assert -1 not in places, end
    assert places == sorted(places), end
    wallet_credits = float(ONE_SLICE_USD[dialect]) * 1e6
    assert int(reply.header("x-estimated-credits")) > 3 * wallet_credits  # the whole bound
    row = program.wait_for_rows(1, key)[0]
    assert 0 < row["cost_nano"] <= float(ONE_SLICE_USD[dialect]) * 1e9
    assert row["output_tokens"] > 500
    assert program.sim.wait_for_calls(1, after=before)[0]["client_gone"]
