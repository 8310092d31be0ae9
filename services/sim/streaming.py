"""Sends the events of a stream at the asked pace, with the asked fault in the middle."""

import time
from typing import Any, Final, NamedTuple

from services.sim.faults import Fault
from services.sim.http import Connection, HungUp
from services.sim.prompt import Dialect, Event

_BEFORE_STALL: Final = 3  # deltas
_TIMES_MAX: Final = 200


class Pace(NamedTuple):
    """`first_s` before the first byte, then `tokens_per_s`; 0 is as fast as it goes."""

    first_s: float
    tokens_per_s: float


def send_events(
    connection: Connection,
    dialect: Dialect,
    events: list[Event],
    fault: Fault | None,
    pace: Pace,
    entry: dict[str, Any],
) -> None:
    """Raises HungUp when the fault cuts the stream, ClientGone when the client went."""
    name, number = fault or Fault("", 0)
    if name == "cut-after-finish":
        events = [event for event in events if event.mark != "end"]
    elif name == "bad-json":
        events = [*events[:2], Event(b"data: {not json\n\n", "delta"), *events[2:]]
    if not pace.tokens_per_s and name not in _PACED:
        connection.write_all([event.frame for event in events])
        entry["events_sent"] = len(events)
        return connection.finish()
    deltas = 0
    for event in events:
        _send_one(connection, event.frame, entry)
        deltas += event.mark == "delta"
        if (
            event.mark == "delta"
            and deltas == number
            and name in ("cut-mid-stream", "error-mid-stream")
        ):
            return _break_off(connection, dialect, name, entry)
        if event.mark == "delta" and deltas == _BEFORE_STALL and name == "stall":
            connection.pause(number)
        elif name in ("slow", "ping"):
            connection.pause(number / 1000)
            if name == "ping":
                connection.write(dialect.ping)
        elif event.tokens and pace.tokens_per_s:
            connection.pause(event.tokens / pace.tokens_per_s)
    return connection.finish()


_PACED: Final = ("slow", "stall", "ping", "cut-mid-stream", "error-mid-stream")


def _send_one(connection: Connection, frame: bytes, entry: dict[str, Any]) -> None:
    connection.write(frame)
    entry["events_sent"] += 1
    if len(entry["event_times_us"]) < _TIMES_MAX:
        entry["event_times_us"].append(int(time.time() * 1e6))


def _break_off(connection: Connection, dialect: Dialect, name: str, entry: dict[str, Any]) -> None:
    if name == "cut-mid-stream":
        raise HungUp
    _send_one(connection, dialect.stream_error("Overloaded"), entry)
    connection.finish()
