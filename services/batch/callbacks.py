"""Tells the receiver that a client named with its job how the job ended.

Signed by Standard Webhooks with the account's secret; `X-Tollgate-Signature` is the HMAC of the raw
body for receivers that want one line. An outage of a receiver never touches a job.
"""

import base64
import hashlib
import hmac
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from services.backends.http.fetch import Fetcher, FetchFailed, FetchRefused
from services.backends.sql.deliveries import Deliveries, Delivery
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import get_logger
from services.batch.links import Links, LinkSigner
from services.batch.parts import Parts
from services.batch.wire import job_view, moment, task_view
from services.core.webhooks import (
    BODY_SIGNATURE_HEADER,
    body_signature,
    delivered,
    disables,
    headers,
    next_delay_s,
)

_POLL_S: Final = 0.5
_THREADS: Final = 4
_DEADLINE_S: Final = 15.0


class CallbackSecrets:
    """The secret of each account, derived, so that there is nothing to store."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.new(secret, b"tollgate callbacks", hashlib.sha256).digest()

    def of(self, account_id: str) -> str:
        """`whsec_` and base64."""
        digest = hmac.new(self._key, account_id.encode(), hashlib.sha256).digest()
        return "whsec_" + base64.b64encode(digest).decode()


class Callbacks:
    """`run` is a loop of the process."""

    def __init__(
        self,
        parts: Parts,
        deliveries: Deliveries,
        fetcher: Fetcher,
        signer: LinkSigner,
        secrets: CallbackSecrets,
    ) -> None:
        self._parts = parts
        self._deliveries = deliveries
        self._fetcher = fetcher
        self._links = Links(signer, parts.config.artifacts.public_url)
        self._secrets = secrets
        self._log = get_logger()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="callback") as pool:
            while not stop.is_set():
                try:
                    due = self._deliveries.claim(_THREADS)
                except DatabaseUnavailable as ex:
                    self._log.warning("callbacks_not_claimed", error=str(ex))
                    due = []
                list(pool.map(self._deliver, due))
                if not due:
                    stop.wait(_POLL_S)

    def _deliver(self, held: Delivery) -> None:
        try:
            body = held.body or self._body(held)
            status, message, retry_after_s, over = self._send(held, body.encode())
            wait_s = None
            if not delivered(status) and not over:
                wait_s = next_delay_s(held.tries + 1, random.random(), retry_after_s)
            self._deliveries.tried(held, body, status, message, wait_s)
        except DatabaseUnavailable as ex:
            self._log.warning("callback_not_written", delivery=held.id, error=str(ex))
        except Exception:  # claimed again in a minute
            self._log.exception("callback_failed", delivery=held.id)

    def _send(self, held: Delivery, body: bytes) -> tuple[int, str, float | None, bool]:
        """Status (0: no answer), what went wrong, the receiver's wish, whether it is over."""
        secret = self._secrets.of(held.account_id)
        now_s = self._parts.clock.now_us() // 1_000_000
        signed = {
            **headers([secret], held.id, now_s, body),
            BODY_SIGNATURE_HEADER: body_signature(secret, body),
            "content-type": "application/json",
            "user-agent": "tollgate",
        }
        try:
            told = self._fetcher.send(held.url, body, headers=signed, deadline_s=_DEADLINE_S)
        except FetchRefused as ex:
            return 0, str(ex), None, True
        except FetchFailed as ex:
            return 0, str(ex), None, False
        wish = told.headers.get("retry-after", "")
        message = "" if delivered(told.status) else told.body.decode("utf-8", "replace")
        retry_after_s = float(wish) if wish.isdecimal() else None
        return told.status, message, retry_after_s, disables(told.status)

    def _body(self, held: Delivery) -> str:
        """What the job's own wire shows of it."""
        job = self._parts.jobs.get(held.job_id)
        assert job is not None
        artifacts = self._parts.jobs.artifacts([job.id])
        if job.source.startswith("/v1/tasks"):
            return msgspec.json.encode(task_view(job, artifacts, self._links)).decode()
        told = {
            "type": held.type,
            "timestamp": moment(held.created_at),
            "data": job_view(job, artifacts, self._links),
        }
        return msgspec.json.encode(told).decode()
