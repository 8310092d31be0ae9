"""Who may call and what a key may see, through the public door."""

import time

import pytest

from tests.parts.feature import (
    files,
    holders,
    make_key,
    processes,
    statuses,
    wait_everywhere,
)
from tests.parts.stack import UPSTREAM_SECRET
from tests.parts.wire import PATHS, request, text_body


@pytest.fixture(params=list(PATHS))
def dialect(request):
    return request.param


def call(stack, dialect, headers, query=""):
    body = text_body(dialect, stream=False)
    return request(stack.port, "POST", PATHS[dialect] + query, headers=headers, body=body)


def styles(secret):
    """style -> (headers, query)"""
    return {
        "x-api-key": ([("x-api-key", secret)], ""),
        "bearer": ([("authorization", f"Bearer {secret}")], ""),
        "x-goog-api-key": ([("x-goog-api-key", secret)], ""),
        "query": ([], f"?key={secret}"),
    }


@pytest.mark.parametrize("style", list(styles("")))
def test_every_credential_style_works_on_every_route(stack, style):
    headers, query = styles(stack.key())[style]
    for dialect in PATHS:
        assert call(stack, dialect, headers, query).status == 200
    for path in ("/v1/models", "/api/v1/me/account", "/v1/usage", "/v1/balance"):
        reply = request(stack.port, "GET", path + query, headers=headers)
        assert reply.status == 200, (path, reply.body())


def test_a_repeated_key_parameter_is_an_answer_and_no_crash(stack):
    secret = stack.key()
    for path in ("/v1/models", "/v1/usage", "/api/v1/me/account"):
        for query in (f"key={secret}&key={secret}", "key=x&key=y"):
            reply = request(stack.port, "GET", f"{path}?{query}")
            assert reply.status in (200, 400, 401), (path, query, reply.body())


@pytest.mark.parametrize("both_live", [True, False])
def test_x_api_key_wins_when_both_keys_live(stack, dialect, both_live):
    account = stack.new_account()
    first, first_secret = make_key(stack, account=account)
    second, second_secret = make_key(stack, account=account)
    if not both_live:
        stack._open_books().catalog.revoke_key(first.id)
        wait_everywhere(lambda: statuses(stack, first_secret) == {401})
    headers = [("authorization", f"Bearer {second_secret}"), ("x-api-key", first_secret)]
    reply = call(stack, dialect, headers)
    assert reply.status == 200, reply.body()
    row = stack.wait_for_row(reply.header("x-tollgate-request-id"), second_secret)
    assert row["api_key_id"] == (first if both_live else second).id


@pytest.mark.parametrize("case", ["missing", "malformed", "unknown", "revoked", "expired"])
def test_a_key_that_is_none_is_401_in_the_routes_envelope(stack, case):
    books = stack._open_books()
    key, secret = make_key(
        stack, expires_at=int(time.time() * 1e6) - 1 if case == "expired" else None
    )
    if case == "revoked":  # a worker that saw the key while it lived knows within a second
        books.catalog.revoke_key(key.id)
        wait_everywhere(lambda: statuses(stack, secret) == {401})
    offered = {"missing": "", "malformed": "\t!!", "unknown": "sk-toll-" + "x" * 43}
    secret = offered.get(case, secret)
    headers = [("x-api-key", secret)] if secret else []
    before = stack.sim.last_id()
    told = []
    for dialect in PATHS:
        reply = call(stack, dialect, headers)
        error = reply.json()
        told.append(error["error"]["message"])
        assert reply.status == 401, error
        assert reply.header("x-estimated-credits") == "0"
        if dialect == "anthropic":
            assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")
        else:
            assert error["error"]["code"] == "invalid_api_key"
            assert set(error["error"]) == {"message", "type", "param", "code"}
    for path in ("/v1/models", "/v1/usage", "/v1/balance", "/api/v1/me/account"):
        reply = request(stack.port, "GET", path, headers=headers)
        assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key"), path
    assert stack.sim.calls(after=before) == []
    if case in ("missing", "revoked", "expired"):
        assert all(case in message for message in told), told
    assert not any(secret in message for message in told if secret)


def test_a_key_ends_when_its_time_is_over(stack):
    for lifetime_s in (2.0, 10.0):  # the first may be over before a busy machine has asked
        expires_at = int((time.time() + lifetime_s) * 1e6)
        _, secret = make_key(stack, expires_at=expires_at)
        status = call(stack, "chat", [("x-api-key", secret)]).status
        if time.time() * 1e6 < expires_at:
            break
    assert status == 200
    time.sleep(max(0.0, expires_at / 1e6 - time.time()) + 0.05)
    for _ in range(6):  # every worker at once, not after its next look at the catalog
        reply = call(stack, "chat", [("x-api-key", secret)])
        assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key")


def test_no_secret_is_in_a_log_in_ps_or_in_an_answer(stack):
    _, secret = make_key(stack)
    wrong = "sk-toll-" + "wrong" * 8
    answers = b""
    for headers, query in styles(secret).values():
        reply = call(stack, "chat", headers, query)
        answers += reply.raw_head + reply.body()
    for text in (secret, wrong):
        for path in (f"/v1/models?key={text}", f"/nowhere?key={text}", "/v1/usage?limit=x"):
            reply = request(stack.port, "GET", path, key=text)
            answers += reply.raw_head + reply.body()
        bad = call(stack, "anthropic", [("authorization", f"Bearer {text}x")], f"?key={text}y")
        answers += bad.raw_head + bad.body()
    time.sleep(0.3)
    commands = "\n".join(" ".join(process.cmdline()) for process in processes(stack))
    logs = files(stack, ".log")
    assert len(logs) > 3
    for text in (secret, wrong, UPSTREAM_SECRET):
        assert text.encode() not in answers
        assert text not in commands
        assert holders(stack, text) == []


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_openai_organization_and_project_are_taken_and_ignored(stack, dialect):
    headers = [
        ("x-api-key", stack.key()),
        ("openai-organization", "org-of-the-client"),
        ("openai-project", "proj-of-the-client"),
    ]
    reply = call(stack, dialect, headers)
    assert reply.status == 200, reply.body()
    sent = dict(stack.sim.call_of(reply)["headers"])
    assert not {"openai-organization", "openai-project"} & set(sent)
    assert not {"openai-organization", "openai-project"} & {name for name, _ in reply.headers}


def ids(stack, query="", key="", **headers):
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    path = f"/v1/models{query}"
    reply = request(stack.port, "GET", path, key=key or stack.key(), headers=fields)
    assert reply.status == 200, reply.body()
    return [row["id"] for row in reply.json()["data"]]


def test_the_models_of_a_key_by_capability_and_family(stack):
    listed = request(stack.port, "GET", "/v1/models", key=stack.key()).json()["data"]
    fields = {
        "id", "object", "owned_by", "family", "capabilities", "context_window",
        "max_output_tokens", "input_modalities", "output_modalities", "pricing_url", "created",
    }  # fmt: skip
    assert all(set(row) == fields for row in listed)
    assert {row["family"] for row in listed} == {"anthropic", "openai"}
    by_id = {row["id"]: row for row in listed}
    for family in ("anthropic", "openai", "google"):
        wanted = [name for name, row in by_id.items() if row["family"] == family]
        assert ids(stack, f"?family={family}") == wanted
    tags = sorted({tag for row in listed for tag in row["capabilities"]})
    assert len(tags) > 3
    for one in tags:
        for two in tags:
            wanted = [n for n, row in by_id.items() if {one, two} <= set(row["capabilities"])]
            assert ids(stack, f"?capability={one}&capability={two}") == wanted
    assert ids(stack, "?capability=thinking&capability=none-such") == []
    claude = ids(stack, "?family=anthropic&limit=1000", anthropic_version="2023-06-01")
    assert claude == ids(stack, "?family=anthropic")


def test_the_list_is_scoped_to_the_keys_group(stack):
    """What is not listed is refused: 403 for what other groups have, 404 for what nobody has."""
    secret = stack.key("narrow")
    assert ids(stack, key=secret) == ["gpt-5-mini"]
    assert ids(stack, key=secret, anthropic_version="2023-06-01") == ["gpt-5-mini"]
    one = request(stack.port, "GET", "/v1/models/gpt-5-mini", key=secret)
    assert (one.status, one.json()["id"]) == (200, "gpt-5-mini")
    for caller, word in (
        ([], "model_not_found"),
        ([("anthropic-version", "x")], "not_found_error"),
    ):
        reply = request(stack.port, "GET", "/v1/models/gpt-4o", key=secret, headers=caller)
        error = reply.json()["error"]
        assert (reply.status, error.get("code") or error["type"]) == (404, word)
    before = stack.sim.last_id()
    for model, status, code in (
        ("gpt-4o", 403, "model_not_in_group"),
        ("gpt-none", 404, "model_not_found"),
    ):
        for dialect in PATHS:
            body = text_body(dialect, stream=True, model=model)
            reply = request(stack.port, "POST", PATHS[dialect], key=secret, body=body)
            error = reply.json()["error"]
            assert (reply.status, error["message"].split(":")[0]) == (status, code)
            kinds = {403: "permission_error", 404: "not_found_error"}
            told = error["type"] if dialect == "anthropic" else error["code"]
            assert told == (kinds[status] if dialect == "anthropic" else code)
    assert stack.sim.calls(after=before) == []
