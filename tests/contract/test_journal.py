"""The outbox as greenlets use it: one transaction for what comes together, nothing for the dead."""

import os

import gevent
import pytest
from gevent import GreenletExit, get_hub

from services.backends.clock import SystemClock
from services.backends.outbox import Outbox, Sealed
from services.backends.outbox_files import IncarnationFiles
from services.backends.outbox_seal import seal
from services.edge.counters import Counters
from services.edge.journal import Journal
from tests.parts.outbox_worker import request, settings

CROWD = range(20)  # in flight


@pytest.fixture
def outbox(tmp_path):
    return Outbox.create(tmp_path, "edge-1", settings(), SystemClock())


@pytest.fixture
def written(tmp_path):
    return lambda: [row.request_id for row in IncarnationFiles(tmp_path, "edge-1").scan(0, 10**9)]


def test_what_comes_together_is_written_in_order_and_each_goes_on(outbox, written):
    journal = Journal(outbox, Counters(), CROWD)
    events = [request(n) for n in range(20)]
    going = [gevent.spawn(journal.append, event) for event in events]
    gevent.joinall(going, timeout=5, raise_error=True)
    assert [event.seq for event in events] == list(range(1, 21))
    assert written() == [event.request_id for event in events]


def test_who_is_alone_writes_at_once_and_whoever_waits_is_first(outbox, written):
    in_flight = [1, 2]
    journal = Journal(outbox, Counters(), in_flight)
    waiting = gevent.spawn(journal.append, request(1))
    gevent.idle()
    assert written() == [request(1).request_id]
    del in_flight[1]
    turns = []
    get_hub().loop.run_callback(turns.append, 1)
    journal.append(request(2))
    journal.append_last(request(3))
    assert not turns  # the loop had no turn meanwhile
    in_flight.append(2)
    waiting = gevent.spawn(journal.append, request(4))
    gevent.sleep(0)  # it waits for the end of the turn
    del in_flight[1]
    journal.append(request(5))
    waiting.join(timeout=5)
    assert written() == [request(n).request_id for n in range(1, 6)]


def test_a_greenlet_that_is_killed_while_it_waits_leaves_no_event(outbox, written):
    """It could not say that the request is durable, so nobody would end it."""
    journal = Journal(outbox, Counters(), CROWD)
    lost, kept = request(1), request(2)

    def killed():
        get_hub().loop.run_callback(going.throw, GreenletExit)
        journal.append(lost)
        raise AssertionError("it went on")

    going = gevent.spawn(killed)
    other = gevent.spawn(journal.append, kept)
    gevent.joinall([going, other], timeout=5, raise_error=True)
    assert written() == [kept.request_id]


def test_a_sealed_outbox_is_told_to_every_one_that_waits(outbox, tmp_path, written):
    journal = Journal(outbox, Counters(), CROWD)
    outbox.append(request(1))
    os.close(outbox._lock_fd)
    sealed = seal(tmp_path, "edge-1")
    going = [gevent.spawn(journal.append_last, request(n)) for n in (2, 3)]
    gevent.joinall(going, timeout=5)
    assert [type(each.exception) for each in going] == [Sealed, Sealed]
    sealed.release()
    assert len(written()) == 1
