"""Server-sent events on bytes: cut a stream into whole events, look into few of them.

A line ends with LF, CR LF or CR; a blank line ends an event. Only the unfinished event is kept,
and no more of it than a cap: a longer event is never looked into, its bytes still flow."""

import re
from typing import Final

MAX_EVENT_BYTES: Final = 1 << 20

_EVENT_END: Final = re.compile(rb"\n\r?\n|\r\r")


class EventSplitter:
    """Hands out whole events as soon as their last byte arrived, whatever the chunks are.

    `spilled_before` and `spilled_after` are the bytes of an event over the cap that came before
    and after the whole events of the last `push`; both are empty below the cap."""

    def __init__(self, cap: int = MAX_EVENT_BYTES) -> None:
        self._cap = cap
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._edge = b""  # the last two bytes held: an end of event may begin in them
        self._skipping = False
        self.spilled_before = b""
        self.spilled_after = b""

    @property
    def at_boundary(self) -> bool:
        """No event is unfinished."""
        return not self._edge

    @property
    def skipping(self) -> bool:
        """The rest of an event over the cap is passing by."""
        return self._skipping

    def push(self, data: bytes) -> bytes:
        """The events that `data` completes, terminators included; often `data` itself."""
        if not self._edge and data.endswith(b"\n\n"):
            return data
        if not data:
            return b""
        edge = self._edge
        probe = edge + data if edge else data
        end = _last_end(probe)
        if self._skipping:
            return self._push_skipping(data, end - len(edge))
        if not end:
            self._hold(data, probe)
            return b""
        if edge:
            self._pieces.append(data[: end - len(edge)])
            whole = b"".join(self._pieces)
            self._pieces = []
            self._held_bytes = 0
            self._edge = b""
        else:
            whole = probe[:end]
        rest = probe[end:]
        if rest:
            self._hold(rest, rest)
        return whole

    def closing(self, name: str = "") -> bytes:
        """What ends an unfinished event, under the event name `name` if one is given: the last
        `event` line counts, so a name that clients skip makes them skip the half event."""
        if not self._edge:
            return b""
        if not name:
            return b"\n\n"
        line_end = b"" if self._edge.endswith((b"\n", b"\r")) else b"\n"
        return line_end + b"event: " + name.encode() + b"\n\n"

    def rest(self) -> bytes:
        """At the end of the stream: the unfinished event's bytes, no longer held here."""
        rest = b"".join(self._pieces)
        self._pieces = []
        return rest

    def forget_spilled(self) -> None:
        """The caller has relayed the spilled bytes."""
        self.spilled_before = self.spilled_after = b""

    def _hold(self, data: bytes, probe: bytes) -> None:
        self._pieces.append(data)
        self._held_bytes += len(data)
        self._edge = probe[-2:]
        if self._held_bytes > self._cap:
            self.spilled_after = b"".join(self._pieces)
            self._pieces = []
            self._held_bytes = 0
            self._skipping = True

    def _push_skipping(self, data: bytes, end: int) -> bytes:
        """The same while the rest of an event over the cap passes by; `end` is in `data`."""
        self.spilled_after = b""
        probe = self._edge + data
        first = _EVENT_END.search(probe)
        if first is None:
            self.spilled_before = data
            self._edge = probe[-2:]
            return b""
        start = first.end() - len(self._edge)
        self.spilled_before, whole, rest = data[:start], data[start:end], data[end:]
        self._skipping = False
        self._edge = b""
        if rest:
            self._hold(rest, rest)
        return whole


def lf_only(whole: bytes) -> bytes:
    """Whole events with LF line ends. A raw CR never stands inside a JSON text's strings, so the
    payloads stay what they are."""
    if b"\r" not in whole:
        return whole
    return whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def events(whole: bytes) -> list[bytes]:
    """Whole events one by one, each with its terminator; joined they are `whole`."""
    found = []
    start = 0
    for match in _EVENT_END.finditer(whole):
        found.append(whole[start : match.end()])
        start = match.end()
    if start < len(whole):
        found.append(whole[start:])
    return found


def event_around(whole: bytes, at: int) -> tuple[int, int]:
    """Start and end of the event that holds offset `at` of whole events with LF line ends."""
    start = whole.rfind(b"\n\n", 0, at)
    end = whole.find(b"\n\n", at)
    return (0 if start < 0 else start + 2), (len(whole) if end < 0 else end + 2)


def payload(event: bytes) -> bytes:
    """The joined `data` lines of one event, without surrounding white space."""
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    return lines[0].strip() if len(lines) == 1 else b"\n".join(lines).strip()


def frame(data: bytes, name: str = "") -> bytes:
    """One event; `data` is a single line."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + data + b"\n\n"


def _last_end(buffer: bytes) -> int:
    """The offset after the last end of an event, 0 without one."""
    if b"\r" not in buffer:
        return buffer.rfind(b"\n\n") + 2 if b"\n\n" in buffer else 0
    return max(
        buffer.rfind(b"\n\n") + 2 if b"\n\n" in buffer else 0,
        buffer.rfind(b"\n\r\n") + 3 if b"\n\r\n" in buffer else 0,
        buffer.rfind(b"\r\r") + 2 if b"\r\r" in buffer else 0,
    )
