"""Sends signed messages to receivers that clients named."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from services.backends.clock import Clock
from services.backends.http.fetch import Fetcher, FetchFailed, FetchRefused
from services.backends.telemetry import get_logger
from services.core.upstream_words import client_text
from services.core.webhooks import (
    BODY_SIGNATURE_HEADER,
    body_signature,
    delivered,
    disables,
    headers,
)

_DEADLINE_S: Final = 15.0


class Told(NamedTuple):
    """What came of one try: the receiver's status (0: no answer), what went wrong, its wish for the
    next try, whether there is to be none."""

    status: int
    message: str
    retry_after_s: float | None
    over: bool


class Receivers:
    """Safe in threads."""

    def __init__(self, fetcher: Fetcher, clock: Clock) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._log = get_logger()

    def send(self, url: str, secrets: Sequence[str], message_id: str, body: bytes) -> Told:
        """One try. Signed with each of `secrets`, the newest first."""
        signed = {
            **headers(secrets, message_id, self._clock.now_us() // 1_000_000, body),
            BODY_SIGNATURE_HEADER: body_signature(secrets[0], body),
            "content-type": "application/json",
            "user-agent": "tollgate",
        }
        try:
            told = self._fetcher.send(url, body, headers=signed, deadline_s=_DEADLINE_S)
        except (FetchRefused, FetchFailed) as ex:
            self._log.info("callback_not_sent", message=message_id, error=str(ex))
            shown = client_text(str(ex), "it could not be reached")
            return Told(0, shown, None, isinstance(ex, FetchRefused))
        wish = told.headers.get("retry-after", "")
        message = "" if delivered(told.status) else told.body.decode("utf-8", "replace")
        retry_after_s = float(wish) if wish.isdecimal() else None
        return Told(told.status, message, retry_after_s, disables(told.status))
