"""Who reads a partition for a sink: the newest owner alone, told by an epoch that only grows."""

from typing import NamedTuple

from sqlalchemy import Connection, Table, update

from services.backends.sql.bulk import insert_new


class Position(NamedTuple):
    """Where a partition stands. `last_event_id` is the event at `next_offset` - 1."""

    owner_epoch: int
    next_offset: int
    last_event_id: str


def claim(connection: Connection, positions: Table, topic: str, partition: int) -> Position:
    """Makes the caller the partition's only owner in `positions` (`ledger_position` or
    `sink_position`): whatever an older owner tries with its epoch finds nothing."""
    first = {
        "topic": topic,
        "partition": partition,
        "next_offset": 0,
        "last_event_id": "",
        "owner_epoch": 0,
    }
    connection.execute(insert_new(connection, positions).values(first))
    row = connection.execute(
        update(positions)
        .where(positions.c.topic == topic, positions.c.partition == partition)
        .values(owner_epoch=positions.c.owner_epoch + 1)
        .returning(positions.c.owner_epoch, positions.c.next_offset, positions.c.last_event_id)
    ).one()
    return Position(*row)
