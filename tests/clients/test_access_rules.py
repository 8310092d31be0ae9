"""From where a key may be used and which models it may call, through the public door."""

import uuid

import pytest

from tests.parts.feature import make_key, wait_everywhere, wait_until
from tests.parts.stack import Stack, started
from tests.parts.wire import PATHS, Reply, post, request, text_body

MODEL, OTHER = "gpt-5-mini", "gpt-4o-mini"


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """Behind proxies on this host and in 10.0.0.0/8."""
    edge = {"trusted_proxies": ["127.0.0.1", "10.0.0.0/8", "2001:db8:ffff::/48"]}
    yield from started(Stack(tmp_path_factory.mktemp("proxied"), {"edge": edge}))


def ask(stack: Stack, key: str, forwarded: str = "", dialect: str = "chat", **more) -> Reply:
    headers = [("x-forwarded-for", forwarded)] if forwarded else []
    body = text_body(dialect, stream=False, **more)
    return request(stack.port, "POST", PATHS[dialect], key=key, headers=headers, body=body)


def error_of(reply: Reply) -> tuple[int, str, str]:
    error = reply.json()["error"]
    return reply.status, error.get("code", error["type"]), error["message"]


def new_org(stack: Stack) -> str:
    books = stack._open_books()
    org = books.catalog.create_account(f"org-{uuid.uuid4().hex[:8]}", "org").id
    books.wallets.move(org, "topup", 10**11, "", "test")
    return org


@pytest.mark.parametrize("dialect", list(PATHS))
def test_an_address_that_is_denied_or_not_allowed(stack, dialect):
    before = stack.sim.last_id()
    denied = make_key(stack, ip_deny=["127.0.0.0/8"])[1]
    not_allowed = make_key(stack, ip_allow=["192.0.2.0/24", "2001:db8::/32"])[1]
    for key, reason in (
        (denied, "127.0.0.1 is in 127.0.0.0/8 of this key's deny list"),
        (not_allowed, "127.0.0.1 is not in this key's allow list"),
    ):
        reply = ask(stack, key, dialect=dialect)
        body = reply.json()
        assert reply.status == 403
        assert body["error"]["message"] == f"permission_denied: {reason}"
        assert body["error"]["type"] == "permission_error"
        if dialect != "anthropic":
            assert body["error"]["code"] == "permission_denied"
        for path in ("/v1/models", "/v1/balance", "/api/v1/me/usage"):
            assert request(stack.port, "GET", path, key=key).status == 403
    assert stack.sim.calls(after=before) == []
    allowed = make_key(stack, ip_allow=["127.0.0.1"], ip_deny=["10.0.0.0/8"])[1]
    assert ask(stack, allowed, dialect=dialect).status == 200


def test_without_trusted_proxies_nobody_can_name_his_address(stack):
    allowed = make_key(stack, ip_allow=["192.0.2.0/24"])[1]
    assert ask(stack, allowed, "192.0.2.1").status == 403


@pytest.mark.parametrize(
    ("rules", "forwarded", "status"),
    [
        ({"ip_allow": ["192.0.2.0/24"]}, "192.0.2.7", 200),
        ({"ip_allow": ["192.0.2.0/24"]}, "192.0.2.7, 10.1.1.1", 200),
        ({"ip_allow": ["192.0.2.0/24"]}, "192.0.2.7, 198.51.100.1", 403),  # said by a stranger
        ({"ip_allow": ["192.0.2.0/24"]}, "", 403),
        ({"ip_allow": ["192.0.2.0/24"], "ip_deny": ["192.0.2.7"]}, "192.0.2.7", 403),
        ({"ip_deny": ["192.0.2.0/24"]}, "::ffff:192.0.2.7", 403),
        ({"ip_deny": ["192.0.2.0/24"]}, "203.0.113.1", 200),
        ({"ip_allow": ["2001:db8::/32"]}, "2001:db8:1::5", 200),
        ({"ip_allow": ["2001:db8::/32"]}, "[2001:db8:1::5]:443, 2001:db8:ffff::9", 200),
        ({"ip_allow": ["2001:db8::/32"]}, "2001:db9::5", 403),
        ({"ip_deny": ["2001:db8:5::/48"]}, "2001:db8:5::5", 403),
        ({"ip_deny": ["10.0.0.0/8"]}, "unknown", 403),
    ],
)
def test_the_client_behind_trusted_proxies_counts(proxied, rules, forwarded, status):
    key = make_key(proxied, **rules)[1]
    assert ask(proxied, key, forwarded).status == status


def test_a_sub_key_has_its_parents_address_rules(proxied):
    account = proxied.new_account()
    parent, _ = make_key(proxied, account=account, ip_allow=["192.0.2.0/24"])
    child = make_key(proxied, account=account, parent_id=parent.id)[1]
    assert ask(proxied, child, "192.0.2.7").status == 200
    assert ask(proxied, child, "198.51.100.1").status == 403
    proxied._open_books().catalog.update_key(parent.id, ip_deny=["192.0.2.7"])
    wait_until(lambda: ask(proxied, child, "192.0.2.7").status == 403)


def listed(stack: Stack, key: str) -> set[str]:
    reply = request(stack.port, "GET", "/v1/models", key=key)
    return {model["id"] for model in reply.json()["data"]}


def test_a_model_outside_the_keys_group_or_list(stack):
    account = stack.new_account()
    narrow = make_key(stack, account=account, group="narrow")[1]
    short = make_key(stack, account=account, models=[MODEL])[1]
    for key, where in ((narrow, "group 'narrow' of this key"), (short, "model list of this key")):
        assert listed(stack, key) == {MODEL}
        assert ask(stack, key, model=MODEL).status == 200
        status, code, message = error_of(ask(stack, key, model=OTHER))
        assert (status, code) == (403, "model_not_in_group")
        assert message.startswith("model_not_in_group: ")
        assert where in message
        reply = post(stack, "anthropic", key, stream=True)
        assert reply.status == 403
        assert reply.json()["error"]["type"] == "permission_error"
        one = request(stack.port, "GET", f"/v1/models/{OTHER}", key=key)
        assert one.status == 404


def test_a_list_may_name_a_model_with_dots(stack):
    key = make_key(stack, models=["claude-haiku-4.5"])[1]
    assert listed(stack, key) == {"claude-haiku-4-5"}
    assert post(stack, "anthropic", key, stream=False).status == 200


def test_a_sub_key_has_its_parents_models(stack):
    account = stack.new_account()
    parent, _ = make_key(stack, account=account, models=[MODEL, OTHER])
    child = make_key(stack, account=account, parent_id=parent.id)[1]
    assert listed(stack, child) == {MODEL, OTHER}
    stack._open_books().catalog.update_key(parent.id, models=[MODEL])
    wait_everywhere(lambda: ask(stack, child, model=OTHER).status == 403)
    assert listed(stack, child) == {MODEL}
    assert error_of(ask(stack, child, model=OTHER))[:2] == (403, "model_not_in_group")


def test_a_member_may_call_what_it_was_granted(stack):
    """A new member nothing, `*` everything of the key's group."""
    catalog, org = stack._open_books().catalog, new_org(stack)
    member = catalog.create_member(org, "someone")
    key = make_key(stack, account=org, member_id=member.id)[1]
    assert listed(stack, key) == set()
    status, code, message = error_of(ask(stack, key, model=MODEL))
    assert (status, code) == (403, "model_not_in_group")
    assert "this member was granted" in message
    catalog.update_member(member.id, models=[MODEL])
    wait_until(lambda: listed(stack, key) == {MODEL})
    wait_until(lambda: ask(stack, key, model=MODEL).status == 200)
    assert error_of(ask(stack, key, model=OTHER))[:2] == (403, "model_not_in_group")
    catalog.update_member(member.id, models=["*"])
    wait_until(lambda: ask(stack, key, model=OTHER).status == 200)
    wait_until(lambda: {MODEL, OTHER} < listed(stack, key))


def test_keys_of_a_disabled_member_are_dead(stack):
    catalog, org = stack._open_books().catalog, new_org(stack)
    member = catalog.create_member(org, "someone", models=["*"])
    key = make_key(stack, account=org, member_id=member.id)[1]
    assert ask(stack, key).status == 200
    catalog.update_member(member.id, status="disabled")
    wait_everywhere(lambda: ask(stack, key).status == 401)
    assert error_of(ask(stack, key))[1] == "invalid_api_key"


@pytest.mark.parametrize("dialect", list(PATHS))
def test_every_key_of_a_paused_org_is_refused(stack, dialect):
    catalog, org = stack._open_books().catalog, new_org(stack)
    keys = [make_key(stack, account=org)[1] for _ in range(2)]
    assert [ask(stack, key, dialect=dialect).status for key in keys] == [200, 200]
    catalog.update_account(org, status="paused")

    wait_everywhere(lambda: {ask(stack, key, dialect=dialect).status for key in keys} == {403})
    before = stack.sim.last_id()
    for key in keys:
        body = ask(stack, key, dialect=dialect).json()
        assert body["error"]["type"] == "permission_error"
        assert body["error"]["message"].startswith("permission_denied: the account of this API key")
        assert request(stack.port, "GET", "/v1/models", key=key).status == 403
    assert stack.sim.calls(after=before) == []
    catalog.update_account(org, status="active")
    wait_until(lambda: ask(stack, keys[0], dialect=dialect).status == 200)
