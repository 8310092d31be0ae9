"""The whole program, with a folder through which a test orders the next process that passes a
named crash point to die by SIGKILL."""

import time
from pathlib import Path

import requests

from tests.parts.stack import Stack

QUESTION = {
    "model": "claude-haiku-4-5",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "say something"}],
}


class FaultStack(Stack):
    def __init__(self, folder: Path, sections: dict[str, dict] | None = None) -> None:
        super().__init__(folder, sections)
        self.orders = folder / "crash-orders"
        self.orders.mkdir()

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "TOLLGATE_CRASH_FOLDER": str(self.orders)}

    def get(self, path: str, key: str):
        """As the parent's, patient while a killed process comes back."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return super().get(path, key)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def ask(self, key: str, *, stream: bool = False, port: int = 0) -> requests.Response | None:
        """One request, its answer read whole; None when the worker died under it."""
        try:
            return requests.post(
                f"http://127.0.0.1:{port or self.port}/v1/messages",
                json={**QUESTION, "stream": stream},
                headers={"x-api-key": key, "anthropic-version": "2023-06-01"},
                timeout=20,
            )
        except requests.RequestException:
            return None

    def order(self, point: str) -> None:
        (self.orders / point).touch()

    def ordered(self, point: str) -> bool:
        """Whether the order still waits for a process."""
        return (self.orders / point).exists()

    def crash(self, point: str, key: str, *, stream: bool = False, within_s: float = 60.0) -> int:
        """Orders the crash and sends requests until a process has died there. Returns how many
        requests were answered whole meanwhile."""
        self.order(point)
        deadline = time.monotonic() + within_s
        answered = 0
        while self.ordered(point):
            assert time.monotonic() < deadline, f"nothing passed {point}"
            reply = self.ask(key, stream=stream)
            answered += reply is not None and reply.status_code == 200
            time.sleep(0.05)
        return answered

    def outcomes(self, key: str, count: int, timeout_s: float = 60.0) -> list[dict]:
        """The rows of the key's account, once there are `count`."""
        return self.wait_for_rows(count, key, timeout_s)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self._status("/readyz") != 200:
            assert time.monotonic() < deadline, "not ready again"
            time.sleep(0.1)
