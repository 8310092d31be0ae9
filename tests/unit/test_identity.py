import base64
import hashlib
import hmac

import msgspec
import pytest

from services.backends.identity import LIFETIME_US, identities, identity
from services.backends.line_ticket import Ticket, tickets
from services.backends.signed import NotAuthentic

SECRET = b"s" * 32
SIGNER = identities(SECRET)
NOW_US = 1_790_000_000_000_000
TICKET = Ticket(
    batch_id="A",
    line=1,
    try_no=1,
    request_id="r",
    key_id="key_1",
    path="/v1/embeddings",
    body_sha256="",
    exp=2**60,
)


def header(account_id="acct_1", now_us=NOW_US):
    return SIGNER.sign(identity(account_id, "key_1", now_us))


def test_what_was_signed_is_read_back():
    found = SIGNER.verify(header(), NOW_US)
    assert (found.account_id, found.key_id, found.is_operator) == ("acct_1", "key_1", False)
    assert SIGNER.verify(header("*"), NOW_US).is_operator


def test_it_expires():
    assert SIGNER.verify(header(), NOW_US + LIFETIME_US - 1)
    with pytest.raises(NotAuthentic, match="expired"):
        SIGNER.verify(header(), NOW_US + LIFETIME_US)


def test_every_changed_byte_is_noticed():
    good = header()
    for at in range(len(good)):
        changed = good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :]
        with pytest.raises(NotAuthentic):
            SIGNER.verify(changed, NOW_US)


def signed(body: bytes) -> str:
    """A value under the right secret around any body."""
    key = hmac.new(SECRET, b"tollgate identities", hashlib.sha256).digest()
    text = base64.urlsafe_b64encode(body).rstrip(b"=")
    return f"{text.decode()}.{hmac.new(key, text, hashlib.sha256).hexdigest()}"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        ".",
        "a.b",
        "é.b",
        "x" * 5000,
        tickets(SECRET).sign(TICKET),
        identities(b"another secret").sign(identity("acct_1", "", NOW_US)),
        signed(b"{"),
        signed(b"[]"),
        signed(msgspec.json.encode({"account_id": "acct_1"})),
        signed(msgspec.json.encode({"account_id": "", "exp": NOW_US * 2})),
        signed(msgspec.json.encode({"account_id": "a", "exp": NOW_US * 2, "more": 1})),
    ],
)
def test_anything_else_is_not_authentic(value):
    with pytest.raises(NotAuthentic):
        SIGNER.verify(value, NOW_US)
