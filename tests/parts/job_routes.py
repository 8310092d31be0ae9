"""One batch service on each engine for all tests of its routes, called as the edge calls it; a
receiver of callbacks; the calls that the tests share."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.parts.batch_house import BatchHouse
from tests.parts.postgres import POSTGRES, SQLITE, drop_database, postgres_url
from tests.parts.sim import Sim
from tests.parts.sqlite import migrated_url

HOOKS = "/v1/webhooks/endpoints"


@pytest.fixture(scope="package")
def media_sim(tmp_path_factory):
    made = Sim(
        tmp_path_factory.mktemp("sim") / "sim.log", "--media-queue-ms", "10", "--media-run-ms", "50"
    )
    yield made
    made.stop()


class Edge(BaseHTTPRequestHandler):
    """Answers every line of a batch alike."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        told = b'{"type": "message"}'
        self.send_response(200)
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="package")
def edge_url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Edge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="package", params=[SQLITE, POSTGRES])
def running(request, tmp_path_factory, media_sim, edge_url):
    """One service for all tests of an engine."""
    os.environ["TOLLGATE_TEST_UPSTREAM"] = "upstream-secret"
    folder = tmp_path_factory.mktemp("house")
    url = migrated_url(folder) if request.param == "sqlite" else postgres_url()
    made = BatchHouse(
        folder / "data",
        url,
        media_sim.base_url,
        callback_networks="127.0.0.0/8",
        gone_s=1,
        edge_url=edge_url,
    )
    made.start()
    yield made
    made.close()
    if request.param != "sqlite":
        drop_database(url)


@pytest.fixture
def house(running):
    running.newcomer()
    return running


def submit_task(house, **body):
    return house.call("POST", "/v1/tasks/submit", {"model": "sim-image", **body})


def query_task(house, **named):
    return house.call("POST", "/v1/tasks/query", named)


def code(answer):
    status, body = answer
    return status, body["error"]["code"]


class Receiver(BaseHTTPRequestHandler):
    """Answers what the test says, or the path (`/429`; `/0` is no answer), then 200."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((headers, body))
        named = self.path[1:]
        status = self.server.answers.pop(0) if self.server.answers else 200
        status = int(named) if named.isdecimal() else status
        if status:
            self.send_response(status)
            self.send_header("location", "http://169.254.169.254/")
            if named.isdecimal():
                self.send_header("retry-after", "120")
            self.end_headers()
            self.wfile.write(b"as it \0 was")

    def log_message(self, *args):
        pass


@pytest.fixture
def receiver():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
