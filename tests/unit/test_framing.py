"""Cutting event streams: any split of the bytes gives the same events."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.framing import EventSplitter, events, events_with, frame, lf_only, payload
from tests.parts.streams import anthropic_stream, cuts

LINES = ["event: ping\n", "data: {}\n", ": comment\n", "data:\n", "id: 4\n", 'data: {"a":"é"}\n']
EVENTS = st.lists(st.sampled_from(LINES), min_size=1, max_size=4).map(lambda x: "".join(x) + "\n")
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def streams(draw):
    """Whole events and an unfinished rest, with one of the three line ends."""
    found = draw(st.lists(EVENTS, max_size=6))
    rest = draw(st.sampled_from(["", "data: unfin", "event: x\ndata: y\n"]))
    end = draw(ENDS)
    return [item.replace("\n", end).encode() for item in found], rest.replace("\n", end).encode()


@settings(deadline=None)
@given(streams(), st.data())
def test_any_split_gives_the_same_events(stream, data):
    whole, rest = stream
    everything = b"".join(whole) + rest
    splitter = EventSplitter()
    got = b""
    for piece in data.draw(cuts(everything)):
        done = splitter.push(piece)
        assert done == b"" or got + done in {
            b"".join(whole[:count]) for count in range(len(whole) + 1)
        }
        got += done
    assert got == b"".join(whole)
    assert splitter.at_boundary == (not rest)
    assert splitter.rest() == rest
    assert events(got) == whole


def test_a_read_of_whole_events_is_handed_through():
    data = b"data: 1\n\ndata: 2\n\n"
    assert EventSplitter().push(data) is data


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"])
def test_every_end_at_every_place(end):
    stream = b"data: a" + end + b"data: b" + end
    for at in range(len(stream) + 1):
        splitter = EventSplitter()
        got = [splitter.push(stream[:at]), splitter.push(stream[at:])]
        assert b"".join(got) == stream, at
        assert splitter.at_boundary


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_an_event_over_the_cap_is_skipped_and_the_next_one_found(step):
    giant = b"data: " + b"x" * 100 + b"\r\n\r\n"
    stream = b"data: 1\n\n" + giant + b"data: 2\n\ndata: un"
    splitter = EventSplitter(cap=50)
    got, relayed = b"", b""
    for at in range(0, len(stream), step):
        whole = splitter.push(stream[at : at + step])
        got += whole
        relayed += splitter.spilled_before + whole + splitter.spilled_after
        splitter.forget_spilled()
    if step < 1000:
        assert got == b"data: 1\n\ndata: 2\n\n"
    assert relayed + splitter.rest() == stream
    assert not splitter.at_boundary


def test_a_giant_rest_is_not_kept():
    splitter = EventSplitter(cap=50)
    for _ in range(100):
        splitter.push(b"y" * 40)
        splitter.forget_spilled()
    assert splitter.skipping
    assert len(splitter.rest()) <= 50


def test_events_around_hits_only():
    whole = anthropic_stream(["one", "two"])
    found = list(events_with(whole, b'"message_', b'"error"'))
    assert [payload(event)[:23] for event in found] == [
        b'{"type":"message_start"',
        b'{"type":"message_delta"',
        b'{"type":"message_stop"}',
    ]
    assert all(event in events(whole) for event in found)
    assert list(events_with(whole, b"absent")) == []


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"event: x\r\ndata: {}\r\nid: 1\r\n\r\n", b"{}"),
        (b'data: {"a":\ndata: 1}\n\n', b'{"a":\n 1}'),
        (b": only a comment\n\n", b""),
        (b"data\n\n", b""),
    ],
)
def test_payload(event, expected):
    assert payload(event) == expected


def test_lines_end_with_lf_for_the_scan():
    assert lf_only(b"data: a\r\n\r\ndata: b\r\r") == b"data: a\n\ndata: b\n\n"


def test_frame():
    assert frame(b"{}", "error") == b"event: error\ndata: {}\n\n"
    assert frame(b"[DONE]") == b"data: [DONE]\n\n"


@pytest.mark.parametrize("half", [b"event: content", b'data: {"a":"b', b"event: x\n", b"data: 1\r"])
def test_a_half_event_ends_under_a_name_that_is_skipped(half):
    splitter = EventSplitter()
    splitter.push(half)
    closed = lf_only(half + splitter.closing("ping"))
    lines = closed.removesuffix(b"\n\n").split(b"\n")
    assert closed.endswith(b"\n\n")
    assert b"" not in lines
    assert [line for line in lines if line.startswith(b"event:")][-1] == b"event: ping"
    assert lf_only(half + splitter.closing()).endswith(b"\n\n")


def test_nothing_closes_a_whole_event():
    splitter = EventSplitter()
    splitter.push(b"data: 1\n\n")
    assert splitter.closing() == splitter.closing("ping") == b""
