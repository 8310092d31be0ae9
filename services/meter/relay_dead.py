"""What the relay could not send, read beside a living relay: sent once its cause is gone, or
dismissed."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, select

from schemas.errors import Code, Outcome, Stage
from schemas.events import (
    TOPIC,
    AnyEvent,
    Error,
    IncarnationClosed,
    Request,
    Usage,
    decode,
    encode,
)
from services.backends.bus.port import Bus, Record, RecordTooLarge
from services.backends.sql.budgets import Budgets
from services.backends.sql.dead_events import DEAD, DISMISSED, REPLAYED, applied_hash
from services.backends.sql.engine import read, write
from services.backends.sql.lease_reads import LIVE
from services.backends.sql.outbox import audit
from services.backends.sql.tables import incarnation, lease, settlement
from services.meter.dead import body_hash
from services.meter.relay_store import FILE, Beside

CHECKSUM: Final = "checksum"  # the bytes are not those that were written
TOO_LARGE: Final = "too_large"  # for the bus as it was set then
SOURCE: Final = "relay"
_DISMISSED: Final = "its event could not be sent and was dismissed"


class NotSendable(Exception):
    """It cannot go to the bus: says why."""


class RelayDead(NamedTuple):
    """One row of the relay's own table. `seq` 0: from the SQL outbox. `state`: dead | replayed (the
    ledger has taken exactly these bytes since) | dismissed."""

    id: int
    incarnation: str
    seq: int
    event_id: str
    reason: str
    account_id: str
    body: bytes
    dead_at: int  # microseconds
    beside: str
    state: str


def listed(folder: Path, engine: Engine) -> list[RelayDead]:
    """Everything that this host's relay set aside, oldest first. Raises DatabaseUnavailable."""
    if not (folder / FILE).exists():
        return []
    try:
        with _opened(folder, "ro") as connection:
            known = [each[1] for each in connection.execute("PRAGMA table_info(dead)")]
            beside = "beside" if "beside" in known else "''"  # before the relay's next start
            rows = connection.execute(
                f"SELECT id, incarnation, seq, event_id, reason, partition_key, body, at, {beside},"  # noqa: S608
                " id IN (SELECT id FROM dismissed) FROM dead ORDER BY id"
            ).fetchall()
    except sqlite3.OperationalError:  # the relay is just making it
        return []
    return [
        RelayDead._make((*row[:9], _state(engine, row[3], bytes(row[6]), row[9]))) for row in rows
    ]


def send(bus: Bus, dead: RelayDead) -> bool:
    """Sends it now. False: it is in the log already. Raises NotSendable, BusUnavailable."""
    if dead.state == DISMISSED:
        raise NotSendable("it was dismissed")
    if dead.state == REPLAYED:
        return False
    if dead.reason == CHECKSUM:
        raise NotSendable("its bytes were damaged on disk: dismiss it")
    _send(bus, dead.account_id, dead.body)
    return True


def dismiss(bus: Bus, engine: Engine, folder: Path, dead: RelayDead, note: str) -> bool:
    """Gives it up: nobody is charged. What stands for it in the log is sent, so that its request
    and its lease wait no longer. False: it was dismissed before. May be repeated. Raises
    NotSendable for what was sent and for what its worker may still end, BusUnavailable,
    DatabaseUnavailable."""
    if dead.state == REPLAYED:
        raise NotSendable("it was sent")
    if dead.state == DISMISSED:
        return False
    told = _told(dead)
    for event in _stand_ins(engine, dead, told):
        _send(bus, dead.account_id, encode(event))
    detail = {"event_id": dead.event_id, "reason": dead.reason}
    if note:
        detail["note"] = note

    def close(connection: Connection) -> None:
        if told is not None and told.kind == "lease_closed":
            Budgets(engine).end_leases(connection, [told.lease_id])
        place = f"outbox/{dead.incarnation}/{dead.seq}"
        audit(connection, "dead.dismiss", place, "operator", detail)

    write(engine, close)
    with _opened(folder, "rw") as connection, connection:
        connection.execute("INSERT OR IGNORE INTO dismissed (id) VALUES (?)", (dead.id,))
    return True


def _told(dead: RelayDead) -> Beside | None:
    """What is known of it beside its bytes, or from them when they are sound."""
    if dead.beside:
        return msgspec.json.decode(dead.beside, type=Beside)
    event = _sound(dead)
    if event is None:
        return None
    kind = str(event.__struct_config__.tag)
    return Beside(kind, event.request_id, event.lease_id, event.lease_seq)


def _sound(dead: RelayDead) -> AnyEvent | None:
    try:
        return decode(dead.body) if dead.reason == TOO_LARGE else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _stand_ins(engine: Engine, dead: RelayDead, told: Beside | None) -> list[AnyEvent]:
    """What takes the event's place in its worker's order and on its lease, and nothing of it that
    could be large or wrong."""
    event = _sound(dead)
    if isinstance(event, Usage | Error):
        return [_free_end(event)]
    if told is None:
        return []
    free: dict[str, Any] = {
        "account_id": dead.account_id,
        "occurred_at": dead.dead_at,
        "source": SOURCE,
    }
    place = {**free, "incarnation": dead.incarnation, "seq": dead.seq}
    if told.kind == "incarnation_closed":
        return [IncarnationClosed(event_id=f"{dead.incarnation}:closed", **place)]
    if told.kind not in ("request", "usage", "error"):
        return []
    known = _known(engine, told, dead.incarnation)
    on_lease = place
    if known.lease_waits:
        on_lease = {**place, "lease_id": told.lease_id, "lease_seq": told.lease_seq}
    if told.kind != "request":
        return [_abandoned(told.request_id, on_lease)]
    if not known.settled and not known.worker_ended:
        raise NotSendable("its worker may still end the request: dismiss it after that")
    begun = _begun(told.request_id, on_lease)
    # The lease does not know of an end that never was.
    return [begun] if known.settled else [begun, _abandoned(told.request_id, free)]


def _begun(request_id: str, fields: dict[str, Any]) -> Request:
    return Request(
        event_id=f"{request_id}:request",
        request_id=request_id,
        dialect="",
        path="",
        model="",
        group="",
        price_version="-",
        hold_nano=0,
        **fields,
    )


def _abandoned(request_id: str, fields: dict[str, Any]) -> Error:
    return Error(
        event_id=f"{request_id}:error",
        request_id=request_id,
        status=500,
        outcome=Outcome.ABANDONED,
        code=Code.INTERNAL_ERROR,
        stage=Stage.GATEWAY,
        message=_DISMISSED,
        **fields,
    )


class _Known(NamedTuple):
    """What the books know: whether the request has its terminal, its worker has ended, and its
    lease waits for events."""

    settled: bool
    worker_ended: bool
    lease_waits: bool


def _known(engine: Engine, told: Beside, incarnation_id: str) -> _Known:
    terminal = select(settlement.c.event_id).where(settlement.c.request_id == told.request_id)
    worker = select(incarnation.c.state).where(incarnation.c.id == incarnation_id)
    waits = select(lease.c.id).where(lease.c.id == told.lease_id, LIVE)

    def ask(connection: Connection) -> _Known:
        return _Known(
            connection.execute(terminal).one_or_none() is not None,
            connection.execute(worker).scalar_one_or_none() in ("closed", "lost"),
            connection.execute(waits).one_or_none() is not None,
        )

    return read(engine, ask)


def _free_end(event: Usage | Error) -> Error:
    """What stands for a terminal that was too large: the same place in its worker's order and on
    its lease, and nothing that could be large."""
    return Error(
        event_id=f"{event.request_id}:error",
        account_id=event.account_id,
        key_id=event.key_id,
        request_id=event.request_id,
        occurred_at=event.occurred_at,
        source=event.source,
        incarnation=event.incarnation,
        seq=event.seq,
        lease_id=event.lease_id,
        lease_seq=event.lease_seq,
        dialect=event.dialect,
        path=event.path,
        model=event.model,
        group=event.group,
        price_version=event.price_version,
        status=500,
        outcome=Outcome.ABANDONED,
        code=Code.INTERNAL_ERROR,
        stage=Stage.GATEWAY,
        message=_DISMISSED,
        provider_cost_nano=event.provider_cost_nano,
    )


def _send(bus: Bus, account_id: str, body: bytes) -> None:
    producer = bus.producer()
    try:
        producer.send(TOPIC, [Record(account_id, body)])
    except RecordTooLarge as ex:
        raise NotSendable(f"{ex.size_bytes} bytes are still too large for the bus") from ex
    finally:
        producer.close()


@contextmanager
def _opened(folder: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"{(folder / FILE).absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=5.0)
    try:
        yield connection
    finally:
        connection.close()


def _state(engine: Engine, event_id: str, body: bytes, dismissed: bool) -> str:
    if dismissed:
        return DISMISSED
    return REPLAYED if _is_taken(engine, event_id, body) else DEAD


def _is_taken(engine: Engine, event_id: str, body: bytes) -> bool:
    if not event_id:
        return False
    return read(engine, lambda connection: applied_hash(connection, event_id)) == body_hash(body)
