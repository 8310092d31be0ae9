"""Tells how a job ended: to the receiver that its client named, and to endpoints of its account,
which may ask for more than ends.

Signed by Standard Webhooks with the secret of the account or of the endpoint;
`X-Tollgate-Signature` is the HMAC of the raw body for receivers that want one line. An outage of a
receiver never touches a job, nor, for long, the callbacks of others.
"""

import base64
import hashlib
import hmac
import random
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final

import msgspec

from services.backends.sql.batches import Batches
from services.backends.sql.deliveries import Deliveries, Delivery
from services.backends.sql.endpoints import Endpoint, Endpoints
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import get_logger
from services.batch.batch_wire import batch_view
from services.batch.links import Links, LinkSigner
from services.batch.parts import Parts
from services.batch.receivers import Receivers, Told
from services.batch.wire import job_view, moment, task_view
from services.core.jobs import TERMINAL
from services.core.webhooks import delivered, next_delay_s

_POLL_S: Final = 0.5
_THREADS: Final = 8
_BOTH_US: Final = 86_400 * 1_000_000  # after a rotation the secret before signs as well


class CallbackSecrets:
    """The secrets of accounts and endpoints, derived, so that there is nothing to store."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.new(secret, b"tollgate callbacks", hashlib.sha256).digest()

    def of(self, name: str) -> str:
        """`whsec_` and base64: the secret of an account, by its id."""
        digest = hmac.new(self._key, name.encode(), hashlib.sha256).digest()
        return "whsec_" + base64.b64encode(digest).decode()

    def of_endpoint(self, endpoint: Endpoint, before: int = 0) -> str:
        """The present one, or the one so many rotations before."""
        return self.of(f"{endpoint.id}.{endpoint.secret_no - before}")

    def signing(self, endpoint: Endpoint, now_us: int) -> list[str]:
        """What signs now, the newest first."""
        rotated_at = endpoint.rotated_at
        both = rotated_at is not None and now_us < rotated_at + _BOTH_US
        return [self.of_endpoint(endpoint, before) for before in range(2 if both else 1)]


class Callbacks:
    """`run` is a loop of the process."""

    def __init__(
        self,
        parts: Parts,
        deliveries: Deliveries,
        endpoints: Endpoints,
        batches: Batches,
        receivers: Receivers,
        signer: LinkSigner,
        secrets: CallbackSecrets,
    ) -> None:
        self._parts = parts
        self._deliveries = deliveries
        self._endpoints = endpoints
        self._batches = batches
        self._receivers = receivers
        self._links = Links(signer, parts.config.artifacts.public_url)
        self._secrets = secrets
        self._log = get_logger()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        busy: set[Future[None]] = set()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="callback") as pool:
            while not stop.is_set():
                due = self._due(_THREADS - len(busy))
                busy |= {pool.submit(self._deliver, each) for each in due}
                if len(busy) == _THREADS:
                    wait(busy, _POLL_S, FIRST_COMPLETED)
                elif not due:
                    stop.wait(_POLL_S)
                busy = {each for each in busy if not each.done()}

    def _due(self, room: int) -> list[Delivery]:
        try:
            return self._deliveries.claim(room) if room else []
        except DatabaseUnavailable as ex:
            self._log.warning("callbacks_not_claimed", error=str(ex))
            return []

    def _deliver(self, held: Delivery) -> None:
        try:
            body = held.body or self._body(held)
            told = self._send(held, body.encode())
            wait_s = None
            if not delivered(told.status) and not told.over:
                wait_s = next_delay_s(held.tries + 1, random.random(), told.retry_after_s)
            self._deliveries.tried(held, body, told.status, told.message, wait_s)
        except DatabaseUnavailable as ex:
            self._log.warning("callback_not_written", delivery=held.id, error=str(ex))
        except Exception:  # claimed again in a minute
            self._log.exception("callback_failed", delivery=held.id)

    def _send(self, held: Delivery, body: bytes) -> Told:
        secrets = self._signing(held, self._parts.clock.now_us())
        if not secrets:
            return Told(0, "its endpoint was deleted", None, True)
        return self._receivers.send(held.url, secrets, held.id, body)

    def _signing(self, held: Delivery, now_us: int) -> list[str]:
        if held.endpoint_id is None:
            return [self._secrets.of(held.account_id)]
        found = self._endpoints.get(held.account_id, held.endpoint_id)
        return self._secrets.signing(found, now_us) if found else []

    def _body(self, held: Delivery) -> str:
        """What the job's own wire shows of it; endpoints get one shape for all jobs, and batches
        as OpenAI's API shows them. It tells what is so now: `type` is why it is told."""
        if held.batch_id:
            batch = self._batches.by_id(held.batch_id)
            assert batch is not None
            return _told(held, batch_view(batch))
        job = self._parts.jobs.get(held.job_id)
        assert job is not None
        artifacts = self._parts.jobs.artifacts([job.id]) if job.phase in TERMINAL else []
        if held.endpoint_id is None and job.source.startswith("/v1/tasks"):
            return msgspec.json.encode(task_view(job, artifacts, self._links)).decode()
        return _told(held, job_view(job, artifacts, self._links))


def _told(held: Delivery, data: dict[str, Any]) -> str:
    told = {"type": held.type, "timestamp": moment(held.created_at), "data": data}
    return msgspec.json.encode(told).decode()
