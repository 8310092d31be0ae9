"""Who a forwarded call is for: signed by the edge, verified by the process that answers it.

The header value is `<base64url JSON>.<hex HMAC-SHA256 of that base64url text>` under the secret of
the data folder. It is good for seconds, never stored, never shown to a client.
"""

import base64
import hashlib
import hmac
from typing import Final

import msgspec

HEADER: Final = "x-tollgate-identity"
OPERATOR: Final = "*"
LIFETIME_US: Final = 60 * 1_000_000
_MAX_CHARS: Final = 2048


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The authenticated caller. `account_id` `*` is the operator; `exp` microseconds, UTC."""

    account_id: str
    exp: int
    key_id: str = ""

    @property
    def is_operator(self) -> bool:
        return self.account_id == OPERATOR


class NotAuthentic(Exception):
    """The header is missing, malformed, forged or expired: answer 401."""


_decoder = msgspec.json.Decoder(Identity)


def identity(account_id: str, key_id: str, now_us: int) -> Identity:
    """An identity good for a minute from `now_us`."""
    return Identity(account_id=account_id, key_id=key_id, exp=now_us + LIFETIME_US)


def sign(secret: bytes, identity: Identity) -> str:
    """The header value for `identity`."""
    body = base64.urlsafe_b64encode(msgspec.json.encode(identity)).rstrip(b"=")
    return f"{body.decode()}.{_mac(secret, body)}"


def verify(secret: bytes, header: str | None, now_us: int) -> Identity:
    """The identity in `header`. Raises NotAuthentic."""
    if not header or len(header) > _MAX_CHARS or not header.isascii():
        raise NotAuthentic("no identity")
    body, _, mac = header.encode().partition(b".")
    if not hmac.compare_digest(_mac(secret, body).encode(), mac):
        raise NotAuthentic("the signature is wrong")
    try:
        found = _decoder.decode(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    except (ValueError, msgspec.DecodeError) as ex:
        raise NotAuthentic("the identity is malformed") from ex
    if not found.account_id:
        raise NotAuthentic("the identity names no account")
    if found.exp <= now_us:
        raise NotAuthentic("the identity has expired")
    return found


def _mac(secret: bytes, body: bytes) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()
