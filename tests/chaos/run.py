"""One run: start, traffic and harm, healing, the checks, the figures."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.actions import Actions
from tests.chaos.checks import Checks
from tests.chaos.installation import Cluster, Installation
from tests.chaos.limits import LimitWatch
from tests.chaos.postgres import Postgres
from tests.chaos.traffic import Traffic
from tests.parts.kafka import make_broker

CAUGHT_UP_S = 120.0


def say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def installed(folder: Path, *, kafka: bool, postgres: bool) -> Iterator[Installation]:
    """A started installation; everything is gone afterwards."""
    with contextlib.ExitStack() as stack:
        broker = server = None
        if kafka:
            (folder / "kafka").mkdir()
            broker = make_broker(folder / "kafka")
            stack.callback(broker.kill)
        if postgres:
            server = Postgres()
            stack.callback(server.close)
        program = Cluster(folder, broker, server) if kafka or postgres else Installation(folder)
        stack.callback(program.close)
        program.start()
        yield program


def run(
    folder: Path, *, seed: int, seconds: float, clients: int, kafka: bool, postgres: bool
) -> int:
    """0 when every check holds, 1 else. Main thread only: the parts die with it."""
    parts = f"{'Kafka' if kafka else 'local log'}, {'PostgreSQL' if postgres else 'SQLite'}"
    say(f"chaos: seed {seed}, {seconds:g} s, {clients} clients, {parts}")
    with installed(folder, kafka=kafka, postgres=postgres) as program:
        traffic = Traffic(program, seed, clients)
        watch = LimitWatch(program)
        actions = Actions(program, seed, say)
        watch.start()
        traffic.start()
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            actions.step()
            time.sleep(0.05)
        actions.end()
        program.heal()
        traffic.stop()
        watch.stop()
        say("healed; the edge ends, a meter books what is left")
        program.settle()
        checks = Checks(program, traffic, watch)
        checks.run(CAUGHT_UP_S)
        _figures(traffic, actions, checks)
    for problem in checks.problems[:30]:
        say(f"WRONG  {problem[:400]}")
    verdict = f"{len(checks.problems)} wrong" if checks.problems else "all checks hold"
    say(f"chaos: seed {seed}: {verdict}")
    sys.stdout.flush()
    return 1 if checks.problems else 0


def _figures(traffic: Traffic, actions: Actions, checks: Checks) -> None:
    say("\nactions: " + _counted(actions.done))
    say(f"clients: {len(traffic.seen)} requests, by status: " + _counted(checks.statuses))
    say("outcomes: " + _counted(checks.outcomes))
    for line in checks.figures:
        say(line)


def _counted(counter: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=str))
