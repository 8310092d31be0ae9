"""Statements that one process signs and another believes.

The text is `<base64url JSON>.<hex HMAC-SHA256 of that base64url text>`. Every kind of statement has
a key of its own, derived by `purpose` from the secret of the data folder, so that none passes for
another. A statement is good for a while and stored nowhere.
"""

import base64
import hashlib
import hmac
from typing import Final, Generic, TypeVar

import msgspec

_MAX_CHARS: Final = 2048


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed. `exp`: when it is over, microseconds, UTC."""

    exp: int


class NotAuthentic(Exception):
    """The text is missing, malformed, forged, over, or says something else: answer 401."""


S = TypeVar("S", bound=Statement)


class Signer(Generic[S]):
    """Signs and verifies one kind of statement."""

    def __init__(self, secret: bytes, purpose: bytes, shape: type[S]) -> None:
        self._key = hmac.new(secret, purpose, hashlib.sha256).digest()
        self._decoder = msgspec.json.Decoder(shape)

    def sign(self, statement: S) -> str:
        """The text."""
        body = base64.urlsafe_b64encode(msgspec.json.encode(statement)).rstrip(b"=")
        return f"{body.decode()}.{self._mac(body)}"

    def verify(self, text: str | None, now_us: int) -> S:
        """The statement in `text`. Raises NotAuthentic."""
        if not text or len(text) > _MAX_CHARS or not text.isascii():
            raise NotAuthentic("it is missing or malformed")
        body, _, mac = text.encode().partition(b".")
        if not hmac.compare_digest(self._mac(body).encode(), mac):
            raise NotAuthentic("the signature is wrong")
        try:
            found = self._decoder.decode(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
        except (ValueError, msgspec.DecodeError) as ex:
            raise NotAuthentic("it is malformed") from ex
        if found.exp <= now_us:
            raise NotAuthentic("it has expired")
        return found

    def _mac(self, body: bytes) -> str:
        return hmac.new(self._key, body, hashlib.sha256).hexdigest()
