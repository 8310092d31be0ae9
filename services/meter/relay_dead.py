"""What the relay could not send, read beside a living relay: sent once its cause is gone, or
dismissed."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Engine

from schemas.errors import Code, Outcome, Stage
from schemas.events import TOPIC, Error, Usage, decode, encode
from services.backends.bus.port import Bus, Record, RecordTooLarge
from services.backends.sql.dead_events import DEAD, DISMISSED, REPLAYED, applied_hash
from services.backends.sql.engine import read, write
from services.backends.sql.outbox import audit
from services.meter.dead import body_hash
from services.meter.relay_store import FILE

CHECKSUM: Final = "checksum"  # the bytes are not those that were written
TOO_LARGE: Final = "too_large"  # for the bus as it was set then


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
    state: str


def listed(folder: Path, engine: Engine) -> list[RelayDead]:
    """Everything that this host's relay set aside, oldest first. Raises DatabaseUnavailable."""
    if not (folder / FILE).exists():
        return []
    try:
        with _opened(folder, "ro") as connection:
            rows = connection.execute(
                "SELECT id, incarnation, seq, event_id, reason, partition_key, body, at,"
                " id IN (SELECT id FROM dismissed) FROM dead ORDER BY id"
            ).fetchall()
    except sqlite3.OperationalError:  # the relay is just making it
        return []
    return [
        RelayDead._make((*row[:8], _state(engine, row[3], bytes(row[6]), row[8]))) for row in rows
    ]


def send(bus: Bus, dead: RelayDead) -> bool:
    """Sends it now. False: it is in the log already. Raises NotSendable, BusUnavailable."""
    if dead.state == DISMISSED:
        raise NotSendable("it was dismissed")
    if dead.state == REPLAYED:
        return False
    if dead.reason == CHECKSUM:
        raise NotSendable(
            "its bytes were damaged on disk; `tollgate incarnation lost` returns what it held"
        )
    _send(bus, dead.account_id, dead.body)
    return True


def dismiss(bus: Bus, engine: Engine, folder: Path, dead: RelayDead, note: str) -> bool:
    """Gives it up: nobody is charged. In the place of a terminal its free end is sent, so that its
    request and its lease wait no longer; what else was lost keeps its money on the lease until the
    worker is declared lost. False: it was dismissed before. May be repeated. Raises NotSendable
    for what was sent, BusUnavailable, DatabaseUnavailable."""
    if dead.state == REPLAYED:
        raise NotSendable("it was sent")
    if dead.state == DISMISSED:
        return False
    end = _free_end(dead)
    if end is not None:
        _send(bus, dead.account_id, encode(end))
    detail = {"event_id": dead.event_id, "reason": dead.reason}
    if note:
        detail["note"] = note
    place = f"outbox/{dead.incarnation}/{dead.seq}"
    write(engine, lambda c: audit(c, "dead.dismiss", place, "operator", detail))
    with _opened(folder, "rw") as connection, connection:
        connection.execute("INSERT OR IGNORE INTO dismissed (id) VALUES (?)", (dead.id,))
    return True


def _free_end(dead: RelayDead) -> Error | None:
    """What stands for a terminal that was too large: the same place in its worker's order and on
    its lease, and nothing that could be large."""
    try:
        event = decode(dead.body) if dead.reason == TOO_LARGE else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(event, Usage | Error):
        return None
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
        message="its event could not be sent and was dismissed",
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
