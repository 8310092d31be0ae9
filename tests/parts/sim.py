"""The simulated provider as a process of its own, with its log."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.parts.wire import Reply

ROOT = Path(__file__).parent.parent.parent


class Sim:
    """A running simulated provider: `base_url`, its log, its echo of raw bytes."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log_path = log
        command = [sys.executable, "-m", "services.sim", "--port", "0", "--log", str(log)]
        self._process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("simulated provider on "), line
        self.base_url = line.split()[-1]
        self.port = int(self.base_url.rsplit(":", 1)[1])

    def get(self, path: str):
        with urllib.request.urlopen(self.base_url + path, timeout=10) as reply:
            return json.load(reply)

    def calls(self, after: int = 0, **match) -> list[dict]:
        """Finished calls, oldest first, whose fields equal `match`."""
        found = self.get(f"/sim/log?after={after}")["calls"]
        return [c for c in found if all(c[name] == value for name, value in match.items())]

    def last_id(self) -> int:
        """Of the calls that have begun: one that an earlier test left and that ends later is not
        taken for a new one."""
        return self.get(f"/sim/log?after={2**62}")["last_id"]

    def wait_for_calls(self, count: int, after: int = 0, timeout_s: float = 30.0, **match):
        """At least `count` finished calls; fails when they do not come."""
        deadline = time.monotonic() + timeout_s
        while len(found := self.calls(after, **match)) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} calls: {found}"
            time.sleep(0.02)
        return found

    def call_of(self, reply: Reply) -> dict:
        """The finished call whose answer the reply is, by the provider's request id."""
        told = reply.header("request-id") or reply.header("x-request-id")
        number = int(told.removeprefix("req_sim_"))
        return self.wait_for_calls(1, after=number - 1, id=number)[0]

    def echo_of(self, reply: Reply) -> dict:
        """Raw bytes of the call whose answer the reply is, as `echo` gives them."""
        return self.echo(self.call_of(reply)["id"])

    def echo(self, which: str | int = "last") -> dict:
        """Raw bytes of a call: `head`, `body`, `reply_body` decoded, and the reply's headers."""
        raw = self.get(f"/sim/echo/{which}")
        return {**raw, **{k: base64.b64decode(raw[k]) for k in ("head", "body", "reply_body")}}

    def media_jobs(self, **match) -> list[dict]:
        """Jobs of the media half, oldest first; `ref`, `model`, `provider` choose."""
        query = "&".join(f"{name}={value}" for name, value in match.items())
        return self.get("/sim/media/jobs?" + query)["jobs"]

    def reset(self) -> None:
        request = urllib.request.Request(self.base_url + "/sim/reset", method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def stop(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    """One provider per test module; tests tell their own calls apart by `last_id`."""
    running = Sim(tmp_path_factory.mktemp("sim") / "sim.log")
    yield running
    running.stop()
