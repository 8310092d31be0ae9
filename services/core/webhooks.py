"""How a webhook is signed and when it is sent again (Standard Webhooks 1.0.0).

The signed text is message id, timestamp and raw body joined by full stops; the signature is
`v1,` and the base64 of its HMAC-SHA256. While a secret is being changed, each one signs. Requests
for a `callback_url` carry the hex HMAC-SHA256 of the raw body as well, `X-Tollgate-Signature`.
"""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping
from typing import Final

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"
BODY_SIGNATURE_HEADER: Final = "x-tollgate-signature"
TOLERANCE_S: Final = 300
ENDS: Final = ("job.completed", "job.failed", "job.cancelled", "job.expired")
TEST: Final = "webhook.test"
PROGRESS: Final = "job.progress"
EXPIRING: Final = "artifact.expiring"
EVENTS: Final = (
    *ENDS,  # what an endpoint is told that does not choose
    "job.queued",
    "job.running",
    PROGRESS,
    EXPIRING,
    "batch.completed",
    "batch.failed",
    "batch.cancelled",
    "batch.expired",
)
# Between an attempt and the next: the schedule of the standard.
RETRY_DELAYS_S: Final = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
_JITTER: Final = 0.1
_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32
_SECRET_BYTES_RANGE: Final = range(24, 65)  # the standard's
_DISABLES: Final = 410
_RETRY_AFTER_MAX_S: Final = 86_400


class BadSecret(ValueError):
    """Not `whsec_` and the base64 of 24 to 64 bytes."""


def new_secret() -> str:
    """A secret to be shown once."""
    return _PREFIX + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def secret_bytes(secret: str) -> bytes:
    """The key in a secret. Raises BadSecret."""
    try:
        key = b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (NotBase64, ValueError) as error:
        raise BadSecret("a secret is whsec_ and base64") from error
    if not secret.startswith(_PREFIX) or len(key) not in _SECRET_BYTES_RANGE:
        raise BadSecret("a secret is whsec_ and the base64 of 24 to 64 bytes")
    return key


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """`v1,...` of one secret. Raises BadSecret."""
    text = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + b64encode(hmac.digest(secret_bytes(secret), text, "sha256")).decode()


def headers(
    secrets_now: Iterable[str], message_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """The headers of one attempt; `message_id` is the same in all of them, `timestamp_s` is not.
    Raises BadSecret."""
    signatures = [sign(secret, message_id, timestamp_s, body) for secret in secrets_now]
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp_s),
        SIGNATURE_HEADER: " ".join(signatures),
    }


def verify(
    secret: str, given: Mapping[str, str], body: bytes, now_s: int, tolerance_s: int = TOLERANCE_S
) -> bool:
    """Whether a message with these headers (lower-case names) was signed with `secret` and is at
    most `tolerance_s` away from now. Raises BadSecret."""
    message_id, told = given.get(ID_HEADER, ""), given.get(TIMESTAMP_HEADER, "")
    if not message_id or not told.isascii() or not told.isdecimal() or len(told) > 12:
        return False
    if abs(now_s - int(told)) > tolerance_s:
        return False
    expected = sign(secret, message_id, int(told), body).encode()
    signatures = given.get(SIGNATURE_HEADER, "").encode().split(b" ")
    return any(hmac.compare_digest(expected, each) for each in signatures)


def body_signature(secret: str, body: bytes) -> str:
    """Hex HMAC-SHA256 of the raw body with the text of the secret as the key, as receivers of
    `X-Tollgate-Signature` compute it in one line."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def delivered(status: int) -> bool:
    """2xx only: a redirect is not followed and does not count."""
    return 200 <= status < 300


def disables(status: int) -> bool:
    """The receiver says that it is gone for good."""
    return status == _DISABLES


def next_delay_s(attempts: int, chance: float, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next attempt after `attempts` failed ones; None when there is no more.

    `chance` in [0, 1) spreads what failed together; the receiver's own wish can only make it
    later, by a day at most."""
    if not 0 < attempts <= len(RETRY_DELAYS_S):
        return None
    delay_s = RETRY_DELAYS_S[attempts - 1] * (1 + _JITTER * chance)
    return max(delay_s, min(retry_after_s or 0.0, _RETRY_AFTER_MAX_S))
