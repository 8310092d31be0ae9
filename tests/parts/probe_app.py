"""A WSGI application that shows what the edge's server gives to and takes from an application.

Run as `python -m tests.parts.probe_app PORT NOTES WORKERS GRACE_S`: it appends a line to the file
NOTES for everything a test wants to know from inside the worker.
"""

import json
import logging
import os
import sys

import gevent

from schemas.config import Config, Edge
from services.edge import server
from services.edge.watch import ClientWatch


def note(line: str) -> None:
    with open(os.environ["PROBE_NOTES"], "a") as notes:
        notes.write(line + "\n")


class Ticks:
    """A stream of `count` blocks, one each `pause_s`; an error in place of the last if asked."""

    def __init__(self, count: int, pause_s: float, fail: bool = False):
        self.left, self.pause_s, self.fail = count, pause_s, fail

    def __iter__(self):
        return self

    def __next__(self) -> bytes:
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        if self.left == 0 and self.fail:
            raise RuntimeError("the stream failed")
        gevent.sleep(self.pause_s)
        return b"tick %d\n" % self.left

    def close(self) -> None:
        note(f"stream closed with {self.left} left")


class Probe:
    def __init__(self):
        note(f"made in {os.getpid()}")

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        answer = getattr(self, path.strip("/").replace("-", "_"), self.nothing)
        return answer(environ, start_response)

    def nothing(self, environ, start_response):
        start_response("404 Not Found", [("content-length", "0")])
        return []

    def environ(self, environ, start_response):
        body = environ["wsgi.input"].read()
        shown = {k: v for k, v in environ.items() if isinstance(v, str)} | {"body": body.decode()}
        data = json.dumps(shown).encode()
        start_response(
            "200 OK", [("content-type", "application/json"), ("content-length", str(len(data)))]
        )
        return [data]

    def size(self, environ, start_response):
        data = str(len(environ["wsgi.input"].read())).encode()
        start_response("200 OK", [("content-length", str(len(data)))])
        return [data]

    def unread(self, environ, start_response):
        start_response("401 Unauthorized", [("content-length", "2")])
        return [b"no"]

    def ticks(self, environ, start_response):
        start_response("200 OK", [("content-type", "text/event-stream")])
        return Ticks(3, 0.01)

    def slow(self, environ, start_response):
        start_response("200 OK", [("content-type", "text/event-stream")])
        return Ticks(int(environ["QUERY_STRING"] or 100), 0.1)

    def fail(self, environ, start_response):
        raise RuntimeError("the application failed")

    def fail_late(self, environ, start_response):
        start_response("200 OK", [("content-type", "text/event-stream")])
        return Ticks(2, 0.01, fail=True)

    def short(self, environ, start_response):
        start_response("200 OK", [("content-length", "10")])
        return [b"short"]

    def split(self, environ, start_response):
        start_response("200 OK", [("x-a", "1\r\nx-evil: 2"), ("content-length", "0")])
        return []

    def no_content(self, environ, start_response):
        start_response("204 No Content", [])
        return []

    def watched(self, environ, start_response):
        gone = gevent.event.Event()
        watch = ClientWatch(environ["gunicorn.socket"], gone.set)
        note("watching")
        note("client gone" if gone.wait(5) else "client stayed")
        watch.close()
        start_response("200 OK", [("content-length", "2")])
        return [b"ok"]

    def cut(self):
        note("cut")

    def close(self):
        note("closed")


def make(config: Config) -> Probe:
    return Probe()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    port, os.environ["PROBE_NOTES"], workers, grace_s = sys.argv[1:]
    edge = Edge(port=int(port), workers=int(workers), graceful_timeout_s=float(grace_s))
    server.KEEPALIVE_S = int(os.environ.get("PROBE_KEEPALIVE_S", server.KEEPALIVE_S))
    server.serve(Config(edge=edge), "tests.parts.probe_app:make")
