"""Sends one line to the edge, as an ordinary request with the authority of the batch's key."""

import hashlib
import threading
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import msgspec

from services.backends.http.client import HttpClient, NoReply, NotConnected, Reply
from services.backends.lifecycle import crash_point
from services.backends.line_ticket import HEADER, LIFETIME_US, Ticket
from services.backends.objects.port import StoreUnavailable
from services.backends.signed import Signer
from services.backends.sql.batch_lines import BatchLines
from services.backends.sql.batch_records import Batch, Line, request_of
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import get_logger, metric
from services.batch.batch_input import body_at
from services.batch.batch_output import keep_answer
from services.batch.parts import Parts
from services.core.batches import LineState, is_worth_repeating

T = TypeVar("T")

_AGENT: Final = "tollgate-batch"
_PAUSE_S: Final = 1.0


class Sent(NamedTuple):
    """`done`: the line has its result. Else the batch goes slower: `wait_s` as the edge said."""

    done: bool
    wait_s: float = 0.0


class Sender:
    """Safe in threads. `edge_url` is where the edge listens."""

    def __init__(
        self,
        parts: Parts,
        lines: BatchLines,
        http: HttpClient,
        tickets: Signer[Ticket],
        edge_url: str,
    ) -> None:
        self._parts = parts
        self._lines = lines
        self._http = http
        self._tickets = tickets
        self._url = edge_url

    def send(self, held: Batch, line: Line, stop: threading.Event) -> Sent:
        """One line that is `sending`, to its result if it has one. A line whose answer did not come
        stays `sending`: what became of it is found out later."""
        crash_point("batch.line.sending")
        try:
            reply = self._call(held, line)
        except NotConnected:
            self._lines.back(line)
            return Sent(False)
        except NoReply as ex:
            get_logger().warning("line_without_reply", batch=held.id, line=line.no, error=str(ex))
            return Sent(False)
        crash_point("batch.line.answered")
        if is_worth_repeating(held.endpoint, reply.status, _code(reply)):
            self._lines.back(line)
            return Sent(False, reply.retry_after_s or 0.0)
        state = LineState.SUCCEEDED if reply.ok else LineState.ERRORED
        answer = _surely(lambda: keep_answer(self._parts, line, reply), stop)
        _surely(lambda: self._lines.end(line, state, status=reply.status, answer=answer), stop)
        metric("tollgate_batch_lines_total").labels(state.value).inc()
        crash_point("batch.line.committed")
        return Sent(True)

    def _call(self, held: Batch, line: Line) -> Reply:
        body = body_at(self._parts, held, line)
        ticket = Ticket(
            batch_id=held.id,
            line=line.no,
            try_no=line.try_no,
            request_id=request_of(held, line),
            key_id=held.key_id,
            path=held.endpoint,
            body_sha256=hashlib.sha256(body).hexdigest(),
            exp=self._parts.clock.now_us() + LIFETIME_US,
        )
        headers = msgspec.json.decode(held.headers, type=dict[str, str])
        headers |= {HEADER: self._tickets.sign(ticket), "user-agent": _AGENT}
        if held.endpoint == "/v1/embeddings":  # a job: made once under this name
            headers["idempotency-key"] = f"batch-{held.id}-{line.no}"
        return self._http.call(
            "POST",
            self._url + held.endpoint,
            headers=headers,
            json=msgspec.Raw(body),
            timeout_s=self._parts.config.batch.line_timeout_s,
        )

    def abort(self) -> None:
        """Ends every call under way."""
        self._http.abort()


def _surely(step: Callable[[], T], stop: threading.Event) -> T:
    """An answer that came is not let go because it cannot be written down at the moment."""
    while True:
        try:
            return step()
        except (DatabaseUnavailable, StoreUnavailable) as ex:
            if stop.is_set():
                raise
            get_logger().warning("answer_not_written", error=str(ex))
            stop.wait(_PAUSE_S)


def _code(reply: Reply) -> str:
    told = reply.json() if not reply.ok else None
    error = told.get("error") if isinstance(told, dict) else None
    return str(error.get("code")) if isinstance(error, dict) else ""
