"""Links to artifacts that work without a key: signed, and over after a while.

`/a/<artifact>?e=<unix seconds>&s=<base64url HMAC-SHA256 of path and expiry>` under a key derived
from the secret of the data folder.
"""

import base64
import hashlib
import hmac
from typing import NamedTuple

from services.backends.clock import Clock
from services.backends.sql.job_records import Artifact

_KEY = b"tollgate artifact links"


class Link(NamedTuple):
    """`expires_at` microseconds."""

    url: str
    expires_at: int


class LinkSigner:
    """Signs and checks."""

    def __init__(self, secret: bytes, clock: Clock, lifetime_s: int) -> None:
        self._key = hmac.new(secret, _KEY, hashlib.sha256).digest()
        self._clock = clock
        self._lifetime_s = lifetime_s

    def query(self, artifact: Artifact) -> tuple[str, int]:
        """The query string of a fresh link, and when it is over (seconds)."""
        now_s = self._clock.now_us() // 1_000_000
        until_s = min(now_s + self._lifetime_s, artifact.expires_at // 1_000_000)
        return f"e={until_s}&s={self._mac(artifact.id, str(until_s))}", until_s

    def is_good(self, artifact_id: str, until: str, signature: str) -> bool:
        """Whether a link was signed by us and is not over."""
        if not until.isdecimal() or len(until) > 12 or not signature.isascii():
            return False
        if not hmac.compare_digest(self._mac(artifact_id, until), signature):
            return False
        return self._clock.now_us() // 1_000_000 < int(until)

    def tag(self, text: str) -> str:
        """A short signature of a cursor."""
        return hmac.new(self._key, f"cursor\n{text}".encode(), hashlib.sha256).hexdigest()[:16]

    def _mac(self, artifact_id: str, until: str) -> str:
        text = f"/a/{artifact_id}\n{until}".encode()
        digest = hmac.new(self._key, text, hashlib.sha256).digest()
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
