"""One request on its way through a worker: what is known of it so far."""

from collections.abc import Callable
from typing import Any

from schemas.errors import Code
from schemas.events import Attempt
from services.backends.line_ticket import Ticket
from services.core.catalog import Channel, Key
from services.core.dialects.base import Dialect, ParsedRequest
from services.core.holds import Bound
from services.core.money import credits_up
from services.core.outcomes import Answer
from services.core.prices import ModelPrice
from services.core.rates import Rule
from services.core.shortfalls import WindowLeft
from services.edge.lease import Reservation
from services.edge.rates import Permit
from services.edge.snapshot import View
from services.edge.upstream import Call
from services.edge.watch import ClientWatch


class Exchange:
    """Filled step by step; a field that a step has not reached yet holds its empty value."""

    __slots__ = (
        "answer",
        "attempts",
        "body",
        "bound",
        "call",
        "channel",
        "channels",
        "cut",
        "dialect",
        "environ",
        "headers",
        "hung_up",
        "key",
        "line",
        "parsed",
        "path",
        "permit",
        "price",
        "query",
        "rates",
        "refused",
        "relayed",
        "request_id",
        "requested",
        "reservation",
        "started_s",
        "started_us",
        "tags",
        "terminated",
        "ttfb_s",
        "upstream_model",
        "upstream_request_id",
        "upstream_status",
        "view",
        "watch",
        "window",
    )

    def __init__(
        self,
        request_id: str,
        dialect: Dialect,
        environ: dict[str, Any],
        headers: dict[str, str],
        started_s: float,
        started_us: int,
    ) -> None:
        self.request_id = request_id
        self.dialect = dialect
        self.environ = environ
        self.headers = headers
        self.path: str = environ["PATH_INFO"]
        self.query: str = environ.get("QUERY_STRING", "")
        self.started_s = started_s
        self.started_us = started_us
        self.view: View | None = None
        self.key: Key | None = None
        self.line: Ticket | None = None  # of a batch, which then sent the request
        self.body = b""
        self.parsed: ParsedRequest | None = None
        self.price: ModelPrice | None = None
        self.channels: list[Channel] = []
        self.channel: Channel | None = None
        self.upstream_model = ""
        self.upstream_request_id = ""
        self.upstream_status = 0
        self.answer: Answer | None = None  # what is known of the upstream's answer
        self.cut = ""  # why the gateway itself ended the running answer
        self.relayed = False  # a byte of it went to the client
        self.reservation: Reservation | None = None
        self.bound: Bound | None = None  # the most that it can cost
        self.rates: tuple[Rule, ...] = ()
        self.permit: Permit | None = None  # its place within them
        self.refused: Code | None = None
        self.window: WindowLeft | None = None  # the spend window that has no room for it
        self.attempts: list[Attempt] = []
        self.watch: ClientWatch | None = None
        self.call: Call | None = None
        self.hung_up: Callable[[], None] | None = None  # None: abort the call
        self.requested = False  # its `request` event is durable
        self.terminated = False  # its terminal event is durable
        self.ttfb_s = 0.0
        self.tags: dict[str, str] = {}

    def connected(self, call: Call) -> None:
        """The upstream connection exists: from now on a hang-up can end it."""
        self.call = call
        if self.cut or (self.watch is not None and self.watch.gone):
            call.abort()

    def on_gone(self) -> None:
        """The client hung up. Runs in the hub: must not block or raise."""
        if self.hung_up is not None:
            self.hung_up()
        elif self.call is not None:
            self.call.abort()

    @property
    def estimate_credits(self) -> int:
        """The most that the request can cost, in credits; 0 before that is known."""
        return credits_up(self.bound.whole_nano) if self.bound is not None else 0

    @property
    def tier(self) -> str:
        """The service tier that is priced: as the answer tells it, until then as asked for."""
        told = self.answer.tier if self.answer is not None else None
        if told is not None:
            return told
        return self.parsed.tier if self.parsed is not None else ""

    @property
    def client(self) -> str:
        """What called: the first product token of the user agent, at most 64 characters."""
        return self.headers.get("user-agent", "").split(" ", 1)[0][:64]

    @property
    def is_codex(self) -> bool:
        """Codex repeats 401, 402, 403 and 413 five times, so its refusals look different."""
        agent = self.headers.get("user-agent", "")
        return agent.startswith("codex") or self.headers.get("originator", "").startswith("codex")
