"""Stream tokens: they open the event streams of one job, for a few minutes, without its key.

A browser's EventSource cannot send headers, and a page must not hold a key: whoever has the key
asks for a token and hands it to the page. It names the key, whose end it shares, and not its
secret. From where the key may be used was checked when the token was made.
"""

from typing import Final

from schemas.errors import Code
from services.backends.clock import Clock
from services.backends.signed import NotAuthentic, Signer, Statement
from services.core.catalog import Key
from services.core.errors import Refusal
from services.edge.authenticate import authenticate_id
from services.edge.snapshot import Snapshots, View

PARAM: Final = "stream_token"
LIFETIME_US: Final = 300 * 1_000_000


class _Token(Statement, frozen=True, kw_only=True):
    """`job_id` without its prefix."""

    job_id: str
    key_id: str


class StreamTokens:
    """Makes and takes them, with the secret of the data folder; one per worker."""

    def __init__(self, secret: bytes, snapshots: Snapshots, clock: Clock) -> None:
        self._signer = Signer(secret, b"tollgate job streams", _Token)
        self._snapshots = snapshots
        self._clock = clock

    def make(self, job_id: str, key: Key) -> tuple[str, int]:
        """A fresh token for a job that the key may see, and when it is over (microseconds)."""
        until_us = self._clock.now_us() + LIFETIME_US
        token = _Token(job_id=job_id, key_id=key.id, exp=until_us)
        return self._signer.sign(token), until_us

    def caller(self, text: str, job_id: str) -> tuple[View, Key]:
        """The current view and the key on whose behalf `text` opens the streams of a job. Raises
        Refusal."""
        now_us = self._clock.now_us()
        try:
            token = self._signer.verify(text, now_us)
            if token.job_id != job_id:
                raise NotAuthentic("it is for another job")
        except NotAuthentic as ex:
            message = f"{PARAM}: this token is not good: {ex}"
            raise Refusal(Code.INVALID_API_KEY, message, param=PARAM) from ex
        return authenticate_id(self._snapshots, token.key_id, now_us)
