"""What the relay could not send, read beside a living relay, and sent once its cause is gone."""

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import Engine

from schemas.events import TOPIC
from services.backends.bus.port import Bus, Record, RecordTooLarge
from services.backends.sql.dead_events import applied_hash
from services.backends.sql.engine import read
from services.meter.dead import body_hash
from services.meter.relay_store import FILE

CHECKSUM: Final = "checksum"  # the bytes are not those that were written
TOO_LARGE: Final = "too_large"  # for the bus as it was set then


class NotSendable(Exception):
    """It cannot go to the bus: says why."""


class RelayDead(NamedTuple):
    """One row of the relay's own table. `seq` 0: from the SQL outbox. `sent`: the ledger has taken
    exactly these bytes since."""

    id: int
    incarnation: str
    seq: int
    event_id: str
    reason: str
    account_id: str
    body: bytes
    dead_at: int  # microseconds
    sent: bool


def relay_dead(folder: Path, engine: Engine) -> list[RelayDead]:
    """Everything that this host's relay set aside, oldest first. Raises DatabaseUnavailable."""
    path = folder / FILE
    if not path.exists():
        return []
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
    try:
        rows = connection.execute(
            "SELECT id, incarnation, seq, event_id, reason, partition_key, body, at FROM dead"
            " ORDER BY id"
        ).fetchall()
    except sqlite3.OperationalError:  # the relay is just making it
        return []
    finally:
        connection.close()
    return [RelayDead._make((*row, _is_taken(engine, row[3], bytes(row[6])))) for row in rows]


def send(bus: Bus, dead: RelayDead) -> bool:
    """Sends it now. False: it is in the log already. Raises NotSendable, BusUnavailable."""
    if dead.sent:
        return False
    if dead.reason == CHECKSUM:
        raise NotSendable(
            "its bytes were damaged on disk; `tollgate incarnation lost` returns what it held"
        )
    producer = bus.producer()
    try:
        producer.send(TOPIC, [Record(dead.account_id, dead.body)])
    except RecordTooLarge as ex:
        raise NotSendable(f"{ex.size_bytes} bytes are still too large for the bus") from ex
    finally:
        producer.close()
    return True


def _is_taken(engine: Engine, event_id: str, body: bytes) -> bool:
    if not event_id:
        return False
    return read(engine, lambda connection: applied_hash(connection, event_id)) == body_hash(body)
