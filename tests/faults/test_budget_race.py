"""64 clients race for one dollar over two edge workers: what they are charged stays within it, most
of it can be used, and few answers are cut. Streams are slow enough to overlap.

`TOLLGATE_TEST_ROUNDS=200` runs that many seeded rounds of each kind."""

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.parts.fault_stack import FaultStack
from tests.parts.wire import post

CLIENTS = 64
LIMIT_NANO = 1_000_000_000
ROUNDS = int(os.environ.get("TOLLGATE_TEST_ROUNDS", "2"))
ROUND_S = 120.0
MODELS = {"anthropic": "claude-sonnet-4-5", "chat": "gpt-4o", "responses": "gpt-4o"}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    running = FaultStack(tmp_path_factory.mktemp("race"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


class Race:
    """One round: every client asks until it is refused while nothing is in flight."""

    def __init__(self, program, keys, seed):
        self.program = program
        self.keys = keys
        self.seed = seed
        self.lock = threading.Lock()
        self.in_flight = 0
        self.asked = 0
        self.deadline = time.monotonic() + ROUND_S

    def run(self):
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(self._client, range(CLIENTS)))
        return self.program.wait_for_rows(self.asked, self.keys[0], timeout_s=60)

    def _client(self, number):
        rng = random.Random(self.seed * 1000 + number)
        key = self.keys[number % len(self.keys)]
        while time.monotonic() < self.deadline:
            with self.lock:
                self.in_flight += 1
                self.asked += 1
            try:
                status = self._ask(key, rng)
            finally:
                with self.lock:
                    self.in_flight -= 1
            if status == 402:
                if not self.in_flight:
                    return
                time.sleep(rng.uniform(0.1, 0.5))
        raise AssertionError("the race did not end in time")

    def _ask(self, key, rng):
        dialect = rng.choice(list(MODELS))
        words = min(int(rng.lognormvariate(6.3, 0.7)), 4_000)
        limit = {"max_output_tokens" if dialect == "responses" else "max_tokens": 16_000}
        stream = rng.random() < 0.9
        if not stream:  # holds its whole bound, so a modest one
            limit = dict.fromkeys(limit, 2_000)
        reply = post(
            self.program,
            dialect,
            key,
            stream=stream,
            text=f"sim:words {words}",
            model=MODELS[dialect],
            **limit,
        )
        got = reply.body()
        assert reply.status in (200, 402), got
        return reply.status


@pytest.mark.slow
@pytest.mark.timeout(60 + ROUNDS * 180)
@pytest.mark.parametrize("keys", [1, CLIENTS], ids=["one key", "64 keys"])
def test_nobody_passes_the_limit_and_few_answers_are_cut(program, keys):
    billed = cut = used_nano = 0
    for seed in range(ROUNDS):
        account = program.new_account("1")
        made = [program.new_key("slow-3", account=account) for _ in range(keys)]
        began = time.monotonic()
        rows = Race(program, made, seed).run()
        paid = [row for row in rows if row["cost_nano"]]
        charged_nano = sum(row["cost_nano"] for row in paid)
        assert 0 < charged_nano <= LIMIT_NANO, seed
        assert {row["outcome"] for row in paid} <= {"completed", "budget_cut"}
        billed += len(paid)
        cut += sum(row["outcome"] == "budget_cut" for row in paid)
        used_nano += charged_nano
        print(
            f"seed {seed}: {len(rows)} asked, {len(paid)} billed, {cut} cut so far, "
            f"${charged_nano / 1e9:.4f}, {time.monotonic() - began:.1f} s"
        )
    assert cut < 0.1 * billed, (cut, billed)
    assert used_nano >= 0.9 * LIMIT_NANO * ROUNDS
    told = program.reconcile()
    assert told.returncode == 0, told.stdout + told.stderr
