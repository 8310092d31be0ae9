"""The events on topic `tollgate.events.v1`: what crosses from the request path to the books.

One JSON object per event; `kind` tells which struct. The partition key is `account_id`, so one
consumer at a time writes an account's wallet. Every durable `request` gets exactly one terminal
(`usage` or `error`) with the same `request_id`. Prompts and completions never enter an event.

Units: `*_nano` integer nano-USD, `*_ms` milliseconds, `occurred_at` microseconds since the epoch,
UTC, fixed when the event enters the outbox. Versioning: fields are only added, with a default;
anything else is a new `v`. Golden files under `tests/golden/events/` are add-only.
"""

from typing import Annotated, Final, TypeAlias

import msgspec

from schemas.errors import Code, Outcome, Stage

TOPIC: Final = "tollgate.events.v1"
VERSION: Final = 1

MAX_NANO: Final = 9_000_000_000_000_000_000
Nano: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_NANO)]
SignedNano: TypeAlias = Annotated[int, msgspec.Meta(ge=-MAX_NANO, le=MAX_NANO)]
Units: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000_000)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
Identifier: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Event(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind"):
    """The envelope. `seq` is dense per incarnation, `lease_seq` dense per lease, both from 1."""

    event_id: Identifier
    account_id: Identifier
    occurred_at: Count
    source: Text
    v: int = VERSION
    request_id: Text = ""
    key_id: Text = ""
    incarnation: Text = ""
    seq: Count = 0
    lease_id: Text = ""
    lease_seq: Count = 0


class Request(Event, kw_only=True, tag="request"):
    """A request was admitted and its money held; written before the upstream call."""

    dialect: Text
    path: Text
    model: Text
    group: Text
    price_version: Identifier
    hold_nano: Nano
    stream: bool = False
    session_id: Text = ""
    agent_id: Text = ""
    client: Text = ""
    tags: dict[str, str] = {}
    body_bytes: Count = 0


class Attempt(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One upstream call. `status` 0 means that no response head arrived."""

    channel: Text
    status: Count = 0
    code: Text = ""
    upstream_request_id: Text = ""
    started_at: Count = 0
    total_ms: Count = 0


class Terminal(Event, kw_only=True):
    """What a usage and an error event share: the request's facts, repeated so that a row of the
    analytics table follows from one event alone."""

    status: Count
    outcome: Outcome
    dialect: Text = ""
    path: Text = ""
    model: Text = ""  # as the client asked
    priced_as: Text = ""  # the model id in the price version
    upstream_model: Text = ""  # as sent to the channel
    channel: Text = ""
    group: Text = ""
    price_version: Text = ""
    stream: bool = False
    session_id: Text = ""
    agent_id: Text = ""
    client: Text = ""
    tags: dict[str, str] = {}
    hold_nano: Nano = 0
    ttfb_ms: Count = 0
    total_ms: Count = 0
    attempts: list[Attempt] = []
    upstream_request_id: Text = ""
    job_id: Text = ""  # of a generation, as the four of job_*: empty for everything else
    job_kind: Text = ""
    job_state: Text = ""
    job_error: Text = ""


class Usage(Terminal, kw_only=True, tag="usage"):
    """A billed answer. `cost_nano == charged_nano + written_off_nano` and equals the rating of
    `usage` under `price_version`, `channel`, `priced_as` and `multiplier_ppm`."""

    usage: dict[str, Units]
    multiplier_ppm: Count
    cost_nano: Nano
    charged_nano: Nano
    written_off_nano: Nano = 0
    provider_cost_nano: Nano = 0
    tier: Text = ""
    estimated: bool = False


class Error(Terminal, kw_only=True, tag="error"):
    """A free ending. `provider_cost_nano` is what the provider may still charge us, if known."""

    code: Code
    stage: Stage
    message: Text = ""
    provider_cost_nano: Nano = 0


class LeaseClosed(Event, kw_only=True, tag="lease_closed"):
    """No event of `lease_id` follows; `events` of them were written (lease_seq 1..events)."""

    events: Count


class IncarnationClosed(Event, kw_only=True, tag="incarnation_closed"):
    """No event of `incarnation` follows this one; its own `seq` is the last.
    `account_id` is `-`: it belongs to no account."""


class WalletMovement(Event, kw_only=True, tag="wallet_movement"):
    """Money in or out of a wallet, not by usage. `external_id` is unique per account."""

    movement_id: Identifier
    movement: Text  # one of MOVEMENTS
    amount_nano: SignedNano
    external_id: Text = ""
    note: Text = ""
    actor: Text = ""


class Audit(Event, kw_only=True, tag="audit"):
    """A change of a key, price, channel, group or account. `detail` holds no secret. `ip` and
    `user_agent`: of the call that made it; empty: none did."""

    action: Text
    actor: Text
    subject: Text
    detail: dict[str, str] = {}
    ip: Text = ""
    user_agent: Text = ""


MOVEMENT_MAX_NANO: Final = 10**18  # a billion USD: what the books believe of one movement
MOVEMENTS: Final = (
    "topup",
    "bonus",
    "refund",
    "admin_credit",
    "admin_debit",
    "chargeback",
    "correction",
    "subscription_renew",
)

AnyEvent: TypeAlias = (
    Request | Usage | Error | LeaseClosed | IncarnationClosed | WalletMovement | Audit
)

_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_encoder = msgspec.json.Encoder()


def encode(event: AnyEvent) -> bytes:
    """One event as JSON bytes, fields in declaration order."""
    return _encoder.encode(event)


def decode(body: bytes) -> AnyEvent:
    """The event in `body`.

    Raises `msgspec.ValidationError` (naming the field) or `msgspec.DecodeError`. Unknown fields
    are ignored, so that an older consumer reads a newer producer's events."""
    return _decoder.decode(body)
