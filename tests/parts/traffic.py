"""Requests that keep coming while something breaks, and what must be true of them afterwards."""

import contextlib
import threading
import time

from tests.parts.fault_stack import FaultStack

# For the section `edge`: a machine that is busy with tests answers late, which is not the subject.
PATIENT = {"catalog_grace_s": 60.0}


class Traffic(threading.Thread):
    """Sends one request after the other until told to stop."""

    def __init__(self, program: FaultStack, key: str, port: int) -> None:
        super().__init__(daemon=True)
        self.program, self.key, self.port = program, key, port
        self.served = 0
        self.refused: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            reply = self.program.ask(self.key, stream=self.served % 2 == 0, port=self.port)
            if reply is not None and reply.status_code == 200:
                self.served += 1
            else:
                self.refused.append("died" if reply is None else reply.text[:200])
            time.sleep(0.05)


class Clients:
    """Three of them on one key. `port` 0: the program's own."""

    def __init__(self, program: FaultStack, key: str, port: int = 0) -> None:
        self.program, self.key = program, key
        self._each = [Traffic(program, key, port) for _ in range(3)]

    @property
    def served(self) -> int:
        return sum(each.served for each in self._each)

    @contextlib.contextmanager
    def asking(self):
        for each in self._each:
            each.start()
        try:
            yield self
        finally:
            for each in self._each:
                each.over.set()
                each.join(30)

    def wait_served(self, more: int, limit_s: float = 60.0) -> None:
        """Until so many more were answered."""
        wanted, deadline = self.served + more, time.monotonic() + limit_s
        while self.served < wanted:
            assert time.monotonic() < deadline, f"{self.served} of {wanted}, {self.refused()}"
            time.sleep(0.05)

    def refused(self) -> list[str]:
        return [text for each in self._each for text in each.refused]

    def check_billed_once(self) -> None:
        """Every answer has one row and one bill, and all parts agree."""
        refused = self.refused()
        assert not refused, f"{len(refused)} of {self.served}: {refused[:5]}"
        rows = self.program.outcomes(self.key, self.served, timeout_s=90)
        assert len(rows) == self.served
        assert {row["outcome"] for row in rows} == {"completed"}
        told = self.program.reconcile()
        assert told.exit_code == 0, told.text()
        spent = self.program.get("/v1/balance", self.key)["lifetime_spent_usd"]
        assert round(spent * 1e9) == sum(row["cost_nano"] for row in rows)
