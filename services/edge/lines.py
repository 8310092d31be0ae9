"""Lines of batches: requests of the batch service with the authority of the key that made them.

Such a request has a signed ticket instead of a key. It is admitted as any other, under the request
id of its try, once that try was taken: written down beside the line, so that whoever finds the line
without an answer knows who may have admitted it.
"""

from collections.abc import Mapping
from typing import Any, Final

from schemas.errors import Code
from services.backends.clock import Clock
from services.backends.line_ticket import Ticket
from services.backends.signed import NotAuthentic, Signer
from services.backends.sql.batch_lines import BatchLines
from services.backends.sql.engine import DatabaseUnavailable
from services.core.catalog import Key
from services.core.errors import Refusal
from services.edge.authenticate import authenticate_id
from services.edge.snapshot import Snapshots, View
from services.edge.threads import Threads

ENVIRON: Final = "HTTP_X_TOLLGATE_LINE"


class Lines:
    """One per worker, whose name is `incarnation`."""

    def __init__(
        self,
        tickets: Signer[Ticket],
        store: BatchLines,
        snapshots: Snapshots,
        threads: Threads,
        clock: Clock,
        incarnation: str,
    ) -> None:
        self._tickets = tickets
        self._store = store
        self._snapshots = snapshots
        self._threads = threads
        self._clock = clock
        self._incarnation = incarnation

    def ticket(self, environ: Mapping[str, Any]) -> Ticket:
        """The ticket of a request that has one, before its body is read: `require_body` must
        follow. Raises Refusal."""
        try:
            ticket = self._tickets.verify(environ[ENVIRON], self._clock.now_us())
            ticket.require_path(environ["PATH_INFO"])
            return ticket
        except NotAuthentic as ex:
            raise _not_good(ex) from ex

    def require_body(self, ticket: Ticket, body: bytes) -> None:
        """Raises Refusal unless the ticket is for that body."""
        try:
            ticket.require_body(body)
        except NotAuthentic as ex:
            raise _not_good(ex) from ex

    def caller(self, ticket: Ticket) -> tuple[View, Key]:
        """The current view and the live key that the line is for. From where the key may be used
        was checked when it made the batch. Raises Refusal."""
        return authenticate_id(self._snapshots, ticket.key_id, self._clock.now_us())

    def take(self, ticket: Ticket) -> None:
        """From now on this worker may admit the try, and nobody else. Raises Refusal."""
        call = (ticket.batch_id, ticket.line, ticket.try_no, self._incarnation)
        try:
            taken = self._threads.apply(self._store.take, call)
        except DatabaseUnavailable as ex:
            raise Refusal(Code.UNAVAILABLE, "the line cannot be taken now; try again") from ex
        if not taken:
            raise Refusal(Code.CONFLICT, "conflict: this line was taken or given up")


def _not_good(ex: NotAuthentic) -> Refusal:
    return Refusal(Code.INVALID_API_KEY, f"this ticket of a batch is not good: {ex}")
