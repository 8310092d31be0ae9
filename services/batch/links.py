"""Links to artifacts that work without a key: signed, and over after a while.

`/a/<artifact>?e=<unix seconds>&k=<number>&s=<base64url HMAC-SHA256>`: the signature is of path,
expiry and number under the key of that number, which is derived from the secret of the data folder.
`artifacts.link_key` is the number that signs; raised by one, it makes a new key, and what the one
before has signed stays good until it is over. Raised again, it ends that at once.
"""

import base64
import hashlib
import hmac
from typing import Final, NamedTuple

from schemas.config import Artifacts
from services.backends.clock import Clock
from services.backends.sql.job_records import Artifact

_LINKS: Final = b"tollgate artifact links "
_CURSORS: Final = b"tollgate cursors"


class Link(NamedTuple):
    """`expires_at` microseconds."""

    url: str
    expires_at: int


class LinkSigner:
    """Signs and checks."""

    def __init__(self, secret: bytes, clock: Clock, config: Artifacts) -> None:
        self._clock = clock
        self._lifetime_s = config.url_lifetime_s
        self._number = str(config.link_key)
        # One ahead, too: of several processes that are started anew one by one, one is the first.
        near = range(config.link_key - 1, config.link_key + 2)
        self._keys = {str(number): _derived(secret, _LINKS + b"%d" % number) for number in near}
        self._cursor_key = _derived(secret, _CURSORS)

    def query(self, artifact: Artifact) -> tuple[str, int]:
        """The query string of a fresh link, and when it is over (seconds)."""
        now_s = self._clock.now_us() // 1_000_000
        until_s = min(now_s + self._lifetime_s, artifact.expires_at // 1_000_000)
        signature = self._mac(artifact.id, str(until_s), self._number)
        return f"e={until_s}&k={self._number}&s={signature}", until_s

    def is_good(self, artifact_id: str, until: str, number: str, signature: str) -> bool:
        """Whether a link was signed by us, with a key that is in use, and is not over."""
        if not until.isdecimal() or len(until) > 12 or not signature.isascii():
            return False
        if number not in self._keys:
            return False
        if not hmac.compare_digest(self._mac(artifact_id, until, number), signature):
            return False
        return self._clock.now_us() // 1_000_000 < int(until)

    def tag(self, text: str) -> str:
        """A short signature of a cursor."""
        return hmac.new(self._cursor_key, text.encode(), hashlib.sha256).hexdigest()[:16]

    def _mac(self, artifact_id: str, until: str, number: str) -> str:
        text = f"/a/{artifact_id}\n{until}\n{number}".encode()
        digest = hmac.new(self._keys[number], text, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Links:
    """Whole links below `base`: the public address, or the one that the request came to."""

    def __init__(self, signer: LinkSigner, base: str) -> None:
        self._signer = signer
        self._base = base.rstrip("/")

    def sign(self, artifact: Artifact) -> Link:
        """A fresh link."""
        query, until_s = self._signer.query(artifact)
        return Link(f"{self._base}/a/{artifact.id}?{query}", until_s * 1_000_000)


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return hmac.new(secret, purpose, hashlib.sha256).digest()
