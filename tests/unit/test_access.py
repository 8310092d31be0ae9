import pytest

from schemas.errors import Code
from services.core.access import allowed_models, check_model, credentials, pick_key
from services.core.catalog import Account, Channel, Group, Key, Snapshot
from services.core.errors import Refusal
from services.core.keys import sha256_hex
from services.core.prices import ModelPrice, PriceBook, PriceVersion
from services.core.routing import ModelIndex

NOW = 1_000_000


def model(name, *aliases, classes=("input", "output")):
    return ModelPrice(
        model=name,
        vendor="v",
        context_window=1,
        max_output_tokens=1,
        classes=dict.fromkeys(classes, 1),
        aliases=list(aliases),
    )


def key(secret, **fields):
    return Key(
        **{
            "id": f"key_{secret}",
            "account_id": "acct_1",
            "name": secret,
            "masked": "m",
            "secret_sha256": sha256_hex(secret),
            "group": "default",
            **fields,
        }
    )


def channel(name, models, groups):
    return Channel(
        name=name,
        dialect="chat",
        base_url="",
        credential="",
        models=dict.fromkeys(models, "x"),
        groups=groups,
    )


KEYS = [
    key("good"),
    key("other"),
    key("vip", group="vip"),
    key("revoked", status="revoked"),
    key("expired", expires_at=NOW),
    key("later", expires_at=NOW + 1),
    key("paused", account_id="acct_paused"),
    key("disabled", account_id="acct_disabled"),
    key("orphan", account_id="acct_none"),
    key("lost", group="gone"),
]
BOOK = PriceBook(
    models={
        m.model: m
        for m in (
            model("one", "uno"),
            model("two"),
            model("three"),
            model("idle"),
            model("half", classes=("input",)),
        )
    },
    multipliers_ppm={},
)
SNAPSHOT = Snapshot(
    version=1,
    accounts={
        "acct_1": Account(id="acct_1", name="a"),
        "acct_paused": Account(id="acct_paused", name="p", status="paused"),
        "acct_disabled": Account(id="acct_disabled", name="d", status="disabled"),
    },
    keys={one.secret_sha256: one for one in KEYS},
    groups={
        "default": Group(name="default", multiplier_ppm=1),
        "vip": Group(name="vip", multiplier_ppm=1, models=("one", "three")),
    },
    channels=(
        channel("c", ("one", "two", "half", "free"), ("default", "vip")),
        channel("v", ("three",), ("vip",)),
    ),
    prices=PriceVersion(id="pv", effective_at=0, book=BOOK),
)
INDEX = ModelIndex(BOOK)


def test_credentials_in_order_of_precedence():
    headers = {"x-api-key": " a ", "authorization": "bearer b", "x-goog-api-key": "c"}
    assert credentials(headers, {"key": "d"}) == ["a", "b", "c", "d"]
    assert credentials({"authorization": "Basic b"}, {}) == []
    assert credentials({"x-api-key": "a", "authorization": "Bearer a"}, {}) == ["a"]
    assert credentials({"x-api-key": "", "authorization": "Bearer"}, {}) == []
    assert credentials({"x-api-key": "x" * 513}, {}) == []


def test_the_first_live_key_is_used():
    assert pick_key(SNAPSHOT, ["good", "other"], NOW).name == "good"
    assert pick_key(SNAPSHOT, ["other", "good"], NOW).name == "other"
    assert pick_key(SNAPSHOT, ["unknown", "revoked", "good"], NOW).name == "good"
    assert pick_key(SNAPSHOT, ["later"], NOW).name == "later"


@pytest.mark.parametrize(
    ("offered", "code", "word"),
    [
        ([], Code.INVALID_API_KEY, "missing"),
        (["unknown"], Code.INVALID_API_KEY, "invalid x-api-key"),
        (["revoked", "unknown"], Code.INVALID_API_KEY, "revoked"),
        (["expired"], Code.INVALID_API_KEY, "expired"),
        (["disabled"], Code.INVALID_API_KEY, "disabled"),
        (["orphan"], Code.INVALID_API_KEY, "disabled"),
        (["paused"], Code.PERMISSION_DENIED, "permission_denied"),
    ],
)
def test_why_a_key_is_refused(offered, code, word):
    with pytest.raises(Refusal, match=word) as caught:
        pick_key(SNAPSHOT, offered, NOW)
    assert caught.value.code is code
    assert all(secret not in caught.value.message for secret in offered if secret == "unknown")


def check(secret, asked):
    return check_model(SNAPSHOT, INDEX, pick_key(SNAPSHOT, [secret], NOW), asked)


def test_models_that_a_key_may_use():
    assert check("good", "one").model == "one"
    assert check("good", "uno").model == "one"
    assert check("vip", "three").model == "three"


@pytest.mark.parametrize(
    ("secret", "asked", "code"),
    [
        ("good", "nobody", Code.MODEL_NOT_FOUND),
        ("good", "idle", Code.MODEL_NOT_FOUND),
        ("good", "three", Code.MODEL_NOT_IN_GROUP),
        ("vip", "two", Code.MODEL_NOT_IN_GROUP),
        ("lost", "one", Code.MODEL_NOT_IN_GROUP),
        ("good", "free", Code.MODEL_WITHOUT_PRICE),
        ("good", "half", Code.MODEL_WITHOUT_PRICE),
    ],
)
def test_models_that_a_key_may_not_use(secret, asked, code):
    with pytest.raises(Refusal) as caught:
        check(secret, asked)
    assert caught.value.code is code
    assert caught.value.message.startswith(code.value)
    assert caught.value.param == "model"


def test_a_long_name_is_shown_short():
    with pytest.raises(Refusal) as caught:
        check("good", "x" * 100_000)
    assert len(caught.value.message) < 300


def test_the_list_holds_exactly_what_is_allowed():
    for secret in ("good", "vip", "lost"):
        used = pick_key(SNAPSHOT, [secret], NOW)
        listed = {one.model for one in allowed_models(SNAPSHOT, INDEX, used)}
        allowed = set()
        for name in BOOK.models:
            try:
                allowed.add(check(secret, name).model)
            except Refusal:
                continue
        assert listed == allowed
    assert [m.model for m in allowed_models(SNAPSHOT, INDEX, KEYS[0])] == ["one", "two"]
