"""A watcher of a job hears every change."""

from gevent.event import Event

from services.edge.jobs.feed import Watcher


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
