import base64

import msgspec
import pytest

from services.backends.identity import LIFETIME_US, NotAuthentic, identity, sign, verify

SECRET = b"s" * 32
NOW_US = 1_790_000_000_000_000


def header(account_id="acct_1", now_us=NOW_US):
    return sign(SECRET, identity(account_id, "key_1", now_us))


def test_what_was_signed_is_read_back():
    found = verify(SECRET, header(), NOW_US)
    assert (found.account_id, found.key_id, found.is_operator) == ("acct_1", "key_1", False)
    assert verify(SECRET, header("*"), NOW_US).is_operator


def test_it_expires():
    assert verify(SECRET, header(), NOW_US + LIFETIME_US - 1)
    with pytest.raises(NotAuthentic, match="expired"):
        verify(SECRET, header(), NOW_US + LIFETIME_US)


def test_every_changed_byte_is_noticed():
    good = header()
    for at in range(len(good)):
        changed = good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :]
        with pytest.raises(NotAuthentic):
            verify(SECRET, changed, NOW_US)


def signed(body: bytes) -> str:
    """A value under the right secret around any body."""
    import hashlib
    import hmac

    text = base64.urlsafe_b64encode(body).rstrip(b"=")
    return f"{text.decode()}.{hmac.new(SECRET, text, hashlib.sha256).hexdigest()}"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        ".",
        "a.b",
        "é.b",
        "x" * 5000,
        sign(b"another secret", identity("acct_1", "", NOW_US)),
        signed(b"{"),
        signed(b"[]"),
        signed(msgspec.json.encode({"account_id": "acct_1"})),
        signed(msgspec.json.encode({"account_id": "", "exp": NOW_US * 2})),
        signed(msgspec.json.encode({"account_id": "a", "exp": NOW_US * 2, "more": 1})),
    ],
)
def test_anything_else_is_not_authentic(value):
    with pytest.raises(NotAuthentic):
        verify(SECRET, value, NOW_US)
