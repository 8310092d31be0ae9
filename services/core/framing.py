"""Server-sent events on bytes: cut a stream into whole events, look into few of them.

A line ends with LF, CR LF or CR; a blank line ends an event. Only the unfinished event is kept,
and no more of it than a cap: a longer event is never looked into, its bytes still flow."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

MAX_EVENT_BYTES: Final = 1 << 20

_EVENT_END: Final = re.compile(rb"\n\r?\n|\r\r")
_reader: Final = msgspec.json.Decoder(msgspec.Raw)


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
        edge = self._edge
        if not edge and data.endswith(b"\n\n"):
            return data
        if self._skipping:
            return self._push_skipping(data)
        end = _last_end(data)
        if edge:
            if not end:
                # The end may have begun in what is held.
                end = max(_last_end(edge + data[:2]) - len(edge), 0)
            if not end:
                self._hold(data)
                return b""
            self._pieces.append(data[:end])
            whole = b"".join(self._pieces)
            self._pieces = []
            self._held_bytes = 0
            self._edge = b""
        else:
            whole = data[:end]
        if end < len(data):
            self._hold(data[end:])
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

    @property
    def lacks_end(self) -> bool:
        """What is held is a whole event but for its blank line."""
        data = payload(lf_only(b"".join(self._pieces)))
        try:
            _reader.decode(data)
        except (msgspec.DecodeError, RecursionError):
            return data == b"[DONE]"
        return True

    def rest(self) -> bytes:
        """At the end of the stream: the unfinished event's bytes, no longer held here."""
        rest = b"".join(self._pieces)
        self._pieces = []
        return rest

    def forget_spilled(self) -> None:
        """The caller has relayed the spilled bytes."""
        self.spilled_before = self.spilled_after = b""

    def _hold(self, data: bytes) -> None:
        self._pieces.append(data)
        self._held_bytes += len(data)
        self._edge = data[-2:] if len(data) > 1 else (self._edge + data)[-2:]
        if self._held_bytes > self._cap:
            self.spilled_after = b"".join(self._pieces)
            self._pieces = []
            self._held_bytes = 0
            self._skipping = True

    def _push_skipping(self, data: bytes) -> bytes:
        """The same while the rest of an event over the cap passes by."""
        self.spilled_after = b""
        probe = self._edge + data
        first = _EVENT_END.search(probe)
        if first is None:
            self.spilled_before = data
            self._edge = probe[-2:]
            return b""
        start = first.end() - len(self._edge)
        self.spilled_before = data[:start]
        self._skipping = False
        self._edge = b""
        return self.push(data[start:])


def lf_only(whole: bytes) -> bytes:
    """Whole events with LF line ends. A raw CR never stands inside a JSON text's strings, so the
    payloads stay what they are."""
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


def events_with(whole: bytes, *needles: bytes) -> Iterator[bytes]:
    """The events that hold one of `needles`, in order; `whole` has LF line ends. Only what lies
    around a hit is looked at."""
    at = 0
    while True:
        hits = [hit for needle in needles if (hit := whole.find(needle, at)) >= 0]
        if not hits:
            return
        start = whole.rfind(b"\n\n", at, min(hits))
        end = whole.find(b"\n\n", min(hits))
        end = len(whole) if end < 0 else end + 2
        yield whole[at if start < 0 else start + 2 : end]
        at = end


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
    at = buffer.rfind(b"\n\n")
    end = at + 2 if at >= 0 else 0
    if b"\r" in buffer:
        at = buffer.rfind(b"\n\r\n")
        end = max(end, at + 3 if at >= 0 else 0)
        at = buffer.rfind(b"\r\r")
        end = max(end, at + 2 if at >= 0 else 0)
    return end
