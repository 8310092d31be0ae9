"""A worker reduced to its outbox: writes requests and their ends. Importable, and runnable as a
process that fault tests kill:  python -m tests.parts.outbox_worker FOLDER INCARNATION COUNT ..."""

import argparse
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec

from schemas import config as schema
from schemas.errors import Outcome
from schemas.events import LeaseClosed, Request, Usage
from services.backends.clock import SystemClock
from services.backends.outbox import DiskFull, Outbox


def request(n: int, *, account: str = "acct_1", lease: str = "", lease_seq: int = 0) -> Request:
    request_id = f"0199f000-0000-7000-8000-{n:012d}"
    return Request(
        event_id=f"{request_id}:request",
        account_id=account,
        key_id="key_1",
        occurred_at=1_800_000_000_000_000 + n,
        source="edge",
        request_id=request_id,
        lease_id=lease,
        lease_seq=lease_seq,
        dialect="anthropic",
        path="/v1/messages",
        model="claude-sonnet-4-5",
        group="default",
        price_version="v1",
        hold_nano=1000,
        tags={"team": "a"},
        session_id="session-1",
    )


def usage(n: int, *, account: str = "acct_1", lease: str = "", lease_seq: int = 0) -> Usage:
    request_id = f"0199f000-0000-7000-8000-{n:012d}"
    return Usage(
        event_id=f"{request_id}:usage",
        account_id=account,
        key_id="key_1",
        occurred_at=1_800_000_000_000_000 + n,
        source="edge",
        request_id=request_id,
        lease_id=lease,
        lease_seq=lease_seq,
        status=200,
        outcome=Outcome.COMPLETED,
        usage={"input": 10, "output": 5},
        multiplier_ppm=1_000_000,
        cost_nano=100,
        charged_nano=100,
        model="claude-sonnet-4-5",
        dialect="anthropic",
    )


def lease_closed(lease: str, events: int, account: str = "acct_1") -> LeaseClosed:
    return LeaseClosed(
        event_id=f"{lease}:lease_closed",
        account_id=account,
        occurred_at=1_800_000_000_000_000,
        source="edge",
        lease_id=lease,
        events=events,
    )


def settings(**values) -> schema.Outbox:
    return schema.Outbox(**{"ballast_bytes": 1024 * 1024, **values})


class Syncer:
    """The real thread that a worker has for `Outbox.sync`."""

    def __init__(self, outbox: Outbox, interval_s: float = 0.01) -> None:
        self._outbox = outbox
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._outbox.sync()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    """Writes COUNT request/usage pairs of one lease, and says `done`. `--open` requests are left
    without an end; `--hang` waits to be killed, otherwise the incarnation is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("incarnation")
    parser.add_argument("count", type=int)
    parser.add_argument("--open", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--accounts", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0, help="pairs per second, 0: no limit")
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--settings", default="{}")
    args = parser.parse_args()
    options = settings(**msgspec.json.decode(args.settings))
    outbox = Outbox.create(args.folder, args.incarnation, options, SystemClock())
    syncer = Syncer(outbox)
    lease = f"lease_{args.incarnation}"
    lease_seqs = Counter()
    written = refused = 0
    for n in range(args.first, args.first + args.count + args.open):
        account = f"acct_{n % args.accounts}"
        at = {"account": account, "lease": f"{lease}_{n % args.accounts}"}
        try:
            outbox.append(request(n, lease_seq=lease_seqs[account] + 1, **at))
        except DiskFull:
            refused += 1
            time.sleep(0.001)
            continue
        lease_seqs[account] += 1
        if n < args.first + args.count:
            outbox.append_last(usage(n, lease_seq=lease_seqs[account] + 1, **at))
            lease_seqs[account] += 1
            written += 1
        if args.rate:
            time.sleep(1 / args.rate)
    syncer.stop()
    outbox.sync()
    print(f"done {written} {refused}", flush=True)
    if args.hang:
        sys.stdin.read()
        os._exit(0)
    for account, events in lease_seqs.items():
        lease_id = f"{lease}_{account.removeprefix('acct_')}"
        outbox.append_last(lease_closed(lease_id, events, account))
    outbox.close()


if __name__ == "__main__":
    main()
