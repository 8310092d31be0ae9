"""What a provider adapter does: makes one generation at an upstream, follows and ends it.

An adapter knows one provider's wire shapes and nothing else: no database, no clock, no retries.
It is called from threads, one object serves all of them, so it keeps no state. Every call goes
through the `Http` it is given and every ending of it is one of the answers below; an exception
from an adapter is a bug (a reply of the wrong shape is `Later` on a poll, `Unclear` on a create).

A provider in ten lines: a file here with a class that has `name`, `traits` and the four methods,
and one line in `services/batch/bootstrap.py`.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import msgspec

from services.backends.http.client import NoReply, NotConnected, Reply
from services.core.catalog import Channel

__all__ = ["NoReply", "NotConnected", "Reply"]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to make. `params` is valid by `services.core.media` for `kind` and in its words;
    `model` is the upstream's name; `client_ref` is unique to this attempt: put it wherever the
    provider takes a reference, an idempotency key or metadata. `files` are the bytes of inputs
    that params name, by the name of the param (`image`, `mask`, `file`, `image_init`)."""

    client_ref: str
    kind: str
    model: str
    params: Mapping[str, Any]
    files: Mapping[str, bytes] = {}


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that the upstream took. `links` is what the adapter itself put there when it
    answered `Submitted` (URLs to poll and cancel, ...); stored as JSON."""

    upstream_id: str
    client_ref: str
    kind: str
    model: str
    links: Mapping[str, str] = {}


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One result: inline `data`, or a `url` that is fetched with GET; `authorized`: with the
    headers of `Provider.headers` (sent to the channel's own origin only)."""

    kind: str  # image | video | audio | text | json
    url: str = ""
    data: bytes = b""
    authorized: bool = False


# -- answers ---------------------------------------------------------------------------------


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The upstream has it. `eta_s` seconds when it said so."""

    upstream_id: str
    links: Mapping[str, str] = {}
    eta_s: float | None = None


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Finished. No outputs at all is a failure, whatever the upstream calls it (`filtered`: its
    safety filter took them). `told` are the units that the provider says it will charge."""

    outputs: tuple[Output, ...]
    told: Mapping[str, int] = {}
    filtered: bool = False
    upstream_id: str = ""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A clear no: nothing was made and nothing will be. `another`: a different channel may take it
    (no capacity, bad credential), else the input itself is wrong or was moderated."""

    status: int
    message: str
    moderated: bool = False
    another: bool = False
    retry_after_s: float | None = None


class NotSent(msgspec.Struct, frozen=True, kw_only=True):
    """Surely not sent (name lookup, connect, TLS): may be sent again, here or elsewhere."""

    message: str


class Unclear(msgspec.Struct, frozen=True, kw_only=True):
    """It may have landed (read timeout, reset, 500, 502, 504, a 2xx that cannot be read): never
    sent again unless `find` proves it absent."""

    message: str
    status: int = 0


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """Not finished. `progress_ppm` parts per million when the upstream told one; `started` False
    while it waits in the upstream's queue. `word`: a status word that the adapter did not know."""

    progress_ppm: int | None = None
    started: bool = True
    word: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """Finished without result. `cancelled`: because somebody cancelled it."""

    message: str
    code: str = ""
    moderated: bool = False
    cancelled: bool = False


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """The upstream does not know it (404)."""


class Later(msgspec.Struct, frozen=True, kw_only=True):
    """No verdict: ask again (429, 5xx, transport trouble, a reply that cannot be read).
    `refused`: our credential was (401, 403), which says nothing about the generation."""

    message: str
    status: int = 0
    retry_after_s: float | None = None
    refused: bool = False


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """It is or will be cancelled; the upstream confirmed."""


class TooLate(msgspec.Struct, frozen=True, kw_only=True):
    """It is finished already: poll tells how."""


class Unsupported(msgspec.Struct, frozen=True, kw_only=True):
    """The provider cannot do that (cancel, or look up by client reference)."""


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """Proved: nothing was made for this client reference, and nothing will be."""


CreateAnswer: TypeAlias = Submitted | Done | Refused | NotSent | Unclear
PollAnswer: TypeAlias = Running | Done | Failed | Gone | Later
CancelAnswer: TypeAlias = Cancelled | TooLate | Unsupported | Later
FindAnswer: TypeAlias = Submitted | Absent | Unsupported | Later


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """`poll_min_s`, `poll_max_s`: bounds of the time between two polls of one task. `create_s`:
    how long a create may take to answer (long for providers that answer with the result).
    `idempotent`: a create sent again with the same client_ref makes nothing new. `takes_urls`: it
    fetches inputs itself; for the others we do. `max_age_s`: results must be fetched within so
    long of finishing."""

    poll_min_s: float = 2.0
    poll_max_s: float = 30.0
    create_s: float = 60.0
    idempotent: bool = False
    takes_urls: bool = True
    max_age_s: float = 3600.0


class Provider(Protocol):
    """One adapter. The methods block; they return an answer for whatever happens."""

    @property
    def name(self) -> str: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def traits(self) -> Traits: ...

    def headers(self, channel: Channel) -> dict[str, str]:
        """What authorizes a call with the channel's credential."""

    def create(self, http: "Http", channel: Channel, order: Order) -> CreateAnswer: ...

    def poll(self, http: "Http", channel: Channel, task: Task) -> PollAnswer: ...

    def cancel(self, http: "Http", channel: Channel, task: Task) -> CancelAnswer: ...

    def find(self, http: "Http", channel: Channel, order: Order) -> FindAnswer:
        """Looks for what a create with `order.client_ref` made."""


# -- the wire --------------------------------------------------------------------------------


class Http(Protocol):
    """Calls upstreams: one pool of connections per thread, no redirects, replies up to 64 MiB."""

    def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        json: Any = None,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        timeout_s: float = 30.0,
    ) -> Reply:
        """`files`: name -> (file name, bytes, media type), sent as multipart with `form`.
        Raises NotConnected, NoReply."""


def create_failed(reply: Reply) -> Refused | Unclear:
    """What a create means whose answer is not 2xx."""
    text = reply.body[:500].decode("utf-8", "replace")
    if reply.status in (500, 502, 504):
        return Unclear(status=reply.status, message=text)
    return Refused(
        status=reply.status,
        message=text,
        moderated=reply.status == 451,
        another=reply.status in (401, 402, 403, 404, 408, 425, 429, 503),
        retry_after_s=reply.retry_after_s,
    )


def poll_failed(reply: Reply) -> Gone | Later:
    """What a poll or a cancel means whose answer is not 2xx."""
    if reply.status in (404, 410):
        return Gone()
    return Later(
        message=reply.body[:500].decode("utf-8", "replace"),
        status=reply.status,
        retry_after_s=reply.retry_after_s,
        refused=reply.status in (401, 403),
    )
