"""Chaos of media jobs: many fault-injected jobs, several batch processes on one database, random
kills of them, of the edges and of the books; then the provider's own account of its work is
compared.

scripts/chaos jobs --jobs 100000 --seed 1 [--postgres] [--kafka] [--processes 2]
"""

import argparse
import contextlib
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import func, select

from services.backends.sql import migrate
from services.backends.sql.engine import DatabaseUnavailable, read
from services.backends.sql.job_tables import job
from tests.chaos.jobs_checks import Checks, EndWatch
from tests.chaos.jobs_harm import Harm
from tests.chaos.jobs_house import JobsHouse
from tests.chaos.jobs_mix import Ask, ask
from tests.chaos.postgres import Postgres
from tests.parts.kafka import make_broker

CLIENTS = 16
OPEN_MAX = 400
END_S = 180.0
CAUGHT_UP_S = 600.0
TOLD_EVERY = 5000


def say(line: str) -> None:
    print(line, flush=True)


def run(
    folder: Path,
    *,
    jobs: int,
    seed: int,
    postgres: bool = False,
    kafka: bool = False,
    processes: int = 2,
    every_s: float = 10.0,
    within_s: float = math.inf,
) -> int:
    """0 when every check holds, 1 else. After `within_s` no more jobs are submitted."""
    kinds = f"{'PostgreSQL' if postgres else 'SQLite'}, {'Kafka' if kafka else 'local log'}"
    say(f"jobs: seed {seed}, {jobs} jobs, {processes} batch processes, {kinds}")
    began_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        house = _house(stack, folder, postgres, kafka, processes)
        house.start_all()
        watch, harm = EndWatch(house), Harm(house, seed, every_s)
        watch.start()
        harm.start()
        first_s = time.monotonic()
        try:
            asks = _submit_all(house, seed, jobs, within_s)
        finally:
            harm.end()
        house.until(lambda: _open(house) == 0 or house.look(), "the last jobs to end", END_S)
        ended_s = time.monotonic() - first_s
        watch.end()
        house.stop_all()
        checks = Checks(house, asks, watch)
        checks.problems += house.strange
        if harm.failed is not None:
            checks.problems.append(f"the harm has ended: {harm.failed!r}")
        checks.run(CAUGHT_UP_S)
        say(f"{house.deaths} deaths: " + _counted(harm.done))
        say(f"{len(asks)} jobs in {ended_s:.0f} s: {len(asks) / ended_s:.1f} jobs/s")
        for line in checks.figures:
            say(line)
    for problem in checks.problems[:30]:
        say(f"WRONG  {problem[:600]}")
    verdict = f"{len(checks.problems)} wrong" if checks.problems else "all checks hold"
    say(f"jobs: seed {seed}, {time.monotonic() - began_s:.0f} s with the checks: {verdict}")
    return 1 if checks.problems else 0


def _house(
    stack: contextlib.ExitStack, folder: Path, postgres: bool, kafka: bool, processes: int
) -> JobsHouse:
    url, bootstrap = f"sqlite:///{folder / 'tollgate.db'}", ""
    if kafka:
        (folder / "kafka").mkdir()
        broker = make_broker(folder / "kafka")
        stack.callback(broker.kill)
        bootstrap = broker.bootstrap
    if postgres:
        server = Postgres()
        stack.callback(server.close)
        url = server.url
    migrate.upgrade(url)
    house = JobsHouse(folder, url, processes, bootstrap=bootstrap, apart=postgres)
    stack.callback(house.close)
    return house


def _submit_all(house: JobsHouse, seed: int, jobs: int, within_s: float) -> dict[str, Ask]:
    """By job id. At most some hundred are open at a time."""
    room = threading.Event()
    over = threading.Event()
    began_s = time.monotonic()

    def count() -> None:
        while not over.wait(0.2):
            room.set() if _open(house) < OPEN_MAX else room.clear()

    def one(number: int) -> tuple[str, Ask] | None:
        room.wait()
        if time.monotonic() - began_s > within_s:
            return None
        asked = ask(seed, number)
        status, made = house.surely(number, "POST", "/v1/jobs", asked.body())
        assert status in (200, 202), made
        if number % TOLD_EVERY == 0 and number:
            say(f"  {number} submitted after {time.monotonic() - began_s:.0f} s")
        return made["id"].removeprefix("job_"), asked

    def cancel(job_id: str) -> None:
        house.surely(0, "POST", f"/v1/jobs/job_{job_id}/cancel")

    found: dict[str, Ask] = {}
    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        with ThreadPoolExecutor(CLIENTS) as pool, ThreadPoolExecutor(CLIENTS) as cancels:
            for job_id, asked in filter(None, pool.map(one, range(jobs))):
                found[job_id] = asked
                if asked.cancel_after_s is not None:
                    cancels.submit(_after, asked.cancel_after_s, cancel, job_id)
        return found
    finally:
        over.set()
        room.set()
        counter.join()


def _after(seconds, fn, *arguments) -> None:
    time.sleep(seconds)
    fn(*arguments)


def _open(house: JobsHouse) -> int:
    query = select(func.count()).where(job.c.next_at.is_not(None))
    try:
        return read(house.engine, lambda c: c.execute(query).scalar_one())
    except DatabaseUnavailable:
        return OPEN_MAX


def _counted(counter: Counter) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counter.items()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, help="default: a new one, printed")
    parser.add_argument("--postgres", action="store_true", help="the database is PostgreSQL")
    parser.add_argument("--kafka", action="store_true", help="the bus is a real Kafka broker")
    parser.add_argument("--processes", type=int, default=2, help="batch processes, an edge each")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two kills, mean")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of submitting at most")
    parser.add_argument("--keep", type=Path, help="a new folder for data and logs, kept")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    wanted = {
        "jobs": options.jobs,
        "seed": seed,
        "postgres": options.postgres,
        "kafka": options.kafka,
        "processes": options.processes,
        "every_s": options.every,
        "within_s": options.minutes * 60,
    }
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        return run(options.keep, **wanted)
    with tempfile.TemporaryDirectory(prefix="tollgate-jobs-") as folder:
        return run(Path(folder), **wanted)


if __name__ == "__main__":
    sys.exit(main())
