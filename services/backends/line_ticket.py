"""The credential of one line of a batch: made by the batch service, verified by the edge.

The header value is `<base64url JSON>.<hex HMAC-SHA256 of that base64url text>` under a key derived
from the secret of the data folder. It is good for one try of one line, with this body, on this
path, and for seconds; the edge admits a try once (`sql/batch_lines.take`). No key's secret is
needed, and none is stored.
"""

import base64
import hashlib
import hmac
from typing import Final

import msgspec

HEADER: Final = "x-tollgate-line"
LIFETIME_US: Final = 60 * 1_000_000
_KEY: Final = b"tollgate batch lines"
_MAX_CHARS: Final = 2048


class Ticket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`exp` microseconds, UTC; `body_sha256` hex."""

    batch_id: str
    line: int
    try_no: int
    request_id: str
    key_id: str
    path: str
    body_sha256: str
    exp: int

    def require_body(self, body: bytes) -> None:
        """Raises NotATicket unless it is for a request of `body`."""
        if self.body_sha256 != hashlib.sha256(body).hexdigest():
            raise NotATicket("it is for another request")


class NotATicket(Exception):
    """The header is malformed, forged, over, or for another request."""


class Tickets:
    """Signs and verifies, with the secret of the data folder."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.new(secret, _KEY, hashlib.sha256).digest()
        self._decoder = msgspec.json.Decoder(Ticket)

    def sign(self, ticket: Ticket) -> str:
        """The header value."""
        body = base64.urlsafe_b64encode(msgspec.json.encode(ticket)).rstrip(b"=")
        return f"{body.decode()}.{self._mac(body)}"

    def verify(self, header: str, path: str, now_us: int) -> Ticket:
        """The ticket in `header` for a request to `path`, before its body is read. Raises
        NotATicket."""
        if len(header) > _MAX_CHARS or not header.isascii():
            raise NotATicket("it is malformed")
        text, _, mac = header.encode().partition(b".")
        if not hmac.compare_digest(self._mac(text).encode(), mac):
            raise NotATicket("the signature is wrong")
        try:
            found = self._decoder.decode(base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4)))
        except (ValueError, msgspec.DecodeError) as ex:
            raise NotATicket("it is malformed") from ex
        if found.exp <= now_us:
            raise NotATicket("it has expired")
        if found.path != path:
            raise NotATicket("it is for another request")
        return found

    def _mac(self, text: bytes) -> str:
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
