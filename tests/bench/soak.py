"""Memory of every process under steady mixed traffic: `python -m tests.bench.soak --minutes 60`.

A whole installation with two edge workers and the simulated provider; each dialect, streams and
JSON, failures and clients that hang up. Prints the memory by process each minute and writes
docs/bench/soak.md. Exits 1 when a process grew by more than 10 % after the first third, or when the
books differ at the end."""

import argparse
import itertools
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from tests.bench.gateways import ROOT
from tests.parts.stack import Stack
from tests.parts.wire import PATHS, post

GROWTH = 1.10
THREADS = 4
TITLES = ("edge worker", "books", "analytics")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.soak")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--rate", type=float, default=40.0, help="requests per second")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "soak.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tollgate-soak-") as folder:
        stack = Stack(Path(folder))
        stack.start()
        try:
            return _soak(stack, asked)
        finally:
            stack.stop()


def _soak(stack: Stack, asked: argparse.Namespace) -> int:
    stop = threading.Event()
    sent = itertools.count()
    keys = [stack.new_key(usd="100000"), stack.new_key("fault-error-400", usd="100")]
    threads = [
        threading.Thread(target=_ask, args=(stack, keys, sent, stop, THREADS / asked.rate))
        for _ in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    readings: list[dict[str, float]] = []
    try:
        for minute in range(1, asked.minutes + 1):
            time.sleep(60)
            readings.append(_memory_mb(stack))
            told = ", ".join(f"{name} {mb:.1f}" for name, mb in readings[-1].items())
            print(f"minute {minute}: {told} MB", flush=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    total = next(sent)
    books = stack.reconcile().exit_code
    asked.out.write_text(_report(readings, total, asked, books))
    print(asked.out.read_text())
    settled = readings[len(readings) // 3]
    grown = [name for name, mb in readings[-1].items() if mb > settled[name] * GROWTH]
    if grown:
        print(f"grew: {', '.join(grown)}", file=sys.stderr)
    return 1 if grown or books else 0


def _ask(stack: Stack, keys: list[str], sent, stop: threading.Event, each_s: float) -> None:
    dialects = list(PATHS)
    while not stop.wait(each_s):
        number = next(sent)
        key = keys[1] if number % 20 == 0 else keys[0]
        try:
            reply = post(stack, dialects[number % 3], key, stream=number % 2 == 0)
            if number % 10:
                reply.body()
            else:
                reply.close()  # a client that hangs up
        except OSError:
            continue


def _memory_mb(stack: Stack) -> dict[str, float]:
    """What each process has of its own, by its title: not the pages of libraries, which are another
    process's as well as long as that one runs."""
    found: dict[str, float] = {}
    for process in psutil.Process(stack.pid).children(recursive=True):
        title = " ".join(process.cmdline()).removeprefix("tollgate: ").strip()
        if title in TITLES:
            name = next(
                f"{title} {number}"
                for number in itertools.count(1)
                if f"{title} {number}" not in found
            )
            memory = process.memory_info()
            found[name] = (memory.rss - memory.shared) / 1e6
    return found


def _report(
    readings: list[dict[str, float]], total: int, asked: argparse.Namespace, books: int
) -> str:
    names = list(readings[-1])
    every = max(1, len(readings) // 12)
    rows = [
        f"| {minute} | " + " | ".join(f"{reading.get(name, 0):.1f}" for name in names) + " |"
        for minute, reading in enumerate(readings, 1)
        if minute == 1 or minute % every == 0
    ]
    return (
        f"# Memory over {len(readings)} minutes\n\n{total:,} requests at {asked.rate:g} a second: "
        "three dialects, streams and JSON, failures, clients that hang up. Megabytes that each "
        f"process has of its own. `tollgate reconcile` at the end: exit {books}. Made by "
        "`python -m tests.bench.soak`.\n\n"
        f"| minute | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
