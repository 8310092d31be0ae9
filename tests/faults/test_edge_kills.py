"""kill -9 of an edge worker at each point of a request: what was not finished is free, what was
finished is billed once, and the books agree afterwards. On the embedded default and on
Kafka + PostgreSQL."""

import json
import time

import pytest
import requests

POINTS = {
    # crash point -> (outcome of the request's terminal, None when there is no trace of it)
    "edge.before_request": None,
    "edge.after_request": "abandoned",
    "edge.mid_stream": "abandoned",
    "edge.before_terminal": "abandoned",
    "edge.after_terminal": "completed",
}


def ask(stack, *, stream: bool, model: str = "claude-haiku-4-5") -> requests.Response | None:
    """One request; None when the worker died under it."""
    body = {
        "model": model,
        "max_tokens": 64,
        "stream": stream,
        "messages": [{"role": "user", "content": "kill me"}],
    }
    try:
        return requests.post(
            f"{stack.base_url}/v1/messages",
            json=body,
            headers={"x-api-key": stack.api_key, "anthropic-version": "2023-06-01"},
            timeout=20,
        )
    except requests.RequestException:
        return None


def rows(stack) -> list[dict]:
    answer = requests.get(
        f"{stack.base_url}/v1/usage",
        params={"limit": 100},
        headers={"x-api-key": stack.api_key},
        timeout=10,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def wait_for(check, timeout_s: float = 20.0):
    deadline = time.monotonic() + timeout_s
    while True:
        found = check()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_worker_bills_only_what_was_finished(start_stack, tmp_path, point):
    mark = tmp_path / "crashed"
    stack = start_stack(env={"TOLLGATE_CRASH_AT": point, "TOLLGATE_CRASH_ONCE": str(mark)})
    ask(stack, stream=True)
    assert mark.exists(), "the worker did not pass the crash point"
    after = wait_for(lambda: ask(stack, stream=False))
    assert after is not None
    assert after.status_code == 200
    expected = [POINTS[point], "completed"]
    wanted = sorted(outcome for outcome in expected if outcome)
    wait_for(lambda: sorted(row["outcome"] for row in rows(stack)) == wanted)
    found = rows(stack)
    assert sorted(row["outcome"] for row in found) == wanted, json.dumps(found, indent=1)
    for row in found:
        assert (row["cost_nano"] > 0) == (row["outcome"] == "completed")
    assert stack.reconcile() == 0
    balance = requests.get(
        f"{stack.base_url}/v1/balance", headers={"x-api-key": stack.api_key}, timeout=10
    ).json()
    spent_nano = sum(row["cost_nano"] for row in found)
    assert round(balance["lifetime_spent_usd"] * 1e9) == spent_nano
