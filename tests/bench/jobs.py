"""`scripts/bench jobs`: submissions, polls, watchers, recovery of media jobs beside the targets.

One batch process and one edge worker on a SQLite file, the simulated provider, the books beside
them. Its jobs stay open and are due more often than the process can ask.
"""

import argparse
import datetime
import platform
import resource
import sqlite3
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import func, select

from services.backends.sql import migrate
from services.backends.sql.engine import read
from services.backends.sql.job_tables import attempt, job
from tests.bench.process import cpu_s, family, machine, memory_mb
from tests.bench.watchers import Watchers
from tests.chaos.jobs_house import JobsHouse
from tests.parts.stack import ROOT

PROMPT = "a fox sim:fault job-stuck"
CLAIM_S = 30.0  # as it is set where nothing is set
WARM_UP_S = 5.0
CLIENTS = 8


class Line(NamedTuple):
    what: str
    measured: str
    target: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000, help="open at once")
    parser.add_argument("--watchers", type=int, default=2000, help="idle streams at one worker")
    parser.add_argument("--seconds", type=float, default=20.0, help="of polling, and of idling")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "jobs.md")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    about = _about()
    with tempfile.TemporaryDirectory(prefix="tollgate-bench-jobs-") as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'tollgate.db'}"
        migrate.upgrade(url)
        house = JobsHouse(folder, url, 1, claim_s=CLAIM_S, poll_s=0.2)
        try:
            house.start_all()
            lines = _measure(house, options.jobs, options.watchers, options.seconds)
        finally:
            house.close()
    text = _page(about, lines)
    options.out.write_text(text)
    print(f"\n{text}\nwritten to {options.out}")
    return 0


def _measure(house: JobsHouse, jobs: int, watchers: int, seconds: float) -> list[Line]:
    _submit(house, 0)  # connections, statements
    lines = _submissions(house, jobs)
    time.sleep(WARM_UP_S)
    lines += _polling(house, jobs, seconds)
    lines += _watching(house, watchers, seconds)
    lines += _recovery(house)
    return lines


def _submissions(house: JobsHouse, jobs: int) -> list[Line]:
    """A quarter by one client, the rest by several at once."""
    alone = jobs // 4
    one = sorted(_submit(house, number) for number in range(alone))
    began_s = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        many = sorted(pool.map(lambda number: _submit(house, number), range(jobs - alone)))
    rate = len(many) / (time.monotonic() - began_s)
    lines = []
    for who, times in (("one client", one), (f"{CLIENTS} clients, {rate:.0f}/s", many)):
        p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
        told = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        lines.append(_tell(f"submit through the edge, {who}", told, "p99 30 ms at 300/s"))
    return lines


def _submit(house: JobsHouse, number: int) -> float:
    given = {"prompt": f"{PROMPT} {number}", "duration_seconds": 1}
    began_s = time.perf_counter()
    status, told = house.call_at(0, "POST", "/v1/jobs", {"model": "veo-3.1", "input": given})
    assert status == 202, told
    return time.perf_counter() - began_s


def _polling(house: JobsHouse, jobs: int, seconds: float) -> list[Line]:
    batch = family(house.pid("batch 1"))
    began_s, before, used_s = time.monotonic(), _polls(house), cpu_s(batch)
    time.sleep(seconds)
    polls, took_s = _polls(house) - before, time.monotonic() - began_s
    cpu_ms = (cpu_s(batch) - used_s) * 1000 / max(1, polls)
    told = f"{polls / took_s:.0f}/s, {cpu_ms:.1f} ms CPU each"
    return [_tell(f"polls of one process with {jobs} open jobs", told, "400/s")]


def _polls(house: JobsHouse) -> int:
    query = select(func.sum(attempt.c.polls))
    return int(read(house.engine, lambda c: c.execute(query).scalar_one()))


def _watching(house: JobsHouse, count: int, seconds: float) -> list[Line]:
    """All of one job, which is cancelled in the end: each stream tells that it is done."""
    query = select(job.c.id).where(job.c.next_at.is_not(None)).limit(1)
    one = read(house.engine, lambda c: c.execute(query).scalar_one())
    edge = family(house.pid("edge 1"))
    empty_mb = memory_mb(edge)
    watchers = Watchers(house.port(0), house.secret, [f"/v1/jobs/job_{one}/events"], count)
    try:
        open_s = watchers.until_all(b"event: snapshot")
        assert len(open_s) == count, f"{len(open_s)} of {count} streams began"
        time.sleep(WARM_UP_S)
        began_s, used_s = time.monotonic(), cpu_s(edge)
        time.sleep(seconds)
        share = (cpu_s(edge) - used_s) / (time.monotonic() - began_s)
        each_kb = (memory_mb(edge) - empty_mb) * 1000 / count
        house.surely(0, "POST", f"/v1/jobs/job_{one}/cancel")
        told_s = watchers.until_all(b"event: done")
    finally:
        watchers.close()
    assert len(told_s) == count, f"{len(told_s)} of {count} were told"
    p50, p99 = (told_s[int(count * share)] for share in (0.5, 0.99))
    what = f"{count} idle event streams at one edge worker"
    return [
        _tell(f"{what}: memory", f"{each_kb:.0f} kB each", "13 kB each"),
        _tell(f"{what}: CPU", f"{share * 100:.1f} % of a core", "-"),
        _tell(f"{what}: all told of one end", f"p50 {p50:.2f} s, p99 {p99:.2f} s", "-"),
    ]


def _recovery(house: JobsHouse) -> list[Line]:
    """From the kill, in the middle of a poll, until each job that the process had in hand was
    taken again."""
    house.arm("batch.poll.answered")
    house.until(lambda: house.is_dead("batch 1"), "the kill", 60.0)
    began_s = time.monotonic()
    query = select(job.c.id, job.c.epoch).where(job.c.claims > 0)
    held = {row.id: row.epoch for row in read(house.engine, lambda c: c.execute(query).all())}
    house.look()
    house.until(lambda: house.call_at(0, "GET", "/v1/jobs?limit=1")[0] == 200, "an answer", 60.0)
    answers_s = time.monotonic() - began_s
    epochs = select(job.c.id, job.c.epoch).where(job.c.id.in_(held))

    def taken() -> bool:
        rows = read(house.engine, lambda c: c.execute(epochs).all())
        return all(row.epoch > held[row.id] for row in rows)

    house.until(taken, "the jobs to be taken again", 4 * CLAIM_S)
    took_s = time.monotonic() - began_s
    return [
        _tell("after kill -9 of the batch process: answers again", f"{answers_s:.1f} s", "-"),
        _tell(f"the {len(held)} jobs that it had in hand: taken again", f"{took_s:.1f} s", "35 s"),
    ]


def _tell(what: str, measured: str, target: str) -> Line:
    print(f"{what:64} {measured:>28}   target {target}", flush=True)
    return Line(what, measured, target)


def _about() -> str:
    there, now = machine(), datetime.datetime.now(datetime.UTC)
    return (
        f"{now:%Y-%m-%d %H:%M} UTC, {there['cpus']} CPUs ({there['cpu']}), "
        f"load average at the start {there['load']}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}. Made by `scripts/bench jobs`."
    )


def _page(about: str, lines: list[Line]) -> str:
    rows = "\n".join(f"| {each.what} | {each.measured} | {each.target} |" for each in lines)
    return f"""# Media jobs: speed

{about} One batch process, one edge worker, relay and ledger sink, the simulated provider and the
clients share the CPUs; the claim lasts {CLAIM_S:g} s, as it does where nothing is set.

| what | measured | target |
| --- | --- | --- |
{rows}
"""


if __name__ == "__main__":
    sys.exit(main())
