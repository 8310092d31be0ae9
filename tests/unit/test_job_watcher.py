"""A watcher of a job hears every change, and waits for its end."""

import contextlib
import time
from types import SimpleNamespace

from gevent import socket
from gevent.event import Event

from schemas.errors import Code
from services.backends.http.private_client import ApiUnavailable
from services.core.errors import Refusal
from services.edge.jobs import sync
from services.edge.jobs.feed import Watcher
from services.edge.jobs.forward import Forwarder


class JustOver(Event):
    """Its time is over, and before the waiting greenlet runs again another one sets it."""

    def wait(self, timeout=None):
        self.set()
        return False


def test_a_change_that_comes_when_the_time_is_just_over_is_heard():
    watcher = Watcher(key=None, revoked=False)
    assert not watcher.wait(0)
    watcher.wake()
    assert watcher.wait(0)
    assert not watcher.wait(0)
    watcher._event = JustOver()
    assert watcher.wait(1)


class Away:
    """A service that is away twice; then the job has ended."""

    def __init__(self):
        self.answers = [
            Refusal(Code.UNAVAILABLE, "jobs cannot be reached now"),
            ApiUnavailable("the answer ended early"),
            b'{"id": "job_1", "completed_at": "now"}',
        ]

    def told(self, *asked):
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def test_who_waits_for_a_job_outlasts_a_service_that_is_away(monkeypatch):
    """Its job is made all the same, and due: an error now would be one that is billed."""
    monkeypatch.setattr(sync, "_LOOK_S", 0.01)
    clock = SimpleNamespace(monotonic_s=time.monotonic)
    forwarder = Forwarder(SimpleNamespace(batch=None, on_look=[], clock=clock))
    forwarder.told = Away().told
    forwarder.watching = lambda *asked: contextlib.nullcontext(Watcher(None, False))
    route = sync.SyncRoute(forwarder, "image", sync.image_input, sync.show_images)
    here, there = socket.socketpair()
    with here, there:
        req = SimpleNamespace(env={"gunicorn.socket": here})
        job = route._ended(req, None, {"id": "job_1", "completed_at": None}, ours=True)
    assert job["completed_at"] == "now"
